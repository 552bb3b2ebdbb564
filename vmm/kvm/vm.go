package kvm

import (
	"errors"
	"fmt"
	"runtime"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// State that KVM keeps per VM, as gokvm lays it out.
type (
	// IRQChip is one of the interrupt controllers (KVM API §4.26).
	IRQChip = gokvm.IRQChip
	// PIT is the interval timer (KVM API §4.71, KVM_GET_PIT2).
	PIT = gokvm.PITState2
	// Clock is kvmclock, in nanoseconds (KVM API §4.29).
	Clock = gokvm.ClockData
)

// The interrupt controllers, by IRQChip.ChipID.
const (
	PICMaster = 0
	PICSlave  = 1
	IOAPIC    = 2
)

// VM is a virtual machine: an address space, interrupt controllers, vCPUs. Its methods may be called from any goroutine.
type VM struct {
	fd     uintptr
	system *System // keeps /dev/kvm open
}

// Close frees the VM once its vCPUs are closed too.
func (v *VM) Close() error {
	if err := unix.Close(int(v.fd)); err != nil {
		return fmt.Errorf("close VM: %w", err)
	}
	return nil
}

// Check is KVM_CHECK_EXTENSION on the VM, for capabilities that depend on it.
func (v *VM) Check(c gokvm.Capability) (int, error) {
	n, err := gokvm.CheckExtension(v.fd, c)
	if err != nil {
		return 0, fmt.Errorf("check capability %v of the VM: %w", c, err)
	}
	return int(n), nil
}

// SetTSSAddress places the three pages of guest physical address space that Intel's KVM needs for real mode, below
// 4 GiB and outside of any memory slot (KVM API §4.36).
func (v *VM) SetTSSAddress(address uint32) error {
	if err := gokvm.SetTSSAddr(v.fd, address); err != nil {
		return fmt.Errorf("set TSS address %#x: %w", address, err)
	}
	return nil
}

// CreateIRQChip makes the two PICs and the I/O APIC, and gives every vCPU made later a local APIC (KVM API §4.24).
func (v *VM) CreateIRQChip() error {
	if err := gokvm.CreateIRQChip(v.fd); err != nil {
		return fmt.Errorf("create interrupt controllers: %w", err)
	}
	return nil
}

// IRQChip reads the controller named by chip.ChipID into chip, which must be on the heap.
func (v *VM) IRQChip(chip *IRQChip) error {
	err := gokvm.GetIRQChip(v.fd, chip)
	runtime.KeepAlive(chip)
	if err != nil {
		return fmt.Errorf("get interrupt controller %d: %w", chip.ChipID, err)
	}
	return nil
}

// SetIRQChip sets the controller named by chip.ChipID; chip must be on the heap.
func (v *VM) SetIRQChip(chip *IRQChip) error {
	err := gokvm.SetIRQChip(v.fd, chip)
	runtime.KeepAlive(chip)
	if err != nil {
		return fmt.Errorf("set interrupt controller %d: %w", chip.ChipID, err)
	}
	return nil
}

// PIT reads the interval timer into p, which must be on the heap.
func (v *VM) PIT(p *PIT) error {
	err := gokvm.GetPIT2(v.fd, p)
	runtime.KeepAlive(p)
	if err != nil {
		return fmt.Errorf("get interval timer: %w", err)
	}
	return nil
}

// SetPIT sets the interval timer; p must be on the heap.
func (v *VM) SetPIT(p *PIT) error {
	err := gokvm.SetPIT2(v.fd, p)
	runtime.KeepAlive(p)
	if err != nil {
		return fmt.Errorf("set interval timer: %w", err)
	}
	return nil
}

// Clock reads kvmclock into c, which must be on the heap. Flags tells which of its fields this kernel fills.
func (v *VM) Clock(c *Clock) error {
	err := gokvm.GetClock(v.fd, c)
	runtime.KeepAlive(c)
	if err != nil {
		return fmt.Errorf("get clock: %w", err)
	}
	return nil
}

// SetClock sets kvmclock to c.Clock; c must be on the heap. With the flag gokvm.Realtime, KVM adds the wall-clock time
// that passed since c.Realtime; all other flags must be zero.
func (v *VM) SetClock(c *Clock) error {
	err := gokvm.SetClock(v.fd, c)
	runtime.KeepAlive(c)
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// ErrNotLogged is wrapped by DirtyLog's error for a slot that has no dirty log: whether its pages are dirty is unknown,
// which must never be read as clean.
var ErrNotLogged = errors.New("the slot has no dirty log")

// MemoryRegion is a memory slot (KVM API §4.35).
type MemoryRegion struct {
	Slot     uint32
	Address  uint64 // guest physical, page-aligned
	Memory   []byte // page-aligned and mmap'ed; empty deletes the slot
	DirtyLog bool
	ReadOnly bool
}

// Route sends interrupts of a GSI to a pin of a controller, or as a message (KVM API §4.52).
type Route struct {
	GSI uint32
	// MSI chooses between the two: Chip and Pin, or Address and Data.
	MSI     bool
	Chip    uint32
	Pin     uint32
	Address uint64
	Data    uint32
}

// IOEvent binds an eventfd to writes of the guest, which then don't leave the kernel (KVM API §4.59).
type IOEvent struct {
	Address uint64
	Length  uint32 // 1, 2, 4, 8, or 0 for any
	Port    bool   // port I/O instead of memory
	Match   bool   // only writes of Value
	Value   uint64
	FD      int
}
