package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Backend is how the hosts of a lab are made.
type Backend string

const (
	// Auto lets Choose decide.
	Auto Backend = "auto"
	// Namespaces makes hosts of namespaces and uses this machine's /dev/kvm.
	Namespaces Backend = "namespaces"
	// Emulated makes hosts of QEMU in software emulation; each has a KVM of its own.
	Emulated Backend = "emulated"
)

// Tier names the backend as reports do.
func (b Backend) Tier() string {
	if b == Namespaces {
		return "namespaces"
	}
	return "emulated"
}

// Choose settles which backend a lab uses and says why in one line. want is Auto for the machine's best, or a backend to insist
// on; insisting on Namespaces needs a working /dev/kvm of any kind, while Auto picks it on hardware KVM only, because a
// paravirtual KVM runs no Linux guests.
func Choose(want Backend) (Backend, string, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", "", fmt.Errorf("lab: read the CPU's features: %w", err)
	}
	_, qemuErr := exec.LookPath(qemuBinary)
	return choose(want, virtualizationFlag(cpuinfo), probeKVM("/dev/kvm"), qemuErr)
}

func choose(want Backend, flag string, kvmErr, qemuErr error) (Backend, string, error) {
	switch want {
	case Namespaces:
		if kvmErr != nil {
			return "", "", fmt.Errorf("lab: hosts in namespaces need a working /dev/kvm on this machine: %w", kvmErr)
		}
		if flag == "" {
			return Namespaces, "namespaces, as asked; /dev/kvm works but the CPU shows neither svm nor vmx, so only bare guests will run", nil
		}
		return Namespaces, fmt.Sprintf("namespaces, as asked; the CPU shows %s and /dev/kvm works", flag), nil
	case Emulated, Auto, "":
	default:
		return "", "", fmt.Errorf("lab: no backend %q; choose one of %s, %s, %s", want, Auto, Namespaces, Emulated)
	}
	var reason string
	switch {
	case want == Emulated:
		reason = "as asked"
	case flag != "" && kvmErr == nil:
		return Namespaces, fmt.Sprintf("namespaces on hardware KVM: the CPU shows %s and /dev/kvm works", flag), nil
	case flag == "" && kvmErr == nil:
		reason = "/dev/kvm works but the CPU shows neither svm nor vmx, so it is paravirtual and runs no Linux guests"
	default:
		reason = kvmErr.Error()
	}
	if qemuErr != nil {
		return "", "", fmt.Errorf("lab: hosts have to be emulated (%s), and that needs QEMU; on Debian: apt-get install qemu-system-x86: %w", reason, qemuErr)
	}
	return Emulated, "emulated nodes (QEMU, software emulation): " + reason, nil
}

// virtualizationFlag returns "vmx" or "svm" if the first CPU of /proc/cpuinfo shows it, else "".
func virtualizationFlag(cpuinfo []byte) string {
	s := bufio.NewScanner(bytes.NewReader(cpuinfo))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		name, value, ok := strings.Cut(s.Text(), ":")
		if !ok || strings.TrimSpace(name) != "flags" {
			continue
		}
		fields := strings.Fields(value)
		for _, f := range []string{"vmx", "svm"} {
			if slices.Contains(fields, f) {
				return f
			}
		}
		return ""
	}
	return ""
}

// probeKVM makes a VM to see that path works; a device that opens but has no CPU support behind it fails only here.
func probeKVM(path string) error {
	const (
		getAPIVersion = 0xae00 // KVM_GET_API_VERSION, KVM API §4.1
		createVM      = 0xae01 // KVM_CREATE_VM, KVM API §4.2
		wantVersion   = 12
	)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("no usable KVM: %w", err)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), getAPIVersion)
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", path, err)
	}
	if version != wantVersion {
		return fmt.Errorf("%s has API version %d, want %d", path, version, wantVersion)
	}
	vm, err := unix.IoctlRetInt(int(f.Fd()), createVM)
	if err != nil {
		return fmt.Errorf("create a VM on %s: %w", path, err)
	}
	return unix.Close(vm)
}
