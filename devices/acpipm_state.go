package devices

import "github.com/pollux-ha/pollux/devices/state"

const acpipmStateVersion = 1

// Save implements Device.
func (m *ACPIPM) Save(e *state.Encoder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mustBeFrozen(m.name)
	section := e.Begin(m.name, acpipmStateVersion)
	e.U16(m.status)
	e.U16(m.enable)
	e.U16(m.control)
	e.U64(m.count)
	e.U64(m.halves)
	e.End(section)
}

// Load implements Device. The timer carries on from the saved count when the machine thaws.
func (m *ACPIPM) Load(d *state.Decoder) error {
	_, d = d.Section(m.name, acpipmStateVersion)
	next := acpipmState{
		status:  d.U16(),
		enable:  d.U16(),
		control: d.U16(),
		count:   d.U64(),
		halves:  d.U64(),
	}
	if err := d.Finish(); err != nil {
		return err
	}
	switch {
	case next.status&^pm1StatusMask != 0:
		return d.Failf("PM1 status %#x has reserved bits", next.status)
	case next.enable&^pm1EnableMask != 0:
		return d.Failf("PM1 enable %#x has reserved bits", next.enable)
	case next.control&^pm1ControlKept != 0:
		return d.Failf("PM1 control %#x has bits that it does not keep", next.control)
	case next.count >= 1<<62:
		return d.Failf("timer count %#x: no machine has run that long", next.count)
	case next.halves > next.count/pmTimerHalf:
		return d.Failf("timer count %#x with %d changes of its top bit", next.count, next.halves)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.frozen {
		return errRunning
	}
	m.acpipmState = next
	m.loaded = true
	return nil
}
