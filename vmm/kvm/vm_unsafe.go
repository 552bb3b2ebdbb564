package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

const (
	memLogDirtyPages = 1 << 0
	memReadOnly      = 1 << 1

	// pitSpeakerDummy makes KVM answer port 0x61 too: guests calibrate clocks with it, thousands of reads at a time.
	pitSpeakerDummy = 1

	irqfdDeassign = 1 << 0

	ioeventfdDatamatch = 1 << 0
	ioeventfdPIO       = 1 << 1
	ioeventfdDeassign  = 1 << 2

	routingIRQChip = 1
	routingMSI     = 2
)

type irqLevel struct {
	irq, level uint32
}

type pitConfig struct {
	flags uint32
	_     [15]uint32
}

type enableCap struct {
	capability, flags uint32
	args              [4]uint64
	_                 [64]byte
}

type msi struct {
	addressLow, addressHigh, data, flags, devid uint32
	_                                           [12]byte
}

type irqfd struct {
	fd, gsi, flags, resampleFD uint32
	_                          [16]byte
}

type ioeventfd struct {
	datamatch, address uint64
	length             uint32
	fd                 int32
	flags              uint32
	_                  [36]byte
}

// routingEntry is struct kvm_irq_routing_entry: 16 bytes, then a union of 32.
type routingEntry struct {
	gsi, kind, flags, _ uint32
	union               [8]uint32
}

// SetIdentityMapAddress places the page that Intel's KVM uses as a page table for real mode (KVM API §4.41). It must
// come before the first vCPU.
func (v *VM) SetIdentityMapAddress(address uint64) error {
	if _, err := ioctl(v.fd, ioctlSetIdentityMapAddr, unsafe.Pointer(&address)); err != nil {
		return fmt.Errorf("set identity map address %#x: %w", address, err)
	}
	return nil
}

// SetMemoryRegion makes, changes or deletes a memory slot. The memory stays mapped for as long as the slot exists: the
// caller sees to that, since the collector doesn't.
func (v *VM) SetMemoryRegion(r MemoryRegion) error {
	region := gokvm.UserspaceMemoryRegion{Slot: r.Slot, GuestPhysAddr: r.Address, MemorySize: uint64(len(r.Memory))}
	if r.DirtyLog {
		region.Flags |= memLogDirtyPages
	}
	if r.ReadOnly {
		region.Flags |= memReadOnly
	}
	region.UserspaceAddr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.Memory))))
	if _, err := ioctl(v.fd, ioctlSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("set memory slot %d (%d bytes at guest address %#x): %w", r.Slot, len(r.Memory), r.Address, err)
	}
	return nil
}

// CreatePIT makes the interval timer, with port 0x61 (KVM API §4.71, KVM_CREATE_PIT2).
func (v *VM) CreatePIT() error {
	config := pitConfig{flags: pitSpeakerDummy}
	if _, err := ioctl(v.fd, ioctlCreatePIT2, unsafe.Pointer(&config)); err != nil {
		return fmt.Errorf("create interval timer: %w", err)
	}
	return nil
}

// SetIRQLine drives the line of a GSI (KVM API §4.25).
func (v *VM) SetIRQLine(gsi uint32, level bool) error {
	l := irqLevel{irq: gsi}
	if level {
		l.level = 1
	}
	if _, err := ioctl(v.fd, ioctlIRQLine, unsafe.Pointer(&l)); err != nil {
		return fmt.Errorf("set interrupt line %d to %t: %w", gsi, level, err)
	}
	return nil
}

// SignalMSI delivers a message-signalled interrupt before it returns (KVM API §4.70). The result is false when the guest
// blocked it.
func (v *VM) SignalMSI(address uint64, data uint32) (bool, error) {
	m := msi{addressLow: uint32(address), addressHigh: uint32(address >> 32), data: data}
	n, err := ioctl(v.fd, ioctlSignalMSI, unsafe.Pointer(&m))
	if err != nil {
		return false, fmt.Errorf("signal MSI %#x to %#x: %w", data, address, err)
	}
	return n > 0, nil
}

// AttachIOEvent binds an eventfd to guest writes.
func (v *VM) AttachIOEvent(e IOEvent) error { return v.ioevent(e, 0, "attach") }

// DetachIOEvent undoes AttachIOEvent, with the same values.
func (v *VM) DetachIOEvent(e IOEvent) error { return v.ioevent(e, ioeventfdDeassign, "detach") }

func (v *VM) ioevent(e IOEvent, flags uint32, what string) error {
	arg := ioeventfd{datamatch: e.Value, address: e.Address, length: e.Length, fd: int32(e.FD), flags: flags}
	if e.Match {
		arg.flags |= ioeventfdDatamatch
	}
	if e.Port {
		arg.flags |= ioeventfdPIO
	}
	if _, err := ioctl(v.fd, ioctlIOEventFD, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("%s ioeventfd at %#x: %w", what, e.Address, err)
	}
	return nil
}

// AttachIRQFD makes KVM raise the GSI whenever fd is written (KVM API §4.75). Delivery is asynchronous: a checkpoint must
// drain the eventfds, so devices whose state it carries use SignalMSI.
func (v *VM) AttachIRQFD(fd int, gsi uint32) error { return v.irqfd(fd, gsi, 0, "attach") }

// DetachIRQFD undoes AttachIRQFD.
func (v *VM) DetachIRQFD(fd int, gsi uint32) error { return v.irqfd(fd, gsi, irqfdDeassign, "detach") }

func (v *VM) irqfd(fd int, gsi, flags uint32, what string) error {
	arg := irqfd{fd: uint32(fd), gsi: gsi, flags: flags}
	if _, err := ioctl(v.fd, ioctlIRQFD, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("%s irqfd for GSI %d: %w", what, gsi, err)
	}
	return nil
}

// SetGSIRouting replaces the whole routing table (KVM API §4.52).
func (v *VM) SetGSIRouting(routes []Route) error {
	const entryWords = unsafe.Sizeof(routingEntry{}) / 4
	table := make([]uint32, 2, 2+len(routes)*int(entryWords)) // nr, flags, entries
	table[0] = uint32(len(routes))
	for _, r := range routes {
		e := routingEntry{gsi: r.GSI, kind: routingIRQChip}
		e.union[0], e.union[1] = r.Chip, r.Pin
		if r.MSI {
			e.kind = routingMSI
			e.union[0], e.union[1], e.union[2] = uint32(r.Address), uint32(r.Address>>32), r.Data
		}
		table = append(table, e.gsi, e.kind, e.flags, 0)
		table = append(table, e.union[:]...)
	}
	if _, err := ioctl(v.fd, ioctlSetGSIRouting, unsafe.Pointer(&table[0])); err != nil {
		return fmt.Errorf("set %d interrupt routes: %w", len(routes), err)
	}
	return nil
}

// EnableCap is KVM_ENABLE_CAP on the VM (KVM API §4.37).
func (v *VM) EnableCap(c gokvm.Capability, argument uint64) error {
	arg := enableCap{capability: uint32(c), args: [4]uint64{argument}}
	if _, err := ioctl(v.fd, ioctlEnableCap, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("enable KVM capability %v: %w", c, err)
	}
	return nil
}

// EnforcePVFeatures makes KVM refuse the paravirtual features that the vCPU's CPUID table hides, where this KVM can:
// otherwise a guest may use them all the same. It comes after SetCPUID and before the first Run.
func (c *VCPU) EnforcePVFeatures() error {
	arg := enableCap{capability: uint32(gokvm.CapEnforcePVFeatureCPUID), args: [4]uint64{1}}
	_, err := ioctl(c.fd, ioctlEnableCap, unsafe.Pointer(&arg))
	if errors.Is(err, unix.EINVAL) {
		return nil // before Linux 5.10
	}
	return c.wrap("enforce paravirtual features", err)
}

type dirtyLog struct {
	slot   uint32
	_      uint32
	bitmap unsafe.Pointer
}

type clearDirtyLog struct {
	slot      uint32
	pages     uint32
	firstPage uint64
	bitmap    unsafe.Pointer
}

// DirtyLog fills bitmap with the slot's dirty pages: bit n%64 of word n/64 is page n. The log is not cleared, because
// EnableManualDirtyLog is always in force; ClearDirtyLog does that (KVM API §4.8).
//
// pages is the slot's size, and KVM writes a bit for each: a shorter bitmap is refused here.
func (v *VM) DirtyLog(slot uint32, pages uint64, bitmap []uint64) error {
	if uint64(len(bitmap)) < (pages+63)/64 {
		return fmt.Errorf("get dirty log of slot %d: %d words for %d pages", slot, len(bitmap), pages)
	}
	arg := dirtyLog{slot: slot, bitmap: unsafe.Pointer(unsafe.SliceData(bitmap))}
	_, err := ioctl(v.fd, ioctlGetDirtyLog, unsafe.Pointer(&arg))
	runtime.KeepAlive(bitmap)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("get dirty log of slot %d: %w", slot, ErrNotLogged)
	}
	if err != nil {
		return fmt.Errorf("get dirty log of slot %d: %w", slot, err)
	}
	return nil
}

// ClearDirtyLog marks the pages clean whose bits are set, bit 0 of bitmap being page first, and protects them again
// (KVM API §4.115). first must be a multiple of 64; pages too, unless it reaches the end of the slot.
func (v *VM) ClearDirtyLog(slot uint32, first, pages uint64, bitmap []uint64) error {
	if first%64 != 0 || pages > 1<<32-1 || uint64(len(bitmap)) < (pages+63)/64 {
		return fmt.Errorf("clear dirty log of slot %d: %d pages from %d with %d words", slot, pages, first, len(bitmap))
	}
	arg := clearDirtyLog{
		slot: slot, pages: uint32(pages), firstPage: first,
		bitmap: unsafe.Pointer(unsafe.SliceData(bitmap)),
	}
	_, err := ioctl(v.fd, ioctlClearDirtyLog, unsafe.Pointer(&arg))
	runtime.KeepAlive(bitmap)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("clear dirty log of slot %d: %w", slot, ErrNotLogged)
	}
	if err != nil {
		return fmt.Errorf("clear dirty log of slot %d, %d pages from %d: %w", slot, pages, first, err)
	}
	return nil
}

// EnableManualDirtyLog separates reading the log from clearing it, and lets logging start without protecting every page
// at once: until a page is cleared for the first time it counts as dirty (KVM API §7.13, both bits where available).
// It comes before the first slot with a log. The result says whether a fresh log starts with every page dirty.
func (v *VM) EnableManualDirtyLog() (initiallySet bool, err error) {
	const manualProtect, initially = 1, 2
	offered, err := v.Check(gokvm.CapManualDirtyLogProtect2)
	if err != nil {
		return false, err
	}
	if offered&manualProtect == 0 {
		return false, fmt.Errorf("enable manual dirty log: %w", ErrCapability)
	}
	bits := uint64(offered & (manualProtect | initially))
	return bits&initially != 0, v.EnableCap(gokvm.CapManualDirtyLogProtect2, bits)
}
