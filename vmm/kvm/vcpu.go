package kvm

import (
	"errors"
	"fmt"
	"runtime"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// State that KVM keeps per vCPU, as gokvm lays it out. The methods that take a pointer to one need it to be on the heap:
// gokvm passes it on as a number.
type (
	Regs      = gokvm.Regs
	Sregs     = gokvm.Sregs
	Segment   = gokvm.Segment
	DebugRegs = gokvm.DebugRegs
	XCRs      = gokvm.XCRS
	LAPIC     = gokvm.LAPICState
	Events    = gokvm.VCPUEvents
	MPState   = gokvm.MPState
	MSREntry  = gokvm.MSREntry
)

// VCPU is one virtual processor. Run is for the one OS thread that owns it; the other methods are for whoever holds it
// still, and from another thread they cost a migration of the vCPU's state between host processors.
type VCPU struct {
	fd        uintptr
	id        int
	run       []byte // the run page, shared with the kernel
	xsaveSize int    // bytes that GetXSAVE fills
	wideXSAVE bool   // XSAVE2 is needed: the state is larger than one page
	hasXCRs   bool   // the host's processor has XSAVE
}

// CreateVCPU makes a vCPU whose APIC ID is id (KVM API §4.7).
func (v *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := gokvm.CreateVCPU(v.fd, id)
	for errors.Is(err, unix.EINTR) {
		fd, err = gokvm.CreateVCPU(v.fd, id)
	}
	if err != nil {
		return nil, fmt.Errorf("create vCPU %d: %w", id, err)
	}
	run, err := unix.Mmap(int(fd), 0, v.system.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("map the run page of vCPU %d: %w", id, err)
	}
	c := &VCPU{fd: fd, id: id, run: run, xsaveSize: minXSAVE}
	if err := c.measure(v); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// measure finds out what there is of extended processor state.
func (c *VCPU) measure(v *VM) error {
	size, err := v.Check(gokvm.CapXSave2)
	if err != nil {
		return err
	}
	if size > minXSAVE {
		c.xsaveSize, c.wideXSAVE = size, true
	}
	xcrs, err := v.Check(gokvm.CapXCRS)
	c.hasXCRs = xcrs > 0
	return err
}

// Close frees the vCPU. Nobody may be in Run.
func (c *VCPU) Close() error {
	err := unix.Munmap(c.run)
	c.run = nil
	if cerr := unix.Close(int(c.fd)); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("close vCPU %d: %w", c.id, err)
	}
	return nil
}

// ID is the number, and APIC ID, that the vCPU was created with.
func (c *VCPU) ID() int { return c.id }

// SetRegs sets the general registers.
func (c *VCPU) SetRegs(r *Regs) error {
	err := gokvm.SetRegs(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("set registers", err)
}

// SetSregs sets segments and control registers.
func (c *VCPU) SetSregs(r *Sregs) error {
	err := gokvm.SetSregs(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("set special registers", err)
}

// DebugRegs reads the debug registers into r.
func (c *VCPU) DebugRegs(r *DebugRegs) error {
	err := gokvm.GetDebugRegs(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("get debug registers", err)
}

// SetDebugRegs sets the debug registers.
func (c *VCPU) SetDebugRegs(r *DebugRegs) error {
	err := gokvm.SetDebugRegs(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("set debug registers", err)
}

// xcr0X87 is the value of XCR0 after reset, and for ever on a processor without XSAVE.
const xcr0X87 = 1

// XCRs reads the extended control registers into r.
func (c *VCPU) XCRs(r *XCRs) error {
	if !c.hasXCRs {
		*r = XCRs{NrXRCS: 1}
		r.Registers[0].Value = xcr0X87
		return nil
	}
	err := gokvm.GetXCRS(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("get extended control registers", err)
}

// SetXCRs sets the extended control registers.
func (c *VCPU) SetXCRs(r *XCRs) error {
	if !c.hasXCRs {
		if r.NrXRCS != 1 || r.Registers[0].Value != xcr0X87 {
			return fmt.Errorf("set XCR0 of vCPU %d to %#x: this host's processor has no XSAVE", c.id, r.Registers[0].Value)
		}
		return nil
	}
	err := gokvm.SetXCRS(c.fd, r)
	runtime.KeepAlive(r)
	return c.wrap("set extended control registers", err)
}

// LAPIC reads the local APIC into l.
func (c *VCPU) LAPIC(l *LAPIC) error {
	err := gokvm.GetLocalAPIC(c.fd, l)
	runtime.KeepAlive(l)
	return c.wrap("get local APIC", err)
}

// SetLAPIC sets the local APIC.
func (c *VCPU) SetLAPIC(l *LAPIC) error {
	err := gokvm.SetLocalAPIC(c.fd, l)
	runtime.KeepAlive(l)
	return c.wrap("set local APIC", err)
}

// Events reads pending exceptions, interrupts and NMIs into e.
func (c *VCPU) Events(e *Events) error {
	err := gokvm.GetVCPUEvents(c.fd, e)
	runtime.KeepAlive(e)
	return c.wrap("get pending events", err)
}

// SetEvents sets pending exceptions, interrupts and NMIs.
func (c *VCPU) SetEvents(e *Events) error {
	err := gokvm.SetVCPUEvents(c.fd, e)
	runtime.KeepAlive(e)
	return c.wrap("set pending events", err)
}

// MPState reads into s whether the vCPU runs, is halted, or waits to be started.
func (c *VCPU) MPState(s *MPState) error {
	err := gokvm.GetMPState(c.fd, s)
	runtime.KeepAlive(s)
	return c.wrap("get multiprocessing state", err)
}

// SetMPState sets whether the vCPU runs, is halted, or waits to be started.
func (c *VCPU) SetMPState(s *MPState) error {
	err := gokvm.SetMPState(c.fd, s)
	runtime.KeepAlive(s)
	return c.wrap("set multiprocessing state", err)
}

// TSCKHz is the frequency of the guest's time stamp counter in kHz.
func (c *VCPU) TSCKHz() (uint64, error) {
	khz, err := gokvm.GetTSCKHz(c.fd)
	return khz, c.wrap("get TSC frequency", err)
}

// SetTSCKHz sets that frequency, which takes TSC scaling in hardware unless it is the host's (KVM API §4.55). 0 is the
// host's.
func (c *VCPU) SetTSCKHz(khz uint64) error {
	return c.wrap(fmt.Sprintf("set TSC frequency to %d kHz", khz), gokvm.SetTSCKHz(c.fd, khz))
}

func (c *VCPU) wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s of vCPU %d: %w", what, c.id, err)
	}
	return nil
}
