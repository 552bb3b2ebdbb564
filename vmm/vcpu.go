package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// vcpu is one vCPU, its thread's view of the machine, and the buffers that its state is saved through.
type vcpu struct {
	cpu     *kvm.VCPU
	machine *Machine
	inGuest atomic.Bool // the thread is inside KVM_RUN, or about to be
	tid     int         // of its thread while it runs; guarded by gate.mu
	state   vcpuState
	again   int // how often in a row KVM_RUN ended in ErrorDeliveringEvent
}

// maxAgain bounds the repetitions of an entry that failed while an event was delivered.
const maxAgain = 8

// run executes the guest until the machine ends. It is the whole life of the vCPU's thread, which dies with the goroutine
// because it is never unlocked.
func (v *vcpu) run() {
	runtime.LockOSThread()
	g := &v.machine.gate
	g.enter(v)
	defer g.leave(v)
	if !g.park(v) {
		return
	}
	for {
		v.inGuest.Store(true)
		err := v.cpu.Run()
		v.inGuest.Store(false)
		switch {
		case err == nil:
			v.handleExit()
		case errors.Is(err, kvm.ErrInterrupted):
			if !g.park(v) {
				return
			}
		default:
			v.fail(err)
			return
		}
	}
}

// handleExit does what the guest asked for. An exit that ends the machine has closed the gate when this returns, so that
// the next Run only completes the exit and then the thread ends.
func (v *vcpu) handleExit() {
	reason := v.cpu.Exit()
	if reason != kvm.ExitInternalError {
		v.again = 0
	}
	switch reason {
	case kvm.ExitIO:
		v.handleIO()
	case kvm.ExitMMIO:
		v.handleMMIO()
	case kvm.ExitHLT:
		v.handleHalt()
	case kvm.ExitInterrupted, kvm.ExitIRQWindow, kvm.ExitSetTPR, kvm.ExitIOAPICEOI, kvm.ExitNMI:
		// Nothing to do: interrupts are injected by the in-kernel controllers.
	case kvm.ExitShutdown:
		v.machine.end(Exit{ExitPanic, v.at("the processor shut down (triple fault)")}, nil)
	case kvm.ExitSystemEvent:
		v.handleSystemEvent()
	case kvm.ExitFailEntry:
		v.fail(fmt.Errorf("the processor refused to enter the guest, reason %#x", v.cpu.FailEntry()))
	case kvm.ExitInternalError:
		suberror, data := v.cpu.InternalError()
		if suberror == kvm.ErrorDeliveringEvent && v.again < maxAgain {
			// KVM has emulated nothing and keeps the event, so the next entry tries again. Linux from 6.14 on takes an access
			// to a device right after an exception was injected for one during the injection, when the processor leaves the
			// type of the event in EXITINTINFO without its valid bit, as QEMU's emulation does.
			v.again++
			return
		}
		v.fail(fmt.Errorf("%v, data %#x", suberror, data))
	default:
		v.fail(fmt.Errorf("unexpected exit: %v", reason))
	}
}

// handleIO carries a port access, or each access of a string instruction, to the port bus.
func (v *vcpu) handleIO() {
	io, err := v.cpu.IO()
	if err != nil {
		v.fail(err)
		return
	}
	bus := v.machine.ports
	for data := io.Data; len(data) >= io.Size && io.Size > 0; data = data[io.Size:] {
		if io.Write {
			bus.Write(uint64(io.Port), data[:io.Size])
		} else {
			bus.Read(uint64(io.Port), data[:io.Size])
		}
	}
}

// handleMMIO carries a memory access to the bus. KVM splits accesses at page boundaries, and some are left with lengths
// that no device takes, which go byte by byte.
func (v *vcpu) handleMMIO() {
	io, err := v.cpu.MMIO()
	if err != nil {
		v.fail(err)
		return
	}
	step := len(io.Data)
	if step&(step-1) != 0 {
		step = 1
	}
	for off := 0; off < len(io.Data); off += step {
		data := io.Data[off : off+step]
		if io.Write {
			v.machine.mmio.Write(io.Address+uint64(off), data)
		} else {
			v.machine.mmio.Read(io.Address+uint64(off), data)
		}
	}
}

// handleHalt puts the vCPU to sleep inside KVM, where interrupts wake it. With in-kernel interrupt controllers HLT doesn't
// leave the kernel, except on KVMs that emulate the guest's kernel mode.
func (v *vcpu) handleHalt() {
	v.state.mp.State = mpHalted
	if err := v.cpu.SetMPState(&v.state.mp); err != nil {
		v.fail(err)
	}
}

func (v *vcpu) handleSystemEvent() {
	switch event := v.cpu.SystemEvent(); event {
	case kvm.SystemShutdown:
		v.machine.end(Exit{ExitPowerOff, v.at("system event")}, nil)
	case kvm.SystemReset:
		v.machine.end(Exit{ExitReboot, v.at("system event")}, nil)
	case kvm.SystemCrash:
		v.machine.end(Exit{ExitPanic, v.at("system event")}, nil)
	default:
		v.fail(fmt.Errorf("unknown system event %d", event))
	}
}

// fail ends the machine because this vCPU can't go on.
func (v *vcpu) fail(err error) {
	err = fmt.Errorf("vCPU %d%s: %w", v.cpu.ID(), v.where(), err)
	v.machine.end(Exit{ExitError, err.Error()}, err)
}

func (v *vcpu) at(what string) string {
	return fmt.Sprintf("vCPU %d%s: %s", v.cpu.ID(), v.where(), what)
}

// where names the instruction that the vCPU is at, for messages.
func (v *vcpu) where() string {
	if err := v.cpu.Regs(&v.state.regs); err != nil {
		return ""
	}
	if err := v.cpu.Sregs(&v.state.sregs); err != nil {
		return fmt.Sprintf(" at RIP %#x", v.state.regs.RIP)
	}
	s := &v.state.sregs
	return fmt.Sprintf(" at RIP %#x (CS %#x base %#x, CR0 %#x, CR3 %#x, CR4 %#x, EFER %#x, RSP %#x)",
		v.state.regs.RIP, s.CS.Selector, s.CS.Base, s.CR0, s.CR3, s.CR4, s.EFER, v.state.regs.RSP)
}
