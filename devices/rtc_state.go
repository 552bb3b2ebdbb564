package devices

import "github.com/pollux-ha/pollux/devices/state"

const rtcStateVersion = 1

// Save implements Device.
func (r *RTC) Save(e *state.Encoder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mustBeFrozen(r.name)
	section := e.Begin(r.name, rtcStateVersion)
	e.U8(r.index)
	e.Raw(r.ram[:])
	e.I64(r.offset.seconds)
	e.I64(r.offset.nanos)
	e.I64(r.told.seconds)
	e.I64(r.told.nanos)
	e.End(section)
}

// Load implements Device. An alarm whose time went by since Save is given at the next Thaw.
func (r *RTC) Load(d *state.Decoder) error {
	_, d = d.Section(r.name, rtcStateVersion)
	var next rtcState
	next.index = d.U8()
	d.Raw(next.ram[:])
	next.offset = rtcTime{d.I64(), d.I64()}
	next.told = rtcTime{d.I64(), d.I64()}
	if err := d.Finish(); err != nil {
		return err
	}
	if err := next.check(d); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.frozen {
		return errRunning
	}
	r.rtcState = next
	r.fresh = true
	return nil
}

func (s *rtcState) check(d *state.Decoder) error {
	switch {
	case s.index&^rtcIndexMask != 0:
		return d.Failf("index %#x is beyond the last register", s.index)
	case s.ram[rtcA]&rtcAUpdating != 0:
		return d.Failf("register A %#x has a bit that is not kept", s.ram[rtcA])
	case s.ram[rtcB]&rtcBSet != 0 && s.ram[rtcB]&rtcBUpdate != 0:
		return d.Failf("register B %#x enables updates while the time is being set", s.ram[rtcB])
	case s.ram[rtcC]&^(rtcCEvents|rtcCRequest) != 0:
		return d.Failf("register C %#x has reserved bits", s.ram[rtcC])
	case (s.ram[rtcC]&rtcCRequest != 0) != (s.ram[rtcC]&s.ram[rtcB]&rtcCEvents != 0):
		return d.Failf("register C %#x does not go with B %#x", s.ram[rtcC], s.ram[rtcB])
	case s.ram[rtcD] != rtcDValid:
		return d.Failf("register D is %#x, always %#x", s.ram[rtcD], rtcDValid)
	case !s.offset.within(rtcMaxSeconds):
		return d.Failf("offset of %d s and %d ns is out of range", s.offset.seconds, s.offset.nanos)
	case !s.told.within(2 * rtcMaxSeconds):
		return d.Failf("time of %d s and %d ns is out of range", s.told.seconds, s.told.nanos)
	}
	return nil
}
