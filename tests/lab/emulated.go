package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const qemuBinary = "qemu-system-x86_64"

// Emulation is the setting of emulated nodes.
type Emulation struct {
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memory_mib"`
	CPU       string   `json:"cpu"`        // QEMU's -cpu
	Thread    string   `json:"thread"`     // multi: one thread per vCPU; single: one for all
	Args      []string `json:"args"`       // for the node's kernel: module parameters and so on
	ModuleDir string   `json:"module_dir"` // lib/modules/VERSION of the kernel, if it isn't all built in
}

// DefaultEmulation is the setting that soak runs found dependable (docs/lab.md has the counts).
//
//   - One CPU: with several, QEMU's threads race on kernel text that is patched while another CPU runs it, and nodes die of
//     a stray int3.
//   - No XSAVE: QEMU's SVM does not intercept XSETBV, so a nested guest that sets XCR0 sets its host's, and the KVM in the
//     node knows nothing of it. Linux guests then fail in the set-up of their FPU, and what the node saves and restores
//     is no longer what it thinks.
//   - No virtual GIF: with it, nodes died in page-fault recursions under dirty logging.
//   - No AES and carry-less multiplication: emulated, they are slower than doing without. TLS then takes ChaCha20-Poly1305,
//     43 MB/s instead of AES-GCM's 10.
func DefaultEmulation() Emulation {
	return Emulation{CPUs: 1, MemoryMiB: 1536, CPU: "max,-xsave,-aes,-pclmulqdq", Thread: "multi", Args: []string{"kvm_amd.vgif=0"}}
}

// fill replaces what is not set by the default.
func (e Emulation) fill() Emulation {
	d := DefaultEmulation()
	if e.CPUs == 0 {
		e.CPUs = d.CPUs
	}
	if e.MemoryMiB == 0 {
		e.MemoryMiB = d.MemoryMiB
	}
	if e.CPU == "" {
		e.CPU = d.CPU
	}
	if e.Thread == "" {
		e.Thread = d.Thread
	}
	if e.Args == nil {
		e.Args = d.Args
	}
	return e
}

// hostModules are the modules that a host needs of a kernel that has them not built in, dependencies first.
var hostModules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "virtio_blk", "virtio-rng",
	"llc", "stp", "bridge", "tun", "irqbypass", "kvm", "kvm-amd",
}

// findModules finds hostModules below a kernel's module directory, in loading order. Those that the kernel has built in, or
// doesn't know, are left out: a node says clearly what it then misses.
func findModules(dir string) ([]string, error) {
	byName := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".ko") {
			byName[strings.TrimSuffix(filepath.Base(path), ".ko")] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: look for kernel modules: %w", err)
	}
	var found []string
	for _, name := range hostModules {
		if path, ok := byName[name]; ok {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("lab: no kernel modules (*.ko) below %s", dir)
	}
	return found, nil
}

// guestBinary is where the pollux binary is in an emulated node.
const guestBinary = "/bin/pollux"

// writeInitramfs makes the initramfs of an emulated node: the pollux binary, its configuration, kernel modules.
func writeInitramfs(target, binary string, node NodeConfig, moduleDir string) error {
	m := newImage()
	m.addFile(guestBinary, binary, 0o755)
	if moduleDir != "" {
		modules, err := findModules(moduleDir)
		if err != nil {
			return err
		}
		for _, source := range modules {
			name := "/lib/modules/" + filepath.Base(source)
			m.addFile(name, source, 0o644)
			node.Modules = append(node.Modules, name)
		}
	}
	cfg, err := json.Marshal(node)
	if err != nil {
		return fmt.Errorf("lab: encode the configuration of %s: %w", node.Name, err)
	}
	m.addContent(nodeConfigPath, cfg, 0o644)
	return m.write(target)
}

// qemuSpec is everything that QEMU's arguments for one node depend on.
type qemuSpec struct {
	id, node       string
	kernel, initrd string
	console        string // file
	disk           string // raw file, may be empty
	nodeArgs       []string
	emulation      Emulation
	attachedTo     []string // networks
}

// kernelArgs is the node kernel's command line. A kernel that fails must take the node down at once, and not linger: panic and
// oops end in a reset, and -no-reboot makes that the end of QEMU.
func (s qemuSpec) kernelArgs() string {
	args := []string{
		"console=ttyS0", "loglevel=5", "panic=1", "oops=panic",
		"rdinit=" + guestBinary,
		"mitigations=off",     // against attacks that emulation doesn't have, at a price that it does
		"tsc=reliable",        // the watchdog compares clocks that emulation lets drift
		"no_timer_check",      // which panics when emulation is late with a few ticks
		"random.trust_cpu=on", // no wait for entropy
	}
	args = append(args, s.emulation.Args...)
	args = append(args, "--")
	return strings.Join(append(args, s.nodeArgs...), " ")
}

// qemuArgs are QEMU's arguments, without its own name.
func (s qemuSpec) qemuArgs() []string {
	e := s.emulation
	args := []string{
		"-name", namespaceName(s.id, s.node), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", "tcg,thread=" + e.Thread, "-cpu", e.CPU,
		"-smp", strconv.Itoa(e.CPUs), "-m", strconv.Itoa(e.MemoryMiB) + "M",
		"-kernel", s.kernel, "-initrd", s.initrd, "-append", s.kernelArgs(),
		"-chardev", "file,id=console,path=" + qemuEscape(s.console), "-serial", "chardev:console",
		"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
	}
	for _, network := range s.attachedTo {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no,vhost=off", network, portName(s.node, network)),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s,romfile=", network, nodeMAC(s.node, network)))
	}
	if s.disk != "" {
		args = append(args, "-drive", "if=none,id=disk0,format=raw,file="+qemuEscape(s.disk), "-device", "virtio-blk-pci,drive=disk0")
	}
	return slices.Clip(args)
}

// qemuEscape doubles commas, which separate options in QEMU's arguments.
func qemuEscape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
