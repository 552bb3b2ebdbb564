package vmm

import (
	"fmt"
)

// Freeze makes the machine still: on return no vCPU executes, no device touches memory, its state, or the order of its
// output, until Thaw. It may be called at any time before the machine is over, by several callers: the machine runs again
// when every Freeze has had its Thaw. It must not be called from a device's handler.
func (m *Machine) Freeze() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseOver {
		return fmt.Errorf("freeze machine: %w", ErrOver)
	}
	return m.hold()
}

// Thaw undoes one Freeze.
func (m *Machine) Thaw() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseOver {
		return fmt.Errorf("thaw machine: %w", ErrOver)
	}
	own := m.holds
	if m.phase == phaseFresh {
		own--
	}
	if m.paused {
		own--
	}
	if own <= 0 {
		return fmt.Errorf("thaw machine: %w", ErrNotFrozen)
	}
	return m.release()
}

// Pause freezes the machine until Resume; more calls change nothing. It is the operator's, and independent of Freeze: a
// checkpoint of a paused machine leaves it paused.
func (m *Machine) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseOver {
		return fmt.Errorf("pause machine: %w", ErrOver)
	}
	if m.paused {
		return nil
	}
	if err := m.hold(); err != nil {
		return err
	}
	m.paused = true
	return nil
}

// Resume undoes Pause.
func (m *Machine) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseOver {
		return fmt.Errorf("resume machine: %w", ErrOver)
	}
	if !m.paused {
		return nil
	}
	m.paused = false
	return m.release()
}

// hold adds a reason to be frozen; the caller holds mu. First the vCPUs stop, so that nothing new reaches the devices, then
// kvmclock is read, while it is closest to what the guest saw last, then the devices stop.
func (m *Machine) hold() error {
	if m.holds++; m.holds > 1 {
		return nil
	}
	if err := m.gate.close(); err != nil {
		return m.broken(fmt.Errorf("freeze machine: %w", err))
	}
	select {
	case <-m.ended:
		// In its last instructions the guest has switched itself off. A twin that went on from behind them would never end.
		m.holds--
		return fmt.Errorf("freeze machine: %w", ErrOver)
	default:
	}
	if err := m.vmState.readClock(m.vm); err != nil {
		return m.broken(fmt.Errorf("freeze machine: %w", err))
	}
	for _, d := range m.devices {
		d.Freeze()
	}
	return nil
}

// release takes a reason away and, when it was the last, starts everything in the order reverse to hold; the caller holds
// mu.
func (m *Machine) release() error {
	if m.holds--; m.holds > 0 {
		return nil
	}
	if m.loaded {
		if err := m.startClocks(); err != nil {
			return m.broken(fmt.Errorf("start loaded machine: %w", err))
		}
		m.loaded = false
	}
	for i := len(m.devices) - 1; i >= 0; i-- {
		m.devices[i].Thaw()
	}
	m.gate.open()
	return nil
}

// broken ends a machine that could not be stopped or started: nobody knows what state it is in.
func (m *Machine) broken(err error) error {
	m.end(Exit{ExitError, err.Error()}, err)
	return err
}

// still reports whether the machine is frozen; the caller holds mu.
func (m *Machine) still() bool { return m.holds > 0 && m.phase != phaseOver }
