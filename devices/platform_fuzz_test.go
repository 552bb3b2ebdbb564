package devices_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/state"
)

// FuzzPlatformRegisters plays any sequence of accesses to every platform device, by all widths, with freezes between
// them, and checks that what each saves can be loaded by a fresh one.
func FuzzPlatformRegisters(f *testing.F) {
	f.Add([]byte{0x00, 0x04, 0x0b, 0x00, 0x02, 0xc7, 0x00, 0x01, 0x0f, 0x00, 0x00, 'x'})
	f.Add([]byte{0x01, 0x00, 0x0b, 0x01, 0x01, 0x82, 0x01, 0x00, 0x09, 0x01, 0x01, 0xff, 0x81, 0x01, 0x00})
	f.Add([]byte{0x42, 0x02, 0x01, 0x42, 0x04, 0x34, 0xc2, 0x08, 0x00})
	f.Add([]byte{0x03, 0x01, 0x06, 0x04, 0x00, 0x03, 0x07, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, program []byte) {
		m := newFuzzMachine(t)
		for _, d := range m.devices {
			d.Thaw()
		}
		for ; len(program) >= 3; program = program[3:] {
			m.step(t, program[0], program[1], program[2])
		}
		fresh := newFuzzMachine(t)
		for i, d := range m.devices {
			d.Freeze()
			var before, after state.Encoder
			d.Save(&before)
			if err := fresh.devices[i].Load(state.NewDecoder(before.Bytes())); err != nil {
				t.Fatalf("%s refuses its own state: %v", d.Name(), err)
			}
			fresh.devices[i].Save(&after)
			if !bytes.Equal(before.Bytes(), after.Bytes()) {
				t.Fatalf("%s saves %x after loading %x", d.Name(), after.Bytes(), before.Bytes())
			}
		}
	})
}

type fuzzMachine struct {
	devices  []devices.Device
	handlers []devices.Handler
	sizes    []int
	serial   port
	now      time.Time
}

func newFuzzMachine(t testing.TB) *fuzzMachine {
	m := &fuzzMachine{serial: newPort(t, 20), now: aNight}
	rtc, err := devices.NewRTC(devices.RTCConfig{Name: "rtc0", Line: &line{}, Now: func() time.Time { return m.now }})
	if err != nil {
		t.Fatal(err)
	}
	pm, err := devices.NewACPIPM(devices.ACPIPMConfig{
		Name: "acpipm", Line: &line{}, PowerOff: func() {},
		Clock: func() time.Duration { return m.now.Sub(aNight) },
	})
	if err != nil {
		t.Fatal(err)
	}
	reset := devices.NewReset("reset", func() {})
	pvpanic := devices.NewPvpanic("pvpanic", func(devices.PanicEvents) {})
	m.devices = []devices.Device{m.serial, rtc, pm, reset, pvpanic}
	m.handlers = []devices.Handler{m.serial, rtc, pm, reset, pvpanic}
	m.sizes = []int{devices.SerialSize, devices.RTCSize, devices.ACPIPMSize, 1, 1}
	return m
}

// step does one access: the low bits of the first byte choose the device, the high ones what to do.
func (m *fuzzMachine) step(t testing.TB, what, offset, v uint8) {
	i := int(what&0x0f) % len(m.devices)
	width := 1 << (what >> 4 & 3)
	at := int(offset) % m.sizes[i]
	width = min(width, m.sizes[i]-at)
	p := bytes.Repeat([]byte{v}, width)
	switch what >> 6 {
	case 0, 1:
		m.handlers[i].Write(uint64(at), p)
	case 2:
		m.handlers[i].Read(uint64(at), p)
	case 3:
		m.now = m.now.Add(time.Duration(v) * 37 * time.Second)
		m.devices[i].Freeze()
		m.devices[i].Thaw()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = m.serial.Feed(ctx, p) // cancelled, but it may take some
		m.serial.sink.grow(int(v & 3))
	}
}
