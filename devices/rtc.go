package devices

import (
	"fmt"
	"time"
)

// The real-time clock's ports: index and data.
const (
	RTCBase = 0x70
	RTCSize = 2
	RTCIRQ  = 8
	// RTCCenturyRegister holds the century, as the FADT says.
	RTCCenturyRegister = 0x32
)

// Registers (MC146818A data sheet).
const (
	rtcSeconds      = 0x00
	rtcSecondsAlarm = 0x01
	rtcMinutes      = 0x02
	rtcMinutesAlarm = 0x03
	rtcHours        = 0x04
	rtcHoursAlarm   = 0x05
	rtcWeekday      = 0x06 // 1 is Sunday
	rtcDay          = 0x07
	rtcMonth        = 0x08
	rtcYear         = 0x09
	rtcA            = 0x0a
	rtcB            = 0x0b
	rtcC            = 0x0c
	rtcD            = 0x0d

	rtcRegisters = 128
)

const (
	rtcAUpdating  = 0x80
	rtcADivider   = 0x70 // at 0x60 and 0x70 the divider is held in reset and time stands still
	rtcARunning   = 0x20 // the divider for a 32,768 Hz crystal
	rtcARate      = 0x0f
	rtcBSet       = 0x80
	rtcBPeriodic  = 0x40
	rtcBAlarm     = 0x20
	rtcBUpdate    = 0x10
	rtcBBinary    = 0x04
	rtcB24        = 0x02
	rtcCRequest   = 0x80
	rtcCEvents    = 0x70 // the same bits as their enables in B
	rtcDValid     = 0x80
	rtcHourPM     = 0x80
	rtcAnyAlarm   = 0xc0 // an alarm field with both top bits set matches any value
	rtcIndexMask  = 0x7f // the top bit of the index port masks NMI, of which there is none
	rtcUpdateTime = 244 * time.Microsecond
)

// rtcPatience bounds how long the alarm sleeps before it looks at the clock again, which may have been set meanwhile.
const rtcPatience = time.Hour

// RTCConfig is what a real-time clock needs.
type RTCConfig struct {
	Name string
	Line Line // edge triggered
	// Now is the time of day that the clock shows until the guest sets it; nil means the host's, in UTC. On the twin the
	// clock goes on by the twin's time, with the difference that the guest has set.
	Now func() time.Time
}

// RTC is an MC146818A real-time clock with 114 bytes of memory, and a century register: time in BCD or binary, 24 or 12
// hours; update, alarm and periodic interrupts.
//
// Nothing ticks while no interrupt is enabled. What has happened since the guest last looked is worked out from the
// clock when it looks again.
type RTC struct {
	gate
	name  string
	irq   irq
	now   func() time.Time
	alarm *time.Timer // runs out at the next event whose interrupt is enabled
	fresh bool        // loaded, and not thawed since

	rtcState
}

type rtcState struct {
	index uint8
	ram   [rtcRegisters]uint8 // the time registers are brought up to date when they are read

	// The guest's time is the clock's plus offset, while it runs.
	offset rtcTime
	// told is the guest's time up to which events have been entered into register C.
	told rtcTime
}

// NewRTC returns a frozen clock that shows Now.
func NewRTC(c RTCConfig) (*RTC, error) {
	if c.Name == "" || c.Line == nil {
		return nil, fmt.Errorf("real-time clock %q: a name and an interrupt line are needed", c.Name)
	}
	if c.Now == nil {
		c.Now = func() time.Time { return time.Now().UTC() }
	}
	r := &RTC{name: c.Name, irq: irq{line: c.Line}, now: c.Now}
	r.frozen = true
	r.alarm = newAlarm(r.onAlarm)
	r.ram[rtcA] = rtcARunning | 0x06 // 1,024 Hz, the PC's usual rate
	r.ram[rtcB] = rtcB24
	r.ram[rtcD] = rtcDValid
	r.told = r.guestTime()
	r.showTime(r.told)
	return r, nil
}

// Name implements Device.
func (r *RTC) Name() string { return r.name }

// Freeze implements Device.
func (r *RTC) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
	r.alarm.Stop()
}

// Thaw implements Device.
func (r *RTC) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = false
	if r.fresh {
		r.fresh = false
		r.irq.restore(r.ram[rtcC]&rtcCRequest != 0)
	}
	r.update()
}

// Read implements Handler.
func (r *RTC) Read(offset uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		if offset+uint64(i) != 1 {
			p[i] = 0xff // the index is write only
			continue
		}
		p[i] = r.readRegister(r.index)
	}
	r.update()
}

// Write implements Handler.
func (r *RTC) Write(offset uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, v := range p {
		switch offset + uint64(i) {
		case 0:
			r.index = v & rtcIndexMask
		case 1:
			r.account() // by the old settings, before they change
			r.writeRegister(r.index, v)
		}
	}
	r.update()
}

func (r *RTC) readRegister(index uint8) uint8 {
	switch index {
	case rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, RTCCenturyRegister:
		if r.running() {
			r.showTime(r.guestTime())
		}
	case rtcA:
		if r.running() && time.Second-time.Duration(r.guestTime().nanos) <= rtcUpdateTime {
			return r.ram[rtcA] | rtcAUpdating
		}
	case rtcC:
		r.account()
		v := r.ram[rtcC]
		r.ram[rtcC] = 0 // reading acknowledges
		return v
	}
	return r.ram[index]
}

func (r *RTC) writeRegister(index, v uint8) {
	running := r.running()
	switch index {
	case rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, RTCCenturyRegister:
		if running {
			// Set one field of a running clock: the others are what they are now.
			r.showTime(r.guestTime())
			r.ram[index] = v
			r.setTime()
			return
		}
		r.ram[index] = v
	case rtcA:
		if running {
			r.showTime(r.guestTime())
		}
		r.ram[rtcA] = v &^ rtcAUpdating
	case rtcB:
		if running {
			r.showTime(r.guestTime())
		}
		if v&rtcBSet != 0 {
			v &^= rtcBUpdate // setting the time disables the update interrupt
		}
		r.ram[rtcB] = v
	case rtcC, rtcD: // read only
	default:
		r.ram[index] = v
	}
	if !running && r.running() {
		r.setTime()
	}
}

// running reports whether the time advances: not while it is being set or the divider is held.
func (r *RTC) running() bool {
	return r.ram[rtcB]&rtcBSet == 0 && r.ram[rtcA]&0x60 != 0x60
}

// account enters what has happened since it was last called into register C.
func (r *RTC) account() {
	if !r.running() {
		return
	}
	now := r.guestTime()
	was := r.told
	r.told = now
	var events uint8
	if now.seconds > was.seconds {
		events |= rtcBUpdate
		if at, ok := r.nextAlarm(was.seconds); ok && at <= now.seconds {
			events |= rtcBAlarm
		}
	}
	if hz := r.rate(); hz != 0 && now.ticks(hz) > was.ticks(hz) {
		events |= rtcBPeriodic
	}
	r.ram[rtcC] |= events
}

// rate is the frequency of the periodic interrupt in Hz, 0 for none. With a 32,768 Hz crystal rates 1 and 2 are those
// of 8 and 9.
func (r *RTC) rate() int64 {
	switch n := r.ram[rtcA] & rtcARate; n {
	case 0:
		return 0
	case 1, 2:
		return 32768 >> (n + 6)
	default:
		return 32768 >> (n - 1)
	}
}

// update accounts, drives the interrupt line, and sets the alarm for the next event that somebody waits for.
func (r *RTC) update() {
	r.account()
	if r.ram[rtcC]&r.ram[rtcB]&rtcCEvents != 0 {
		r.ram[rtcC] |= rtcCRequest
	} else {
		r.ram[rtcC] &^= rtcCRequest
	}
	if r.frozen {
		return
	}
	r.irq.set(r.ram[rtcC]&rtcCRequest != 0)
	if wait, ok := r.untilNextEvent(); ok {
		r.alarm.Reset(min(wait, rtcPatience))
	} else {
		r.alarm.Stop()
	}
}

// untilNextEvent is the time to the next event that is enabled and that has not been entered yet. An event that waits
// for the guest's acknowledgement is not looked for, so a guest that never looks costs nothing.
func (r *RTC) untilNextEvent() (time.Duration, bool) {
	awaited := r.ram[rtcB] &^ r.ram[rtcC] & rtcCEvents
	if awaited == 0 || !r.running() {
		return 0, false
	}
	now := r.told
	wait, found := rtcPatience, false
	sooner := func(d time.Duration) { wait, found = min(wait, d), true }
	if awaited&rtcBUpdate != 0 {
		sooner(time.Second - time.Duration(now.nanos))
	}
	if awaited&rtcBAlarm != 0 {
		if at, ok := r.nextAlarm(now.seconds); ok {
			sooner(time.Duration(at-now.seconds)*time.Second - time.Duration(now.nanos))
		}
	}
	if hz := r.rate(); awaited&rtcBPeriodic != 0 && hz != 0 {
		next := (now.nanos*hz/int64(time.Second) + 1) * int64(time.Second) / hz
		sooner(time.Duration(next-now.nanos) + 1)
	}
	return wait, found
}

func (r *RTC) onAlarm() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.frozen {
		r.update()
	}
}
