package devices

import "github.com/pollux-ha/pollux/devices/state"

const pvpanicStateVersion = 1

// Save implements Device.
func (v *Pvpanic) Save(e *state.Encoder) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mustBeFrozen(v.name)
	section := e.Begin(v.name, pvpanicStateVersion)
	e.U8(uint8(v.seen))
	e.End(section)
}

// Load implements Device. An event that was told before is not told again.
func (v *Pvpanic) Load(d *state.Decoder) error {
	_, d = d.Section(v.name, pvpanicStateVersion)
	seen := PanicEvents(d.U8())
	if err := d.Finish(); err != nil {
		return err
	}
	if seen&^panicOffered != 0 {
		return d.Failf("panic events %#x are none of this device's", uint8(seen))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.frozen {
		return errRunning
	}
	v.seen = seen
	return nil
}
