package devices_test

import (
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/devicestest"
	"github.com/pollux-ha/pollux/devices/state"
)

// line records an interrupt line.
type line struct {
	mu    sync.Mutex
	level bool
	rises int
}

func (l *line) Set(level bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level && !l.level {
		l.rises++
	}
	l.level = level
}

func (l *line) high() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

func (l *line) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rises
}

// in and out access one-byte registers as a guest does.
func in(h devices.Handler, offset uint64) uint8 {
	var p [1]byte
	h.Read(offset, p[:])
	return p[0]
}

func out(h devices.Handler, offset uint64, v uint8) { h.Write(offset, []byte{v}) }

// transplant freezes a device, and loads its state into another one.
func transplant(t *testing.T, from, to devices.Device) {
	t.Helper()
	from.Freeze()
	var e state.Encoder
	from.Save(&e)
	if err := to.Load(state.NewDecoder(e.Bytes())); err != nil {
		t.Fatalf("load %s: %v", to.Name(), err)
	}
}

// expect fails the test when a register does not read as wanted.
func expect(t testing.TB, what string, got, want uint8) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %#x, want %#x", what, got, want)
	}
}

func TestResetRegister(t *testing.T) {
	resets := 0
	r := devices.NewReset("reset", func() { resets++ })
	r.Thaw()
	out(r, 0, 0x02)
	if resets != 0 {
		t.Fatal("reset without the trigger bit")
	}
	expect(t, "reset control", in(r, 0), 0x02)
	out(r, 0, devices.ResetValue)
	out(r, 0, devices.ResetValue)
	if resets != 2 {
		t.Errorf("%d resets after asking twice", resets)
	}
}

func TestResetConformance(t *testing.T) {
	devicestest.Run(t, func(testing.TB) *devicestest.Rig {
		resets := 0
		r := devices.NewReset("reset", func() { resets++ })
		return &devicestest.Rig{
			Device:  r,
			Prepare: func(testing.TB) { out(r, 0, 0x02) },
			CarryOn: func(t testing.TB) {
				expect(t, "reset control", in(r, 0), 0x02)
				out(r, 0, devices.ResetValue)
				if resets != 1 {
					t.Errorf("%d resets after asking once", resets)
				}
			},
		}
	})
}

func TestKeyboardController(t *testing.T) {
	resets := 0
	k := devices.I8042{OnReset: func() { resets++ }}
	expect(t, "status of an absent controller", in(k.CommandPort(), 0), 0xff)
	expect(t, "data of an absent controller", in(k.DataPort(), 0), 0xff)
	for _, command := range []uint8{0x20, 0x60, 0xaa, 0xff, 0xfd, 0x00} {
		out(k.CommandPort(), 0, command)
		out(k.DataPort(), 0, command)
	}
	if resets != 0 {
		t.Fatal("a command that does not pulse the reset line reset the machine")
	}
	out(k.CommandPort(), 0, 0xfe)
	if resets != 1 {
		t.Error("command 0xFE did not reset the machine")
	}
}

func TestPvpanic(t *testing.T) {
	var told []devices.PanicEvents
	v := devices.NewPvpanic("pvpanic", func(e devices.PanicEvents) { told = append(told, e) })
	v.Thaw()
	expect(t, "events offered", in(v, 0), 0x03)
	out(v, 0, 0x00)
	out(v, 0, 0xfc) // events that this device does not know
	if len(told) != 0 {
		t.Fatalf("unknown events were told: %v", told)
	}
	out(v, 0, 0x01)
	out(v, 0, 0x06)
	if len(told) != 2 || told[0] != devices.PanicPanicked || told[1] != devices.PanicCrashLoaded {
		t.Errorf("told %v", told)
	}
	if v.Seen() != devices.PanicPanicked|devices.PanicCrashLoaded {
		t.Errorf("seen %v", v.Seen())
	}
}

func TestPvpanicConformance(t *testing.T) {
	devicestest.Run(t, func(testing.TB) *devicestest.Rig {
		told := 0
		v := devices.NewPvpanic("pvpanic", func(devices.PanicEvents) { told++ })
		return &devicestest.Rig{
			Device:  v,
			Prepare: func(testing.TB) { out(v, 0, 0x01) },
			CarryOn: func(t testing.TB) {
				if v.Seen() != devices.PanicPanicked {
					t.Errorf("a panic before is forgotten: %v", v.Seen())
				}
				before := told
				out(v, 0, 0x01)
				if told != before+1 {
					t.Error("a panic now is not told")
				}
			},
		}
	})
}
