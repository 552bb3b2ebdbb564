package devices

import (
	"fmt"
	"time"
)

// The ACPI power management registers (ACPI 6.5 §4.8.3), as the FADT places them: one block of ports.
const (
	ACPIPMBase = 0x600
	ACPIPMSize = 0x0c
	SCIIRQ     = 9

	// Offsets of the parts, and their lengths in bytes, for the FADT.
	ACPIPMEventOffset   = 0 // status (2 bytes) and enable (2 bytes)
	ACPIPMEventSize     = 4
	ACPIPMControlOffset = 4
	ACPIPMControlSize   = 2
	ACPIPMTimerOffset   = 8
	ACPIPMTimerSize     = 4

	// ACPISleepTypeS5 is the SLP_TYP that \_S5 in the DSDT announces.
	ACPISleepTypeS5 = 5
)

const (
	pm1Timer  = 0x0001 // TMR_STS, TMR_EN: the timer's top bit has changed
	pm1Global = 0x0020 // GBL_STS, GBL_EN
	pm1Button = 0x0100 // PWRBTN_STS, PWRBTN_EN
	pm1Alarm  = 0x0400 // RTC_EN; RTC_STS is never set, the clock has an interrupt of its own

	pm1StatusMask = pm1Timer | pm1Global | pm1Button
	// Linux enables the alarm's event for a moment whatever the FADT says about it, and complains if it cannot.
	pm1EnableMask = pm1Timer | pm1Global | pm1Button | pm1Alarm

	pm1SCIEnabled     = 0x0001 // SCI_EN: always, there is no SMM to give the events to
	pm1ControlKept    = 0x1c02 // BM_RLD and SLP_TYP
	pm1SleepTypeShift = 10
	pm1SleepTypeMask  = 0x7
	pm1SleepEnable    = 0x2000
)

// pmTimerHz is the frequency of the ACPI timer (ACPI 6.5 §4.8.2.1).
const pmTimerHz = 3579545

// pmTimerHalf is half the timer's range, after which its top bit changes.
const pmTimerHalf = 1 << 31

// ACPIPMConfig is what the power management block needs.
type ACPIPMConfig struct {
	Name string
	Line Line // the SCI, level triggered, active high
	// Clock is a monotonic clock with any origin; nil means the host's. The timer runs by it, and carries on from the
	// saved count on the twin, whose clock has another origin.
	Clock func() time.Duration
	// PowerOff is called when the guest enters S5. It runs on the vCPU that asked and must neither block nor freeze
	// the machine.
	PowerOff func()
}

// ACPIPM is the fixed hardware of ACPI: PM1 events and control, the power button, and the power management timer.
type ACPIPM struct {
	gate
	name     string
	irq      irq
	clock    func() time.Duration
	powerOff func()
	alarm    *time.Timer // runs out when the timer's top bit changes, if that interrupt is enabled
	loaded   bool        // the clock has to be set from count at the next Thaw
	pressed  bool        // the power button, while the machine was frozen

	acpipmState
	start time.Duration // the clock when the count was base
	base  uint64        // the timer's count at start; it has 64 bits, of which the guest sees 32
}

type acpipmState struct {
	status, enable, control uint16
	count                   uint64 // the timer when the machine froze
	halves                  uint64 // how many changes of the top bit have been told
}

// NewACPIPM returns a frozen power management block in its reset state.
func NewACPIPM(c ACPIPMConfig) (*ACPIPM, error) {
	if c.Name == "" || c.Line == nil || c.PowerOff == nil {
		return nil, fmt.Errorf("power management block %q: a name, an interrupt line and a power-off callback are needed", c.Name)
	}
	if c.Clock == nil {
		origin := time.Now()
		c.Clock = func() time.Duration { return time.Since(origin) }
	}
	m := &ACPIPM{name: c.Name, irq: irq{line: c.Line}, clock: c.Clock, powerOff: c.PowerOff}
	m.frozen = true
	m.loaded = true // from 0, at the first Thaw
	m.alarm = newAlarm(m.onAlarm)
	return m, nil
}

// Name implements Device.
func (m *ACPIPM) Name() string { return m.name }

// Freeze implements Device.
func (m *ACPIPM) Freeze() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen {
		return
	}
	m.update() // so that the count and the changes told of go together
	m.count = m.counter()
	m.frozen = true
	m.alarm.Stop()
}

// Thaw implements Device.
func (m *ACPIPM) Thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.frozen {
		return
	}
	m.frozen = false
	if m.loaded {
		m.base, m.start = m.count, m.clock()
		m.irq.restore(m.asserted())
		m.loaded = false
	}
	if m.pressed {
		m.pressed = false
		m.status |= pm1Button
	}
	m.update()
}

// PressPowerButton tells the guest that its power button was pressed. While the machine is frozen the button waits.
func (m *ACPIPM) PressPowerButton() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen {
		m.pressed = true
		return
	}
	m.status |= pm1Button
	m.update()
}

// Read implements Handler, for the block at ACPIPMBase.
func (m *ACPIPM) Read(offset uint64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.update() // so that the timer's status is there to be seen
	timer := uint32(m.counter())
	for i := range p {
		p[i] = m.readByte(offset+uint64(i), timer)
	}
}

func (m *ACPIPM) readByte(offset uint64, timer uint32) uint8 {
	switch {
	case offset < 2:
		return uint8(m.status >> (8 * offset))
	case offset < 4:
		return uint8(m.enable >> (8 * (offset - 2)))
	case offset < 6:
		return uint8((m.control | pm1SCIEnabled) >> (8 * (offset - 4)))
	case offset >= ACPIPMTimerOffset && offset < ACPIPMSize:
		return uint8(timer >> (8 * (offset - ACPIPMTimerOffset)))
	}
	return 0
}

// Write implements Handler.
func (m *ACPIPM) Write(offset uint64, p []byte) {
	off := false
	m.mu.Lock()
	for i, v := range p {
		off = m.writeByte(offset+uint64(i), v) || off
	}
	m.update()
	m.mu.Unlock()
	if off {
		m.powerOff()
	}
}

// writeByte reports whether the guest has asked to be switched off.
func (m *ACPIPM) writeByte(offset uint64, v uint8) bool {
	switch {
	case offset < 2:
		m.status &^= uint16(v) << (8 * offset) // writing 1 clears
	case offset < 4:
		shift := 8 * (offset - 2)
		m.enable = (m.enable&^(0xff<<shift) | uint16(v)<<shift) & pm1EnableMask
	case offset < 6:
		shift := 8 * (offset - 4)
		written := uint16(v) << shift
		m.control = m.control&^(0xff<<shift) | written&pm1ControlKept
		sleepType := m.control >> pm1SleepTypeShift & pm1SleepTypeMask
		return written&pm1SleepEnable != 0 && sleepType == ACPISleepTypeS5
	}
	return false // the timer is read only
}

// counter is the timer with all of its bits. While the machine is frozen it stands still for Save; on a machine that
// thaws again, and was not loaded, it has gone on meanwhile.
func (m *ACPIPM) counter() uint64 {
	if m.frozen {
		return m.count
	}
	elapsed := max(m.clock()-m.start, 0)
	seconds, rest := uint64(elapsed/time.Second), uint64(elapsed%time.Second)
	return m.base + seconds*pmTimerHz + rest*pmTimerHz/uint64(time.Second)
}

func (m *ACPIPM) asserted() bool { return m.status&m.enable != 0 }

// update takes note of what the timer has done, drives the SCI, and sets the alarm for the timer's next change.
func (m *ACPIPM) update() {
	now := m.counter()
	if halves := now / pmTimerHalf; halves != m.halves {
		m.halves = halves
		m.status |= pm1Timer
	}
	if m.frozen {
		return
	}
	m.irq.set(m.asserted())
	if m.enable&pm1Timer == 0 || m.status&pm1Timer != 0 {
		m.alarm.Stop() // nobody waits, or the interrupt is already there
		return
	}
	ticks := (m.halves+1)*pmTimerHalf - now
	m.alarm.Reset(time.Duration(ticks*uint64(time.Second)/pmTimerHz) + time.Microsecond)
}

func (m *ACPIPM) onAlarm() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.frozen {
		m.update()
	}
}
