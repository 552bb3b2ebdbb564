package vmm

import (
	"crypto/sha256"
	"fmt"

	"github.com/pollux-ha/pollux/devices/state"
)

const machineStateVersion = 1

// SaveState appends to b everything of the machine that is not guest memory: clock, timer, interrupt controllers, vCPUs and
// devices. The machine must be frozen, and memory as it is then belongs to the state. With a b of sufficient capacity it does
// not allocate.
func (m *Machine) SaveState(b []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.still() {
		return b, fmt.Errorf("save state: %w", ErrNotFrozen)
	}
	if err := m.vmState.capture(m.vm); err != nil {
		return b, fmt.Errorf("save state: %w", err)
	}
	for _, v := range m.vcpus {
		if err := v.state.capture(v.cpu); err != nil {
			return b, fmt.Errorf("save state: %w", err)
		}
	}
	m.encoder.Reset(b)
	e := &m.encoder
	section := e.Begin("machine", machineStateVersion)
	e.Raw(m.fingerprint[:])
	m.vmState.save(e)
	for _, v := range m.vcpus {
		v.state.save(e)
	}
	for _, d := range m.devices {
		d.Save(e)
	}
	e.End(section)
	return e.Bytes(), nil
}

// LoadState takes over the state that SaveState of a machine with the same Description wrote. Guest memory is the caller's
// to fill, before or after. The machine must be fresh; Run then continues where the other one was frozen. After an error
// the machine is only good for Close.
func (m *Machine) LoadState(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phaseFresh || m.started {
		return fmt.Errorf("load state: %w", ErrNotFresh)
	}
	m.started = true
	if err := m.loadState(b); err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	m.loaded = true
	return nil
}

// loadState decodes everything into buffers before it touches KVM, and KVM before the devices, whose interrupts it holds.
func (m *Machine) loadState(b []byte) error {
	outer := state.NewDecoder(b)
	_, d := outer.Section("machine", machineStateVersion)
	var fingerprint [sha256.Size]byte
	d.Raw(fingerprint[:])
	if err := outer.Finish(); err != nil {
		return err
	}
	if err := d.Err(); err != nil {
		return err
	}
	if fingerprint != m.fingerprint {
		return fmt.Errorf("%w: it was saved with another description", ErrMismatch)
	}
	if err := m.vmState.load(d); err != nil {
		return err
	}
	for _, v := range m.vcpus {
		if err := v.cpu.MSRs(v.state.msrs); err != nil {
			return err
		}
		tscKHz, err := v.state.load(d)
		if err != nil {
			return err
		}
		m.matchTSC(v, tscKHz)
	}
	if err := m.vmState.apply(m.vm); err != nil {
		return err
	}
	if err := m.vcpus[0].state.detachTSC(m.vcpus[0].cpu); err != nil {
		return err
	}
	for _, v := range m.vcpus {
		if err := v.state.apply(v.cpu); err != nil {
			return err
		}
	}
	for _, dev := range m.devices {
		if err := dev.Load(d); err != nil {
			return fmt.Errorf("device %s: %w", dev.Name(), err)
		}
	}
	return d.Finish()
}

// matchTSC makes the vCPU's TSC run at the frequency that the guest knows. A host without TSC scaling can't: the guest's time
// stays right, because kvmclock tells it the frequency anew, but its TSC deadlines are off by the ratio of the two.
func (m *Machine) matchTSC(v *vcpu, khz uint64) {
	if khz == v.state.tscKHz {
		return
	}
	if err := v.cpu.SetTSCKHz(khz); err != nil {
		m.log.Warn("the guest's TSC frequency can't be kept", "guest_khz", khz, "host_khz", v.state.tscKHz, "error", err)
		return
	}
	v.state.tscKHz = khz
}

// startClocks lets the guest's time go on after a LoadState.
func (m *Machine) startClocks() error {
	if err := m.vmState.startClock(m.vm); err != nil {
		return err
	}
	for _, v := range m.vcpus {
		if err := v.cpu.KVMClockCtrl(); err != nil {
			return err
		}
	}
	return nil
}
