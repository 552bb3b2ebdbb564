package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Path is where the kernel offers KVM.
const Path = "/dev/kvm"

// apiVersion is the only one there has been since Linux 2.6.22 (KVM API §4.1).
const apiVersion = 12

var (
	// ErrNoKVM is wrapped by Open's error when the machine offers no KVM.
	ErrNoKVM = errors.New("this machine offers no KVM")
	// ErrPermission is wrapped by Open's error when the user may not use it.
	ErrPermission = errors.New("no permission to use KVM")
	// ErrCapability is wrapped by the error about a KVM that lacks something Pollux needs.
	ErrCapability = errors.New("this KVM is too old or too limited")
)

// required is what a machine cannot do without, with the words for an error.
var required = []struct {
	capability gokvm.Capability
	what       string
}{
	{gokvm.CapUserMemory, "guest memory from user space"},
	{gokvm.CapIRQChip, "in-kernel interrupt controllers"},
	{gokvm.CapPIT2, "in-kernel timer"},
	{gokvm.CapPITState2, "state of the in-kernel timer"},
	{gokvm.CapSetTSSAddr, "TSS address"},
	{gokvm.CapSetIdentityMapAddr, "identity map address"},
	{gokvm.CapEXTCPUID, "extended CPUID"},
	{gokvm.CapMPState, "multiprocessing state"},
	{gokvm.CapVCPUEvents, "state of pending events"},
	{gokvm.CapDebugRegs, "debug registers"},
	{gokvm.CapXSave, "extended processor state"},
	{gokvm.CapAdjustClock, "adjustable clock"},
	{gokvm.CapSignalMSI, "message-signalled interrupts"},
	{gokvm.CapIOEventFD, "ioeventfd"},
	{gokvm.CapImmediateExit, "immediate exit"},
	{gokvm.CapManualDirtyLogProtect2, "manual protection of dirty pages (Linux 5.0)"},
}

// System is an open /dev/kvm. It outlives the VMs that are made from it.
type System struct {
	file    *os.File
	runSize int // bytes of a vCPU's run page
}

// Open opens /dev/kvm and checks that it can do what Pollux needs. The errors wrap ErrNoKVM, ErrPermission or
// ErrCapability and say what to do.
func Open() (*System, error) { return OpenPath(Path) }

// OpenPath is Open for a device node elsewhere.
func OpenPath(path string) (*System, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("open %s: %w: enable virtualization in the firmware and load kvm_intel or kvm_amd", path, ErrNoKVM)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: %w: join the group that owns it (usually kvm), or run as root", path, ErrPermission)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &System{file: f}
	if err := s.check(path); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *System) check(path string) error {
	version, err := gokvm.GetAPIVersion(s.file.Fd())
	if errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("open %s: %w: it is something else", path, ErrNoKVM)
	}
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", path, err)
	}
	if version != apiVersion {
		return fmt.Errorf("open %s: %w: API version %d, need %d", path, ErrCapability, version, apiVersion)
	}
	for _, r := range required {
		n, err := s.Check(r.capability)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("open %s: %w: no %s", path, ErrCapability, r.what)
		}
	}
	size, err := gokvm.GetVCPUMMmapSize(s.file.Fd())
	if err != nil {
		return fmt.Errorf("ask %s for the size of the run page: %w", path, err)
	}
	if size < runPageMin {
		return fmt.Errorf("open %s: %w: run page of %d bytes, need %d", path, ErrCapability, size, runPageMin)
	}
	s.runSize = int(size)
	return nil
}

// Close closes the device node. VMs stay alive until they are closed themselves.
func (s *System) Close() error { return s.file.Close() }

// Check is KVM_CHECK_EXTENSION (KVM API §4.4): 0 when there is no such capability, else a positive value.
func (s *System) Check(c gokvm.Capability) (int, error) {
	n, err := gokvm.CheckExtension(s.file.Fd(), c)
	if err != nil {
		return 0, fmt.Errorf("check KVM capability %v: %w", c, err)
	}
	return int(n), nil
}

// CreateVM makes a VM without memory, vCPUs or interrupt controllers (KVM API §4.2).
func (s *System) CreateVM() (*VM, error) {
	for {
		fd, err := gokvm.CreateVM(s.file.Fd())
		if errors.Is(err, unix.EINTR) {
			continue // KVM starts threads here, and a signal interrupts that
		}
		if err != nil {
			return nil, fmt.Errorf("create VM: %w", err)
		}
		return &VM{fd: fd, system: s}, nil
	}
}
