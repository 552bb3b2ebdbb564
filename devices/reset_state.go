package devices

import "github.com/pollux-ha/pollux/devices/state"

const resetStateVersion = 1

// Save implements Device.
func (r *Reset) Save(e *state.Encoder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mustBeFrozen(r.name)
	section := e.Begin(r.name, resetStateVersion)
	e.U8(r.value)
	e.End(section)
}

// Load implements Device.
func (r *Reset) Load(d *state.Decoder) error {
	_, d = d.Section(r.name, resetStateVersion)
	value := d.U8()
	if err := d.Finish(); err != nil {
		return err
	}
	if value&^resetSystem != 0 {
		return d.Failf("reset control %#x has bits that it does not keep", value)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.frozen {
		return errRunning
	}
	r.value = value
	return nil
}
