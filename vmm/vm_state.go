package vmm

import (
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

const vmStateVersion = 1

// vmState is the buffers for what KVM keeps per VM: clock, interval timer, interrupt controllers.
type vmState struct {
	clock kvm.Clock
	pit   kvm.PIT
	chips [3]kvm.IRQChip
}

// readClock reads kvmclock. It is done when the vCPUs have just stopped, because the guest's time stands still from then on
// as far as a twin is concerned: what it read last is at most this.
func (s *vmState) readClock(vm *kvm.VM) error { return vm.Clock(&s.clock) }

// capture reads the rest. Timer before controllers, and controllers before local APICs, is the way that an interrupt takes:
// the timer goes on ticking while the machine is frozen, and a tick on its way is then seen twice at worst, never lost.
func (s *vmState) capture(vm *kvm.VM) error {
	if err := vm.PIT(&s.pit); err != nil {
		return err
	}
	for i := range s.chips {
		s.chips[i].ChipID = uint32(i)
		if err := vm.IRQChip(&s.chips[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *vmState) apply(vm *kvm.VM) error {
	for i := range s.chips {
		if err := vm.SetIRQChip(&s.chips[i]); err != nil {
			return err
		}
	}
	return vm.SetPIT(&s.pit)
}

// startClock lets kvmclock go on from where it was read. Wall-clock time that passed since is not added: the guest's clocks
// must not jump. It comes right before the vCPUs start.
func (s *vmState) startClock(vm *kvm.VM) error {
	s.clock.Flags = 0
	return vm.SetClock(&s.clock)
}

func (s *vmState) save(e *state.Encoder) {
	section := e.Begin("vm", vmStateVersion)
	e.Raw(kvm.Bytes(&s.clock))
	e.Raw(kvm.Bytes(&s.pit))
	for i := range s.chips {
		e.Raw(kvm.Bytes(&s.chips[i]))
	}
	e.End(section)
}

func (s *vmState) load(d *state.Decoder) error {
	_, d = d.Section("vm", vmStateVersion)
	d.Raw(kvm.Bytes(&s.clock))
	d.Raw(kvm.Bytes(&s.pit))
	for i := range s.chips {
		d.Raw(kvm.Bytes(&s.chips[i]))
		if s.chips[i].ChipID != uint32(i) {
			d.Failf("interrupt controller %d where %d is expected", s.chips[i].ChipID, i)
		}
	}
	return d.Finish()
}
