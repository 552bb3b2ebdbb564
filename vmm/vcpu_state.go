package vmm

import (
	"errors"
	"fmt"
	"log/slog"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

const (
	vcpuStateVersion = 1

	mpHalted = gokvm.MPStateHalted

	// maxXSAVE bounds the extended state in a peer's bytes: AMX, the largest so far, makes it 11 KiB.
	maxXSAVE = 64 << 10
	// maxMSRs bounds a peer's list; KVM's own has some hundred.
	maxMSRs = 4096

	msrTSC         = 0x10
	msrAPICBase    = 0x1b
	msrTSCDeadline = 0x6e0
	msrMTRRBase0   = 0x200 // then its mask, and so on
	mtrrVariable   = 8     // pairs: what KVM reports in MTRRcap
	msrMTRRDefault = 0x2ff
)

// msrMTRRFixed are the fixed-range memory types and, last, the default type, which switches them on.
var msrMTRRFixed = [...]uint32{
	0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, msrMTRRDefault,
}

// vcpuState is the buffers through which one vCPU's state passes between KVM and an encoding. They are made once, so that
// saving does not allocate. They are used by whoever holds the vCPU still, or by its own thread.
type vcpuState struct {
	name string // of the section

	mp     kvm.MPState
	regs   kvm.Regs
	sregs  kvm.Sregs
	xsave  []byte
	xcrs   kvm.XCRs
	debug  kvm.DebugRegs
	lapic  kvm.LAPIC
	msrs   *kvm.MSRs
	events kvm.Events
	tscKHz uint64
}

// init finds out which MSRs hold state that can be carried: those of KVM's list that can be read, and then be set to what
// was read. The list names some that exist only with hardware that this guest's CPUID hides.
func (s *vcpuState) init(cpu *kvm.VCPU, indexes []uint32, log *slog.Logger) error {
	s.name = fmt.Sprintf("vcpu%d", cpu.ID())
	s.xsave = make([]byte, cpu.XSAVESize())
	// KVM takes the frequency that the host's kernel had measured when KVM was loaded. The kernel may have refined it since, and a
	// KVM without scaling then gives the vCPU a TSC that stands still. 0 asks for the host's frequency as it is known now.
	if err := cpu.SetTSCKHz(0); err != nil {
		log.Debug("the TSC keeps its frequency", "reason", err)
	}
	var err error
	if s.tscKHz, err = cpu.TSCKHz(); err != nil {
		return err
	}
	keep := make([]uint32, 0, len(indexes))
	for _, index := range indexes {
		one := kvm.NewMSRs([]uint32{index})
		if err = cpu.MSRs(one); err == nil {
			err = cpu.SetMSRs(one)
		}
		var refused *kvm.MSRError
		switch {
		case err == nil:
			keep = append(keep, index)
		case errors.As(err, &refused):
			log.Debug("MSR is not part of the state", "msr", fmt.Sprintf("%#x", index), "reason", err)
		default:
			return err
		}
	}
	s.msrs = kvm.NewMSRs(keep)
	return nil
}

// stateMSRs makes, from KVM's list, the list of what may be state. The memory type registers are added, which KVM keeps but
// doesn't list. The TSC deadline comes last: setting it arms the timer by the TSC and the local APIC's mode, which must
// be in place by then. The APIC base is left out: it is part of the special registers, and set with those.
func stateMSRs(indexes []uint32) []uint32 {
	ordered := make([]uint32, 0, len(indexes)+32)
	for index := uint32(msrMTRRBase0); index < msrMTRRBase0+2*mtrrVariable; index++ {
		ordered = append(ordered, index)
	}
	ordered = append(ordered, msrMTRRFixed[:]...)
	deadline := false
	for _, index := range indexes {
		switch index {
		case msrAPICBase:
			// in the special registers
		case msrTSCDeadline:
			deadline = true
		default:
			ordered = append(ordered, index)
		}
	}
	if deadline {
		ordered = append(ordered, msrTSCDeadline)
	}
	return ordered
}

// indexes is the list of the MSRs that init kept.
func (s *vcpuState) indexes() []uint32 {
	list := make([]uint32, s.msrs.Len())
	for i := range list {
		list[i] = s.msrs.Index(i)
	}
	return list
}

// capture reads the vCPU's state into the buffers. The order has reasons:
//   - the multiprocessing state comes first, because asking for it makes KVM process a pending INIT or SIPI, which changes
//     registers;
//   - the MSRs come before the local APIC: a TSC deadline that passes in between is then still armed in the copy, and
//     fires there again; the other way around it could be in neither;
//   - events come last, because reading the others can make an exception pending.
func (s *vcpuState) capture(cpu *kvm.VCPU) error {
	if err := cpu.MPState(&s.mp); err != nil {
		return err
	}
	if err := cpu.Regs(&s.regs); err != nil {
		return err
	}
	if err := cpu.Sregs(&s.sregs); err != nil {
		return err
	}
	if err := cpu.XSAVE(s.xsave); err != nil {
		return err
	}
	if err := cpu.XCRs(&s.xcrs); err != nil {
		return err
	}
	if err := cpu.DebugRegs(&s.debug); err != nil {
		return err
	}
	if err := cpu.MSRs(s.msrs); err != nil {
		return err
	}
	if err := cpu.LAPIC(&s.lapic); err != nil {
		return err
	}
	return cpu.Events(&s.events)
}

// detachTSC sets the vCPU's TSC far away from what it will be. KVM takes a TSC that is written within a second of what it
// expects for an attempt to synchronize processors, and keeps its own value (kvm_synchronize_tsc). For the first vCPU of a
// machine that was created at the same time as the one whose state it gets, that would be a jump of up to a second. The other
// vCPUs are to be synchronized with the first one, exactly so.
func (s *vcpuState) detachTSC(cpu *kvm.VCPU) error {
	const far = 1 << 42 // at least ten minutes
	for i := range s.msrs.Len() {
		if s.msrs.Index(i) == msrTSC {
			one := kvm.NewMSRs([]uint32{msrTSC})
			one.SetValue(0, s.msrs.Value(i)+far)
			return cpu.SetMSRs(one)
		}
	}
	return nil
}

// apply sets the vCPU's state from the buffers. The order has reasons, too:
//   - the special registers carry the APIC base, which enables the local APIC, so they come before it;
//   - the local APIC comes before the MSRs, because the TSC deadline is refused unless the timer is in that mode;
//   - events come last: setting the others may drop them.
func (s *vcpuState) apply(cpu *kvm.VCPU) error {
	if err := cpu.SetMPState(&s.mp); err != nil {
		return err
	}
	if err := cpu.SetRegs(&s.regs); err != nil {
		return err
	}
	if err := cpu.SetSregs(&s.sregs); err != nil {
		return err
	}
	if err := cpu.SetXSAVE(s.xsave); err != nil {
		return err
	}
	if err := cpu.SetXCRs(&s.xcrs); err != nil {
		return err
	}
	if err := cpu.SetDebugRegs(&s.debug); err != nil {
		return err
	}
	if err := cpu.SetLAPIC(&s.lapic); err != nil {
		return err
	}
	if err := cpu.SetMSRs(s.msrs); err != nil {
		return err
	}
	return cpu.SetEvents(&s.events)
}

func (s *vcpuState) save(e *state.Encoder) {
	section := e.Begin(s.name, vcpuStateVersion)
	e.U64(s.tscKHz)
	e.Raw(kvm.Bytes(&s.mp))
	e.Raw(kvm.Bytes(&s.regs))
	e.Raw(kvm.Bytes(&s.sregs))
	e.Blob(s.xsave)
	e.Raw(kvm.Bytes(&s.xcrs))
	e.Raw(kvm.Bytes(&s.debug))
	e.Raw(kvm.Bytes(&s.lapic))
	e.Blob(s.msrs.Bytes())
	e.Raw(kvm.Bytes(&s.events))
	e.End(section)
}

// load fills the buffers from an encoding, and tells at which frequency the guest's TSC ran there. What the values mean is
// checked by KVM when they are applied.
func (s *vcpuState) load(d *state.Decoder) (tscKHz uint64, err error) {
	_, d = d.Section(s.name, vcpuStateVersion)
	tscKHz = d.U64()
	d.Raw(kvm.Bytes(&s.mp))
	d.Raw(kvm.Bytes(&s.regs))
	d.Raw(kvm.Bytes(&s.sregs))
	xsave := d.Blob(maxXSAVE)
	d.Raw(kvm.Bytes(&s.xcrs))
	d.Raw(kvm.Bytes(&s.debug))
	d.Raw(kvm.Bytes(&s.lapic))
	msrs := d.Blob(8 + 16*maxMSRs)
	d.Raw(kvm.Bytes(&s.events))
	if err := d.Finish(); err != nil {
		return 0, err
	}
	if tscKHz == 0 {
		return 0, d.Failf("a TSC of 0 kHz")
	}
	if err := s.loadXSAVE(d, xsave); err != nil {
		return 0, err
	}
	return tscKHz, s.loadMSRs(d, msrs)
}

// loadXSAVE takes a state of another size than this host's, as long as the part that is cut off, or missing, is empty: the
// size is the host's, what is in it is the guest's.
func (s *vcpuState) loadXSAVE(d *state.Decoder, p []byte) error {
	n := copy(s.xsave, p)
	clear(s.xsave[n:])
	for _, b := range p[n:] {
		if b != 0 {
			return d.Failf("%d bytes of extended processor state, this host holds %d", len(p), len(s.xsave))
		}
	}
	return nil
}

// loadMSRs copies the values into this host's list. A register that this host does not carry is an error unless it is 0,
// which is what a register reads as that was never used; one that the other host did not carry stays as it is.
func (s *vcpuState) loadMSRs(d *state.Decoder, p []byte) error {
	list := state.NewDecoder(p)
	count := list.U64()
	if uint64(list.Len()) != 16*count {
		return d.Failf("list of %d MSRs in %d bytes", count, len(p))
	}
	for range count {
		index, value := uint32(list.U64()), list.U64()
		if !s.setMSR(index, value) && value != 0 {
			return d.Failf("MSR %#x is %#x, and this host can't hold it", index, value)
		}
	}
	return list.Finish()
}

func (s *vcpuState) setMSR(index uint32, value uint64) bool {
	for i := range s.msrs.Len() {
		if s.msrs.Index(i) == index {
			s.msrs.SetValue(i, value)
			return true
		}
	}
	return false
}
