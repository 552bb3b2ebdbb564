package pci

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/pollux-ha/pollux/devices/state"
)

type message struct {
	address uint64
	data    uint32
}

// outbox is an MSISender that keeps what is sent.
type outbox struct{ sent []message }

func (o *outbox) SignalMSI(address uint64, data uint32) {
	o.sent = append(o.sent, message{address, data})
}

const (
	testVectors = 70 // more than one word of pending bits
	tableAt     = 0x0000
	pbaAt       = 0x2000
)

// msixRegion is a BAR that holds nothing but the table and the pending bits.
type msixRegion struct {
	region
	m *MSIX
}

type msixBench struct {
	*bench
	f   *Function
	m   *MSIX
	box *outbox
	at  int // of the capability
}

func newMSIX(t testing.TB) *msixBench {
	t.Helper()
	b := &msixBench{bench: newBench(t), box: &outbox{}}
	b.f = NewFunction("test", Identity{Vendor: 1})
	r := &msixRegion{}
	var err error
	if err = b.f.AddBAR(0, 0x4000, r); err != nil {
		t.Fatal(err)
	}
	if b.m, err = b.f.AddMSIX(0, tableAt, pbaAt, testVectors, b.box); err != nil {
		t.Fatal(err)
	}
	r.m = b.m
	if err := b.root.Attach(1, b.f); err != nil {
		t.Fatal(err)
	}
	b.at = int(b.f.Field(regCapabilities, 1))
	return b
}

// control writes Message Control, and lets the function be bus master.
func (b *msixBench) control(v uint32) {
	b.write(1, regCommand, 2, commandMaster|commandMemory)
	b.write(1, b.at+2, 2, v)
}

func (b *msixBench) setVector(v int, address uint64, data, control uint32) {
	entry := binary.LittleEndian.AppendUint64(nil, address)
	b.m.WriteTable(uint64(v)*16, entry)
	b.m.WriteTable(uint64(v)*16+8, binary.LittleEndian.AppendUint32(nil, data))
	b.m.WriteTable(uint64(v)*16+12, binary.LittleEndian.AppendUint32(nil, control))
}

func (b *msixBench) pending(v int) bool {
	p := make([]byte, 8)
	b.m.ReadPBA(uint64(v/64*8), p)
	return binary.LittleEndian.Uint64(p)&(1<<(v%64)) != 0
}

func (b *msixBench) expect(t *testing.T, step string, want ...message) {
	t.Helper()
	if !slices.Equal(b.box.sent, want) {
		t.Errorf("%s: sent %x, want %x", step, b.box.sent, want)
	}
	b.box.sent = nil
}

func TestMSIXCapability(t *testing.T) {
	b := newMSIX(t)
	if id := b.read(1, b.at, 1); id != CapMSIX {
		t.Fatalf("capability %#x", id)
	}
	if c := b.read(1, b.at+2, 2); c != testVectors-1 {
		t.Errorf("message control %#x", c)
	}
	if table, pba := b.read(1, b.at+4, 4), b.read(1, b.at+8, 4); table != tableAt || pba != pbaAt {
		t.Errorf("table %#x, pending bits %#x", table, pba)
	}
	b.write(1, b.at+2, 2, 0xffff)
	if c := b.read(1, b.at+2, 2); c != msixEnable|msixMaskAll|testVectors-1 {
		t.Errorf("message control %#x after writing ones", c)
	}
	f := NewFunction("x", Identity{})
	for _, vectors := range []int{0, 2049} {
		if _, err := f.AddMSIX(0, 0, 0x800, vectors, b.box); err == nil {
			t.Errorf("%d vectors were added", vectors)
		}
	}
}

func TestMSIXSignals(t *testing.T) {
	b := newMSIX(t)
	b.setVector(65, 0x1_fee01000, 0x4041, 0)
	want := message{0x1_fee01000, 0x4041}

	b.m.Signal(65)
	b.expect(t, "off")
	if b.pending(65) {
		t.Error("pending although MSI-X is off")
	}
	b.control(msixEnable)
	b.expect(t, "switched on")
	b.m.Signal(65)
	b.expect(t, "on", want)
	b.m.Signal(testVectors)
	b.m.Signal(0xffff)
	b.expect(t, "a vector that does not exist")

	b.m.Signal(64) // masked since reset
	b.expect(t, "masked vector")
	if !b.pending(64) || b.pending(65) {
		t.Error("pending bits are wrong")
	}
	b.setVector(64, 0xfee00000, 0x40, 0)
	b.expect(t, "unmasked vector", message{0xfee00000, 0x40})
	if b.pending(64) {
		t.Error("pending although it was sent")
	}

	b.control(msixEnable | msixMaskAll)
	b.m.Signal(65)
	b.m.Signal(65)
	b.expect(t, "function masked")
	b.control(msixEnable)
	b.expect(t, "function unmasked", want)

	b.write(1, regCommand, 2, commandMemory)
	b.m.Signal(65)
	b.expect(t, "not bus master")
	b.write(1, regCommand, 2, commandMemory|commandMaster)
	b.expect(t, "bus master again", want)

	b.control(msixEnable | msixMaskAll)
	b.m.Signal(65)
	b.control(0)
	b.control(msixEnable)
	b.expect(t, "off and on again")
}

func TestMSIXTableAccess(t *testing.T) {
	b := newMSIX(t)
	b.setVector(3, 0x12345678_9abcdef3, 0xdeadbeef, 0xffffffff)
	p := make([]byte, 8)
	b.m.ReadTable(48, p)
	if got := binary.LittleEndian.Uint64(p); got != 0x12345678_9abcdef0 {
		t.Errorf("address %#x: its low bits are reserved", got)
	}
	b.m.ReadTable(56, p)
	if got := binary.LittleEndian.Uint64(p); got != 1<<32|0xdeadbeef {
		t.Errorf("data and control %#x", got)
	}
	for _, c := range []struct {
		offset uint64
		n      int
	}{{48, 1}, {48, 2}, {49, 4}, {52, 8}, {testVectors * 16, 4}, {testVectors * 16, 8}, {1 << 40, 4}} {
		p := make([]byte, c.n)
		b.m.WriteTable(c.offset, p)
		b.m.ReadTable(c.offset, p)
		for _, v := range p {
			if v != 0xff {
				t.Errorf("%d bytes at %#x read %x", c.n, c.offset, p)
				break
			}
		}
	}
	b.m.ReadTable(48, p)
	if got := binary.LittleEndian.Uint64(p); got != 0x12345678_9abcdef0 {
		t.Errorf("an access that is not allowed changed the address to %#x", got)
	}
	for _, offset := range []uint64{16, 1 << 40} {
		b.m.ReadPBA(offset, p)
		if binary.LittleEndian.Uint64(p) != ^uint64(0) {
			t.Errorf("pending bits at %#x read %x", offset, p)
		}
	}
}

func TestMSIXLoadedStateSignals(t *testing.T) {
	b := newMSIX(t)
	b.control(msixEnable | msixMaskAll)
	b.setVector(65, 0xfee00000, 0x41, 0)
	b.setVector(2, 0xfee00000, 0x42, 0)
	b.m.Signal(65)
	b.write(1, regBAR, 4, windowBase+0x20000)
	var e state.Encoder
	b.f.Save(&e)

	fresh := newMSIX(t)
	d := state.NewDecoder(e.Bytes())
	saved := fresh.f.Decode(d)
	if err := d.Finish(); err != nil {
		t.Fatal(err)
	}
	fresh.f.Restore(saved)
	var again state.Encoder
	fresh.f.Save(&again)
	if !slices.Equal(e.Bytes(), again.Bytes()) {
		t.Error("the state changed by loading and saving")
	}
	if fresh.root.mapped[target{1, 0}] != windowBase+0x20000 {
		t.Error("the BAR does not answer where it did")
	}
	fresh.m.Flush()
	fresh.expect(t, "masked after the load")
	fresh.m.Signal(2)
	fresh.control(msixEnable)
	fresh.expect(t, "unmasked after the load", message{0xfee00000, 0x42}, message{0xfee00000, 0x41})
}

func TestMSIXRefusesState(t *testing.T) {
	b := newMSIX(t)
	var e state.Encoder
	b.f.Save(&e)
	head := spaceSize + 2
	for what, edit := range map[string]func(p []byte){
		"another vendor":                func(p []byte) { p[0] ^= 1 },
		"another number of vectors":     func(p []byte) { p[spaceSize]++ },
		"an address with low bits":      func(p []byte) { p[head] = 2 },
		"a mask that is no boolean":     func(p []byte) { p[head+12] = 2 },
		"a pending bit of no vector":    func(p []byte) { p[len(p)-1] = 0x80 },
		"a capability at another place": func(p []byte) { p[regCapabilities] += 4 },
	} {
		p := slices.Clone(e.Bytes())
		edit(p)
		d := state.NewDecoder(p)
		b.f.Decode(d)
		if d.Finish() == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func TestSignalDoesNotAllocate(t *testing.T) {
	b := newMSIX(t)
	b.control(msixEnable)
	b.setVector(0, 0xfee00000, 1, 0)
	b.box.sent = make([]message, 0, 1000)
	if n := testing.AllocsPerRun(100, func() { b.m.Signal(0) }); n != 0 {
		t.Errorf("%v allocations per interrupt", n)
	}
}
