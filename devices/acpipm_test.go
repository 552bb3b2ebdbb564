package devices_test

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/devicestest"
)

const (
	pmTimerHz = 3579545

	pm1Status  = 0
	pm1Enable  = 2
	pm1Control = 4
	pmTimer    = 8

	buttonBit = 0x0100
	timerBit  = 0x0001
)

type power struct {
	*devices.ACPIPM
	line *line
	now  time.Duration
	offs int
}

func newPower(t testing.TB) *power {
	t.Helper()
	p := &power{line: &line{}}
	m, err := devices.NewACPIPM(devices.ACPIPMConfig{
		Name: "acpipm", Line: p.line,
		Clock:    func() time.Duration { return p.now },
		PowerOff: func() { p.offs++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.ACPIPM = m
	return p
}

func in16(h devices.Handler, offset uint64) uint16 {
	var p [2]byte
	h.Read(offset, p[:])
	return binary.LittleEndian.Uint16(p[:])
}

func readTimer(h devices.Handler) uint32 {
	var p [4]byte
	h.Read(pmTimer, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func out16(h devices.Handler, offset uint64, v uint16) {
	h.Write(offset, binary.LittleEndian.AppendUint16(nil, v))
}

func TestACPIPMRefusesIncompleteConfig(t *testing.T) {
	if _, err := devices.NewACPIPM(devices.ACPIPMConfig{Name: "acpipm"}); err == nil {
		t.Error("a block without a line was made")
	}
}

func TestACPIPowerButton(t *testing.T) {
	p := newPower(t)
	p.PressPowerButton()
	if p.line.high() {
		t.Fatal("a frozen block interrupts")
	}
	p.Thaw()
	if got := in16(p, pm1Status); got != buttonBit {
		t.Fatalf("after a press while frozen the status is %#x", got)
	}
	out16(p, pm1Enable, buttonBit)
	if !p.line.high() {
		t.Fatal("no SCI for an enabled event")
	}
	out16(p, pm1Status, buttonBit)
	if p.line.high() || in16(p, pm1Status) != 0 {
		t.Errorf("acknowledged: line %t, status %#x", p.line.high(), in16(p, pm1Status))
	}
	p.PressPowerButton()
	if !p.line.high() || p.line.count() != 2 {
		t.Errorf("second press: line %t, %d interrupts", p.line.high(), p.line.count())
	}
	out16(p, pm1Enable, 0xffff)
	if got := in16(p, pm1Enable); got != 0x0521 {
		t.Errorf("enable with all bits written is %#x", got)
	}
}

func TestACPISoftOff(t *testing.T) {
	p := newPower(t)
	p.Thaw()
	if got := in16(p, pm1Control); got != 1 {
		t.Errorf("control is %#x, want SCI_EN", got)
	}
	out16(p, pm1Control, 5<<10) // the type alone
	out16(p, pm1Control, 4<<10|1<<13)
	if p.offs != 0 {
		t.Fatal("powered off without S5 and SLP_EN together")
	}
	out16(p, pm1Control, 0x3400)
	if p.offs != 1 {
		t.Error("S5 does not power off")
	}
	if got := in16(p, pm1Control); got != 5<<10|1 {
		t.Errorf("control is %#x, SLP_EN must read as 0", got)
	}
	out(p, pm1Control+1, 0x34) // by bytes, too
	if p.offs != 2 {
		t.Error("S5 by a byte access does not power off")
	}
}

func TestACPITimer(t *testing.T) {
	p := newPower(t)
	p.now = time.Hour // an origin that means nothing
	p.Thaw()
	for _, c := range []struct {
		at   time.Duration
		want uint32
	}{
		{0, 0},
		{time.Millisecond, 3579},
		{time.Second, pmTimerHz},
		{1200 * time.Second, 4295454000 - 1<<32},
	} {
		p.now = time.Hour + c.at
		if got := readTimer(p); got != c.want {
			t.Errorf("after %v the timer is at %d, want %d", c.at, got, c.want)
		}
	}
	p.now = 0
	if got := readTimer(p); got != 0 {
		t.Errorf("with a clock that went back the timer is at %d", got)
	}
}

// TestACPITimerContinues: the twin's clock has another origin, and the count goes on as if nothing had happened.
func TestACPITimerContinues(t *testing.T) {
	p, twin := newPower(t), newPower(t)
	p.Thaw()
	p.now = 10 * time.Second
	twin.now = 1000 * time.Hour
	transplant(t, p, twin)
	p.now += time.Minute
	twin.now += time.Minute
	twin.Thaw()
	if got := readTimer(twin); got != 10*pmTimerHz {
		t.Errorf("the twin's timer is at %d, want %d", got, 10*pmTimerHz)
	}
	twin.now += time.Second
	if got := readTimer(twin); got != 11*pmTimerHz {
		t.Errorf("a second later the twin's timer is at %d, want %d", got, 11*pmTimerHz)
	}
	p.Thaw()
	if got := readTimer(p); got != 70*pmTimerHz {
		t.Errorf("a machine that only paused has its timer at %d, want %d", got, 70*pmTimerHz)
	}
}

func TestACPITimerInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &line{}
		m, err := devices.NewACPIPM(devices.ACPIPMConfig{Name: "acpipm", Line: l, PowerOff: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		m.Thaw()
		defer m.Freeze()
		out16(m, pm1Enable, timerBit)
		const half = (1 << 31) * time.Second / pmTimerHz
		for n := 1; n <= 3; n++ {
			time.Sleep(half - time.Second)
			if l.count() != n-1 {
				t.Fatalf("%d interrupts before the top bit's change %d", l.count(), n)
			}
			time.Sleep(time.Second + time.Millisecond)
			synctest.Wait()
			if l.count() != n {
				t.Fatalf("%d interrupts after the top bit's change %d", l.count(), n)
			}
			out16(m, pm1Status, timerBit)
		}
	})
}

func TestACPIPMConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		p := newPower(t)
		return &devicestest.Rig{
			Device: p,
			Prepare: func(testing.TB) {
				out16(p, pm1Enable, buttonBit|timerBit)
				out16(p, pm1Control, 5<<10)
				p.now += 20 * time.Minute // the top bit has changed
				p.PressPowerButton()
			},
			CarryOn: func(t testing.TB) {
				if !p.line.high() {
					t.Error("the button was pressed and the line is low")
				}
				if got := in16(p, pm1Status); got != buttonBit|timerBit {
					t.Errorf("status is %#x", got)
				}
				if got := readTimer(p); got != 1200*pmTimerHz-1<<32 {
					t.Errorf("timer is at %d", got)
				}
				out16(p, pm1Status, buttonBit|timerBit)
				if p.line.high() {
					t.Error("acknowledging leaves the line high")
				}
			},
		}
	})
}
