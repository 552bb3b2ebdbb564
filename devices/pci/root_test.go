package pci

import (
	"encoding/binary"
	"log/slog"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/devicestest"
)

const (
	windowBase = 0xc0000000
	windowSize = 0x00100000
)

// region is memory behind a BAR that knows where it answers.
type region struct {
	id    byte
	base  uint64
	there bool
}

func (r *region) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = r.id
	}
}
func (r *region) Write(uint64, []byte) {}
func (r *region) Moved(base uint64, mapped bool) {
	r.base, r.there = base, mapped
}

// resetPort counts what is written to port 0xCF9.
type resetPort struct{ written []byte }

func (r *resetPort) Read(_ uint64, p []byte)  { p[0] = 0x42 }
func (r *resetPort) Write(_ uint64, p []byte) { r.written = append(r.written, p...) }

type bench struct {
	t     testing.TB
	root  *Root
	mmio  *devices.Bus
	ports *devices.Bus
	reset resetPort
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, mmio: devices.NewBus(), ports: devices.NewBus()}
	var err error
	b.root, err = NewRoot(Config{
		MMIO: b.mmio, WindowBase: windowBase, WindowSize: windowSize, ResetControl: &b.reset,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ports.Register(ConfigPort, ConfigPorts, b.root); err != nil {
		t.Fatal(err)
	}
	return b
}

// add attaches a function with one BAR per size.
func (b *bench) add(slot int, sizes ...uint32) (*Function, []*region) {
	b.t.Helper()
	f := NewFunction("test", Identity{Vendor: 0x1234, Device: uint16(slot), Class: 0xff0000, Revision: 3})
	var regions []*region
	for i, size := range sizes {
		r := &region{id: byte(slot<<4 | i)}
		if err := f.AddBAR(i, size, r); err != nil {
			b.t.Fatal(err)
		}
		regions = append(regions, r)
	}
	if err := b.root.Attach(slot, f); err != nil {
		b.t.Fatal(err)
	}
	return f, regions
}

func (b *bench) selectRegister(slot, offset int) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], 1<<31|uint32(slot)<<11|uint32(offset)&^3)
	b.ports.Write(ConfigPort, p[:])
}

func (b *bench) read(slot, offset, n int) uint32 {
	var p [4]byte
	b.selectRegister(slot, offset)
	b.ports.Read(uint64(ConfigPort+4+offset&3), p[:n])
	return binary.LittleEndian.Uint32(p[:])
}

func (b *bench) write(slot, offset, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	b.selectRegister(slot, offset)
	b.ports.Write(uint64(ConfigPort+4+offset&3), p[:n])
}

// answers is what one byte at an address reads as; 0xff: nobody answers.
func (b *bench) answers(address uint64) byte {
	p := []byte{0}
	b.mmio.Read(address, p)
	return p[0]
}

func TestHeader(t *testing.T) {
	b := newBench(t)
	b.add(3, 0x1000)
	for _, c := range []struct {
		slot, offset, n int
		want            uint32
	}{
		{0, 0, 4, 0x00081b36},
		{0, 10, 2, 0x0600},
		{3, 0, 4, 0x00031234},
		{3, 8, 1, 3},
		{3, 11, 1, 0xff},
		{3, 14, 1, 0},   // type 0, one function
		{3, 4, 2, 2},    // memory decoding is on, bus mastering off
		{3, 0x3d, 1, 0}, // no interrupt pin
		{1, 0, 4, 0xffffffff},
		{31, 0, 2, 0xffff},
	} {
		if got := b.read(c.slot, c.offset, c.n); got != c.want {
			t.Errorf("slot %d, %d bytes at %#x: %#x, want %#x", c.slot, c.n, c.offset, got, c.want)
		}
	}
}

// Only function 0 of bus 0 exists.
func TestOtherFunctionsAndBuses(t *testing.T) {
	b := newBench(t)
	b.add(3, 0x1000)
	for _, address := range []uint32{1<<31 | 3<<11 | 1<<8, 1<<31 | 1<<16 | 3<<11} {
		p := binary.LittleEndian.AppendUint32(nil, address)
		b.ports.Write(ConfigPort, p)
		b.ports.Read(ConfigPort+4, p)
		if got := binary.LittleEndian.Uint32(p); got != 0xffffffff {
			t.Errorf("address %#x reads %#x", address, got)
		}
	}
}

func TestAddressRegister(t *testing.T) {
	b := newBench(t)
	word := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	b.ports.Write(ConfigPort, word(0xffffffff))
	p := make([]byte, 4)
	b.ports.Read(ConfigPort, p)
	if got := binary.LittleEndian.Uint32(p); got != 0x80fffffc {
		t.Errorf("address register %#x", got)
	}
	b.ports.Write(ConfigPort, []byte{0, 0}) // no whole doubleword
	b.ports.Read(ConfigPort, p)
	if got := binary.LittleEndian.Uint32(p); got != 0x80fffffc {
		t.Errorf("two bytes changed the address register to %#x", got)
	}
	b.ports.Write(ConfigPort, word(0)) // not enabled
	b.ports.Read(ConfigPort+4, p)
	if got := binary.LittleEndian.Uint32(p); got != 0xffffffff {
		t.Errorf("data %#x although configuration cycles are off", got)
	}
	b.ports.Write(ConfigPort+1, []byte{6})
	b.ports.Read(ConfigPort+1, p[:1])
	if string(b.reset.written) != "\x06" || p[0] != 0x42 {
		t.Errorf("reset register: written %x, read %#x", b.reset.written, p[0])
	}
	b.ports.Read(ConfigPort+2, p) // over the edge of the two registers
	if got := binary.LittleEndian.Uint32(p); got != 0xffffffff {
		t.Errorf("a read over both registers gave %#x", got)
	}
}

func TestWriteMasks(t *testing.T) {
	b := newBench(t)
	f, _ := b.add(1, 0x1000)
	at, err := f.AddCapability(CapVendor, []byte{1, 2, 3, 4, 5, 6}, []byte{0, 0, 0xf0, 0, 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	before := make([]uint32, 64)
	for i := range before {
		before[i] = b.read(1, 4*i, 4)
		b.write(1, 4*i, 4, 0xffffffff)
	}
	want := map[int]uint32{
		0x04:   0x0546 | 0x10<<16,
		0x10:   0xfffff000,
		0x3c:   0xff,
		at + 4: before[at/4+1]&^0xf0 | 0xf0,
	}
	for i := range before {
		got := b.read(1, 4*i, 4)
		w, ok := want[4*i]
		if !ok {
			w = before[i]
		}
		if got != w {
			t.Errorf("offset %#x: %#x, want %#x", 4*i, got, w)
		}
	}
	for n := 1; n <= 2; n++ {
		b.write(1, 0x3c, n, 0x5a5a)
		if got := b.read(1, 0x3c, 2); got != 0x5a {
			t.Errorf("%d bytes written to the interrupt line: %#x", n, got)
		}
	}
}

func TestCapabilitiesAreChained(t *testing.T) {
	f := NewFunction("test", Identity{})
	var offsets []int
	for _, n := range []int{1, 14, 6} {
		at, err := f.AddCapability(CapVendor, make([]byte, n), nil)
		if err != nil {
			t.Fatal(err)
		}
		offsets = append(offsets, at)
	}
	if f.Field(regStatus, 1)&statusCapabilities == 0 {
		t.Error("the status register does not tell of capabilities")
	}
	at := int(f.Field(regCapabilities, 1))
	for _, want := range offsets {
		if at != want || at%4 != 0 || f.Field(at, 1) != CapVendor {
			t.Fatalf("capability at %#x, want %#x", at, want)
		}
		at = int(f.Field(at+1, 1))
	}
	if at != 0 {
		t.Errorf("the list goes on at %#x", at)
	}
	if _, err := f.AddCapability(CapVendor, make([]byte, 200), nil); err == nil {
		t.Error("a capability without room was added")
	}
}

func TestBARSizing(t *testing.T) {
	b := newBench(t)
	b.add(1, 0x1000, 0x8000)
	for i, size := range []uint32{0x1000, 0x8000, 0, 0, 0, 0} {
		offset := regBAR + 4*i
		old := b.read(1, offset, 4)
		b.write(1, offset, 4, 0xffffffff)
		got := b.read(1, offset, 4)
		b.write(1, offset, 4, old)
		if want := -size; size != 0 && got != want || size == 0 && got != 0 {
			t.Errorf("BAR %d of %#x bytes reads %#x after all ones", i, size, got)
		}
		if b.read(1, offset, 4) != old {
			t.Errorf("BAR %d is not what it was", i)
		}
	}
}

func TestBARsMove(t *testing.T) {
	b := newBench(t)
	_, r := b.add(1, 0x1000)
	first := r[0].base
	if !r[0].there || b.answers(first) != 0x10 {
		t.Fatalf("the BAR does not answer at %#x after the attachment", first)
	}
	b.write(1, regBAR, 4, windowBase+0x8000)
	if b.answers(first) != 0xff || b.answers(windowBase+0x8000) != 0x10 || r[0].base != windowBase+0x8000 {
		t.Errorf("the BAR did not move: %+v", r[0])
	}
	b.write(1, regBAR+2, 2, 0xc001) // the upper half alone
	if b.answers(windowBase+0x18000) != 0x10 {
		t.Errorf("the BAR did not move by half a register: %+v", r[0])
	}
	b.write(1, regCommand, 2, 0)
	if r[0].there || b.answers(windowBase+0x18000) != 0xff {
		t.Errorf("the BAR answers although memory decoding is off: %+v", r[0])
	}
	b.write(1, regCommand, 2, commandMemory)
	if !r[0].there || b.answers(windowBase+0x18000) != 0x10 {
		t.Errorf("the BAR does not answer again: %+v", r[0])
	}
}

func TestBARsOutsideTheWindowDoNotAnswer(t *testing.T) {
	b := newBench(t)
	_, r := b.add(1, 0x8000)
	for _, base := range []uint32{0, 0x1000, windowBase - 0x8000, windowBase + windowSize, 0xfee00000, 0xffff8000} {
		b.write(1, regBAR, 4, base)
		if r[0].there {
			t.Errorf("the BAR answers at %#x", r[0].base)
		}
	}
	b.write(1, regBAR, 4, windowBase+windowSize-0x8000)
	if !r[0].there {
		t.Error("the BAR does not answer at the end of the window")
	}
}

func TestOverlappingBARs(t *testing.T) {
	b := newBench(t)
	_, low := b.add(1, 0x1000)
	_, high := b.add(2, 0x8000)
	where := high[0].base
	b.write(1, regBAR, 4, uint32(where)+0x1000) // into the middle of the other
	if !low[0].there || high[0].there || b.answers(where+0x1000) != 0x10 || b.answers(where) != 0xff {
		t.Errorf("the lower slot does not win: %+v %+v", low[0], high[0])
	}
	b.write(1, regBAR, 4, windowBase+0x80000)
	if !low[0].there || !high[0].there || b.answers(where) != 0x20 {
		t.Errorf("the other BAR does not answer again: %+v %+v", low[0], high[0])
	}
}

// A device of the machine inside of the window, which should not be, keeps its range.
func TestBAROverAnotherHandler(t *testing.T) {
	b := newBench(t)
	if err := b.mmio.Register(windowBase+0x40000, 0x1000, &region{id: 0x77}); err != nil {
		t.Fatal(err)
	}
	_, r := b.add(1, 0x1000)
	b.write(1, regBAR, 4, windowBase+0x40000)
	if r[0].there || b.answers(windowBase+0x40000) != 0x77 {
		t.Errorf("the BAR took another device's range: %+v", r[0])
	}
	b.write(1, regBAR, 4, windowBase+0x41000)
	if !r[0].there {
		t.Error("the BAR does not answer beside it")
	}
}

// Whatever a guest writes, the bus answers as the configuration spaces say, and no two regions share an address.
func TestMappingFollowsConfiguration(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		sizes := map[int]uint32{1: 0x1000, 2: 0x8000, 3: 0x10000}
		regions := map[int]*region{}
		for slot := 1; slot <= 3; slot++ {
			_, r := b.add(slot, sizes[slot])
			regions[slot] = r[0]
		}
		for range rapid.IntRange(1, 30).Draw(rt, "writes") {
			slot := rapid.IntRange(1, 3).Draw(rt, "slot")
			if rapid.Bool().Draw(rt, "command") {
				b.write(slot, regCommand, 2, rapid.Uint32Range(0, 0xffff).Draw(rt, "value"))
			} else {
				b.write(slot, regBAR, 4, windowBase-0x10000+0x1000*rapid.Uint32Range(0, 0x30).Draw(rt, "page"))
			}
			type span struct{ base, end uint64 }
			var taken []span
			for slot := 1; slot <= 3; slot++ {
				base := uint64(b.read(slot, regBAR, 4))
				end := base + uint64(sizes[slot])
				want := b.read(slot, regCommand, 2)&commandMemory != 0 && base >= windowBase && end <= windowBase+windowSize
				for _, s := range taken {
					want = want && (end <= s.base || base >= s.end)
				}
				if r := regions[slot]; r.there != want || (want && (r.base != base || b.answers(base) != r.id)) {
					rt.Fatalf("slot %d at %#x: answers %v, want %v", slot, base, r.there, want)
				}
				if want {
					taken = append(taken, span{base, end})
				}
			}
		}
	})
}

func TestAttachRefuses(t *testing.T) {
	b := newBench(t)
	big := NewFunction("big", Identity{})
	if err := big.AddBAR(0, 2*windowSize, &region{}); err != nil {
		t.Fatal(err)
	}
	for slot, f := range map[int]*Function{0: NewFunction("x", Identity{}), 32: NewFunction("x", Identity{}), -1: NewFunction("x", Identity{}), 4: big} {
		if err := b.root.Attach(slot, f); err == nil {
			t.Errorf("%s was attached to slot %d", f.name, slot)
		}
	}
	f := NewFunction("x", Identity{})
	for _, c := range []struct {
		index int
		size  uint32
	}{{-1, 4096}, {6, 4096}, {0, 0}, {0, 2048}, {0, 4096 + 16}} {
		if err := f.AddBAR(c.index, c.size, &region{}); err == nil {
			t.Errorf("BAR %d of %#x bytes was added", c.index, c.size)
		}
	}
	for _, c := range []Config{{}, {WindowBase: 1 << 32, WindowSize: 1}, {WindowBase: 1 << 31, WindowSize: 1<<31 + 1}} {
		if _, err := NewRoot(c); err == nil {
			t.Errorf("a bus with the window %#x+%#x was built", c.WindowBase, c.WindowSize)
		}
	}
}

func TestBusMasterHook(t *testing.T) {
	b := newBench(t)
	f, _ := b.add(1, 0x1000)
	called := 0
	f.OnBusMaster(func() { called++ })
	for i, c := range []struct {
		command uint32
		want    int
	}{{2, 0}, {6, 1}, {6, 1}, {4, 1}, {0, 1}, {4, 2}} {
		b.write(1, regCommand, 2, c.command)
		if called != c.want || f.BusMaster() != (c.command&4 != 0) {
			t.Errorf("step %d: called %d times, want %d; bus master %v", i, called, c.want, f.BusMaster())
		}
	}
}

func TestRootConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		b := newBench(t)
		return &devicestest.Rig{
			Device: b.root,
			Prepare: func(testing.TB) {
				b.write(0, regIntLine, 1, 0x5a)
				b.selectRegister(0, regIntLine)
			},
			CarryOn: func(t testing.TB) {
				p := []byte{0}
				b.ports.Read(ConfigPort+4, p)
				if p[0] != 0x5a {
					t.Errorf("the selected register reads %#x", p[0])
				}
			},
		}
	})
}
