package devices_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/devicestest"
)

type clockChip struct {
	*devices.RTC
	line *line
	now  time.Time // the time of day, where the test does not let it run
}

func (c *clockChip) get(register uint8) uint8 {
	out(c, 0, register)
	return in(c, 1)
}

func (c *clockChip) set(register, v uint8) {
	out(c, 0, register)
	out(c, 1, v)
}

func (c *clockChip) date(t testing.TB, what string, want [7]uint8) {
	t.Helper()
	got := [7]uint8{c.get(0x32), c.get(0x09), c.get(0x08), c.get(0x07), c.get(0x04), c.get(0x02), c.get(0x00)}
	if got != want {
		t.Errorf("%s: the clock shows %x, want %x", what, got, want)
	}
}

// newClock makes a clock that stands where the test puts it; nil makes one that follows the test's own time.
func newClock(t testing.TB, now *time.Time) *clockChip {
	t.Helper()
	c := &clockChip{line: &line{}}
	cfg := devices.RTCConfig{Name: "rtc0", Line: c.line}
	if now != nil {
		c.now = *now
		cfg.Now = func() time.Time { return c.now }
	}
	r, err := devices.NewRTC(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.RTC = r
	return c
}

var aNight = time.Date(2028, time.February, 28, 23, 59, 58, 0, time.UTC)

func TestRTCRefusesIncompleteConfig(t *testing.T) {
	if _, err := devices.NewRTC(devices.RTCConfig{Name: "rtc0"}); err == nil {
		t.Error("a clock without a line was made")
	}
}

func TestRTCFormats(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	c.date(t, "BCD", [7]uint8{0x20, 0x28, 0x02, 0x28, 0x23, 0x59, 0x58})
	expect(t, "weekday", c.get(0x06), 2) // a Monday
	c.now = c.now.Add(2 * time.Second)
	c.date(t, "leap day", [7]uint8{0x20, 0x28, 0x02, 0x29, 0x00, 0x00, 0x00})
	c.set(0x0b, 0x06)
	c.date(t, "binary", [7]uint8{20, 28, 2, 29, 0, 0, 0})
	c.set(0x0b, 0x00)
	expect(t, "midnight with 12 hours", c.get(0x04), 0x12)
	c.now = c.now.Add(15 * time.Hour)
	expect(t, "3 pm with 12 hours", c.get(0x04), 0x83)
	c.now = c.now.Add(-3 * time.Hour)
	expect(t, "noon with 12 hours", c.get(0x04), 0x92)
}

// TestRTCSet sets the time as Linux does: stop, hold the divider, write, go.
func TestRTCSet(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	a, b := c.get(0x0a), c.get(0x0b)
	c.set(0x0b, b|0x80)
	c.set(0x0a, a|0x70)
	c.now = c.now.Add(time.Hour)
	c.date(t, "stopped", [7]uint8{0x20, 0x28, 0x02, 0x28, 0x23, 0x59, 0x58})
	for register, v := range map[uint8]uint8{0x32: 0x19, 0x09: 0x99, 0x08: 0x12, 0x07: 0x31, 0x04: 0x23, 0x02: 0x59, 0x00: 0x59} {
		c.set(register, v)
	}
	c.set(0x0b, b)
	c.set(0x0a, a)
	c.date(t, "set", [7]uint8{0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59})
	c.now = c.now.Add(time.Second)
	c.date(t, "a second later", [7]uint8{0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00})
	c.set(0x02, 0x30) // one field of a running clock
	c.date(t, "minute set", [7]uint8{0x20, 0x00, 0x01, 0x01, 0x00, 0x30, 0x00})

	twin := newClock(t, &aNight)
	twin.now = c.now.Add(90 * time.Second)
	transplant(t, c, twin)
	twin.Thaw()
	twin.date(t, "on the twin", [7]uint8{0x20, 0x00, 0x01, 0x01, 0x00, 0x31, 0x30})
}

func TestRTCUpdateInProgress(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	expect(t, "register A at the second", c.get(0x0a), 0x26)
	c.now = c.now.Add(time.Second - 100*time.Microsecond)
	expect(t, "register A just before the next", c.get(0x0a), 0xa6)
	expect(t, "register D", c.get(0x0d), 0x80)
}

func TestRTCMemory(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	c.set(0x0f, 0xa5)
	c.set(0x7f, 0x5a)
	expect(t, "memory", c.get(0x0f), 0xa5)
	expect(t, "memory through the NMI mask", c.get(0xff), 0x5a)
	expect(t, "index port", in(c, 0), 0xff)
	c.set(0x0d, 0)
	expect(t, "register D is read only", c.get(0x0d), 0x80)
}

func TestRTCInterrupts(t *testing.T) {
	for _, c := range []struct {
		name   string
		enable uint8
		at     []time.Duration // when the interrupt comes, from midnight
	}{
		{"update", 0x10, []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}},
		{"alarm", 0x20, []time.Duration{62 * time.Second, time.Hour + 62*time.Second, 2*time.Hour + 62*time.Second}},
		{"periodic", 0x40, []time.Duration{time.Second / 2, time.Second, 3 * time.Second / 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				chip := newClock(t, nil) // in a bubble time begins at midnight
				chip.Thaw()
				defer chip.Freeze()
				chip.set(0x0a, 0x2f) // 2 Hz
				chip.set(0x01, 0x02)
				chip.set(0x03, 0x01)
				chip.set(0x05, 0xff) // any hour
				chip.set(0x0b, 0x02|c.enable)
				midnight := time.Now()
				for _, at := range c.at {
					time.Sleep(time.Until(midnight.Add(at - time.Millisecond)))
					if chip.line.high() {
						t.Fatalf("interrupt before %v", at)
					}
					time.Sleep(2 * time.Millisecond)
					synctest.Wait()
					if !chip.line.high() {
						t.Fatalf("no interrupt at %v", at)
					}
					expect(t, "register C", chip.get(0x0c)&(0x80|c.enable), 0x80|c.enable)
					if chip.line.high() {
						t.Fatal("reading register C does not acknowledge")
					}
				}
			})
		})
	}
}

// TestRTCAlarmDuringTakeover: an alarm that went by between the last checkpoint and the takeover is given late, not never.
func TestRTCAlarmDuringTakeover(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	c.set(0x01, 0x00)
	c.set(0x03, 0x00)
	c.set(0x05, 0x00) // midnight
	c.set(0x0b, 0x22)
	twin := newClock(t, &aNight)
	transplant(t, c, twin)
	twin.now = twin.now.Add(time.Minute)
	if twin.Thaw(); !twin.line.high() {
		t.Error("the alarm is lost")
	}
	expect(t, "register C", twin.get(0x0c)&0xa0, 0xa0)
	twin.Freeze()
}

func TestRTCImpossibleAlarmNeverRings(t *testing.T) {
	c := newClock(t, &aNight)
	c.Thaw()
	c.set(0x05, 0x99)
	c.set(0x0b, 0x22)
	c.get(0x0c)
	c.now = c.now.Add(48 * time.Hour)
	if v := c.get(0x0c); v&0x20 != 0 {
		t.Errorf("register C is %#x", v)
	}
	c.Freeze()
}

func TestRTCConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		c := newClock(t, &aNight)
		return &devicestest.Rig{
			Device: c,
			Prepare: func(testing.TB) {
				c.set(0x04, 0x05)
				c.set(0x0f, 0x77)
				c.set(0x0b, 0x12)
				c.now = c.now.Add(time.Second)
				c.get(0x00)
			},
			CarryOn: func(t testing.TB) {
				if !c.line.high() {
					t.Error("an update interrupt was pending and the line is low")
				}
				expect(t, "hour", c.get(0x04), 0x05)
				expect(t, "memory", c.get(0x0f), 0x77)
				expect(t, "register C", c.get(0x0c)&0x90, 0x90)
			},
		}
	})
}
