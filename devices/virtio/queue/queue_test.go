package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Where the tests put a queue of testSize descriptors, and its data.
const (
	testSize   = 16
	descAt     = 0x1000
	availAt    = 0x2000
	usedAt     = 0x3000
	indirectAt = 0x4000
	dataAt     = 0x10000
)

func newMemory(t testing.TB) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.New(guestmem.MinSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func testConfig() Config {
	return Config{Size: testSize, Desc: descAt, Driver: availAt, Device: usedAt}
}

func newQueue(t testing.TB, f Features) (*Queue, *guestmem.Memory) {
	t.Helper()
	m := newMemory(t)
	q := New(m, 256)
	if err := q.Enable(testConfig(), f); err != nil {
		t.Fatal(err)
	}
	return q, m
}

func bytesAt(m *guestmem.Memory, at, n uint64) []byte {
	b, err := m.Slice(at, n)
	if err != nil {
		panic(err)
	}
	return b
}

func put16(m *guestmem.Memory, at uint64, v uint16) {
	binary.LittleEndian.PutUint16(bytesAt(m, at, 2), v)
}

func get16(m *guestmem.Memory, at uint64) uint16 {
	return binary.LittleEndian.Uint16(bytesAt(m, at, 2))
}

func putDescriptor(m *guestmem.Memory, table uint64, i int, d descriptor) {
	b := bytesAt(m, table+uint64(i)*descSize, descSize)
	binary.LittleEndian.PutUint64(b, d.addr)
	binary.LittleEndian.PutUint32(b[8:], d.length)
	binary.LittleEndian.PutUint16(b[12:], d.flags)
	binary.LittleEndian.PutUint16(b[14:], d.next)
}

// offer makes head available as the index'th chain ever.
func offer(m *guestmem.Memory, index, head uint16) {
	put16(m, availAt+ringOffset+2*uint64(index%testSize), head)
	put16(m, availAt+indexOffset, index+1)
}

func TestCheckRefusesLayouts(t *testing.T) {
	m := newMemory(t)
	q := New(m, 256)
	end := uint64(guestmem.MinSize)
	for _, c := range []struct {
		name string
		edit func(*Config)
		ok   bool
	}{
		{"as it is", func(*Config) {}, true},
		{"largest", func(c *Config) { c.Size = 256 }, true},
		{"size 0", func(c *Config) { c.Size = 0 }, false},
		{"not a power of two", func(c *Config) { c.Size = 12 }, false},
		{"larger than offered", func(c *Config) { c.Size = 512 }, false},
		{"descriptors not aligned", func(c *Config) { c.Desc += 8 }, false},
		{"available ring not aligned", func(c *Config) { c.Driver++ }, false},
		{"used ring not aligned", func(c *Config) { c.Device += 2 }, false},
		{"descriptors end with memory", func(c *Config) { c.Desc = end - 16*testSize }, true},
		{"descriptors beyond memory", func(c *Config) { c.Desc = end - 16*testSize + 16 }, false},
		{"available ring ends with memory", func(c *Config) { c.Driver = end - 6 - 2*testSize }, true},
		{"available ring beyond memory", func(c *Config) { c.Driver = end - 4 - 2*testSize }, false},
		{"used ring beyond memory", func(c *Config) { c.Device = end - 4 - 8*testSize }, false},
		{"in the hole", func(c *Config) { c.Device = guestmem.HoleStart }, false},
		{"address wraps", func(c *Config) { c.Desc = ^uint64(0) &^ 15 }, false},
	} {
		cfg := testConfig()
		c.edit(&cfg)
		err := q.Enable(cfg, Features{})
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrBroken)) {
			t.Errorf("%s: %v, want ok=%v", c.name, err, c.ok)
		}
		if q.Enabled() != c.ok {
			t.Errorf("%s: enabled %v", c.name, q.Enabled())
		}
		q.Disable()
	}
}

// Each case is a set of descriptors, and whether the chain at descriptor 0 can be.
func TestChains(t *testing.T) {
	const size = 64
	r := func(next uint16) descriptor { return descriptor{dataAt, size, descNext, next} }
	last := descriptor{dataAt, size, 0, 0}
	write := descriptor{dataAt, size, descWrite, 0}
	indirect := func(n uint32) descriptor { return descriptor{indirectAt, n, descIndirect, 0} }
	long := make([]descriptor, testSize)
	for i := range long {
		long[i] = r(uint16(i + 1))
	}
	long[testSize-1] = last
	for _, c := range []struct {
		name     string
		main     []descriptor
		table    []descriptor
		without  bool // the feature of indirect descriptors
		readable uint64
		writable uint64
		ok       bool
	}{
		{name: "one", main: []descriptor{last}, readable: size, ok: true},
		{name: "both", main: []descriptor{r(1), write}, readable: size, writable: size, ok: true},
		{name: "as long as the queue", main: long, readable: testSize * size, ok: true},
		{name: "empty buffer", main: []descriptor{{dataAt, 0, 0, 0}}, ok: true},
		{name: "loops to itself", main: []descriptor{r(0)}},
		{name: "loops", main: []descriptor{r(1), r(2), r(1)}},
		{name: "leads out of the table", main: []descriptor{r(testSize)}},
		{name: "readable after writable", main: []descriptor{{dataAt, size, descWrite | descNext, 1}, last}},
		{name: "empty readable after writable", main: []descriptor{{dataAt, size, descWrite | descNext, 1}, {dataAt, 0, 0, 0}}},
		{name: "ends with memory", main: []descriptor{{guestmem.MinSize - size, size, 0, 0}}, readable: size, ok: true},
		{name: "beyond memory", main: []descriptor{{guestmem.MinSize - size + 1, size, 0, 0}}},
		{name: "address wraps", main: []descriptor{{^uint64(0) - 8, size, 0, 0}}},
		{name: "longest length", main: []descriptor{{0, ^uint32(0), 0, 0}}},
		{
			name: "indirect", main: []descriptor{indirect(2 * descSize)}, table: []descriptor{r(1), write},
			readable: size, writable: size, ok: true,
		},
		{
			name: "indirect at the end", main: []descriptor{r(1), indirect(descSize)}, table: []descriptor{write},
			readable: size, writable: size, ok: true,
		},
		{
			name: "indirect, write flag means nothing", ok: true, readable: size,
			main: []descriptor{{indirectAt, descSize, descIndirect | descWrite, 0}}, table: []descriptor{last},
		},
		{name: "indirect without the feature", main: []descriptor{indirect(descSize)}, table: []descriptor{last}, without: true},
		{
			name: "indirect with a next one", table: []descriptor{last},
			main: []descriptor{{indirectAt, descSize, descIndirect | descNext, 1}, last},
		},
		{name: "indirect in indirect", main: []descriptor{indirect(descSize)}, table: []descriptor{indirect(descSize)}},
		{name: "empty table", main: []descriptor{indirect(0)}},
		{name: "part of a descriptor in the table", main: []descriptor{indirect(descSize + 8)}, table: []descriptor{last}},
		{name: "huge table", main: []descriptor{indirect((maxIndirect + 1) * descSize)}},
		{name: "table beyond memory", main: []descriptor{{guestmem.MinSize - 8, descSize, descIndirect, 0}}},
		{name: "table loops", main: []descriptor{indirect(2 * descSize)}, table: []descriptor{r(1), r(0)}},
		{name: "leads out of the indirect table", main: []descriptor{indirect(descSize)}, table: []descriptor{r(1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, m := newQueue(t, Features{Indirect: !c.without})
			for i, d := range c.main {
				putDescriptor(m, descAt, i, d)
			}
			for i, d := range c.table {
				putDescriptor(m, indirectAt, i, d)
			}
			offer(m, 0, 0)
			var chain Chain
			ok, err := q.Next(&chain)
			if !ok || (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrBroken)) {
				t.Fatalf("Next = %v, %v; want ok=%v", ok, err, c.ok)
			}
			if c.ok && (chain.ReadableBytes != c.readable || chain.WritableBytes != c.writable) {
				t.Errorf("%d bytes to read and %d to write, want %d and %d",
					chain.ReadableBytes, chain.WritableBytes, c.readable, c.writable)
			}
		})
	}
}

// A chain of the whole address range that a used element cannot express is refused, although every buffer is in memory.
func TestChainBytesAreBounded(t *testing.T) {
	q, m := newQueue(t, Features{Indirect: true})
	const n = maxIndirect
	table := uint64(0x100000)
	for i := range n {
		putDescriptor(m, table, i, descriptor{0, guestmem.MinSize, descNext, uint16(i + 1)})
	}
	putDescriptor(m, table, n-1, descriptor{0, guestmem.MinSize, 0, 0})
	putDescriptor(m, descAt, 0, descriptor{table, n * descSize, descIndirect, 0})
	offer(m, 0, 0)
	var c Chain
	if _, err := q.Next(&c); !errors.Is(err, ErrBroken) {
		t.Errorf("a chain of %d bytes: %v", uint64(n)*guestmem.MinSize, err)
	}
}

func TestAvailableIndexMustNotJump(t *testing.T) {
	q, m := newQueue(t, Features{})
	var c Chain
	putDescriptor(m, descAt, 0, descriptor{dataAt, 1, 0, 0})
	put16(m, availAt+indexOffset, testSize)
	if ok, err := q.Next(&c); !ok || err != nil {
		t.Errorf("a full queue: %v, %v", ok, err)
	}
	for _, index := range []uint16{testSize + 1, 0x8000, 0xffff} {
		put16(m, availAt+indexOffset, index)
		if _, err := q.Next(&c); !errors.Is(err, ErrBroken) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	offer(m, 0, testSize)
	if _, err := q.Next(&c); !errors.Is(err, ErrBroken) {
		t.Errorf("head beyond the table: %v", err)
	}
}

func TestDisabledQueueIsEmpty(t *testing.T) {
	q := New(newMemory(t), 256)
	var c Chain
	if ok, err := q.Next(&c); ok || err != nil {
		t.Errorf("Next = %v, %v", ok, err)
	}
	if err := q.Read(&c, 0); !errors.Is(err, ErrBroken) {
		t.Errorf("Read: %v", err)
	}
	q.StopNotify()
	if q.StartNotify() || q.Publish() {
		t.Error("a queue that is not enabled has work")
	}
}

func TestNextDoesNotTake(t *testing.T) {
	q, m := newQueue(t, Features{})
	for i := range 3 {
		putDescriptor(m, descAt, i, descriptor{dataAt, uint32(i + 1), descWrite, 0})
		offer(m, uint16(i), uint16(i))
	}
	var c Chain
	next := func(want uint16) {
		t.Helper()
		if ok, err := q.Next(&c); !ok || err != nil || c.Head != want {
			t.Fatalf("Next = %d, %v, %v; want %d", c.Head, ok, err, want)
		}
	}
	next(0)
	next(0)
	q.Take()
	next(1)
	q.Take()
	q.Put(0, 1)
	q.Put(1, 2)
	q.Unwind(2) // both, and what was put
	next(0)
	if q.Publish() || get16(m, usedAt+indexOffset) != 0 {
		t.Error("what was unwound was published")
	}
}

func TestWritesAreMarkedDirty(t *testing.T) {
	m := newMemory(t)
	q := New(m, 256)
	cfg := testConfig()
	cfg.Device = usedAt + guestmem.PageSize - ringOffset // the index at the end of a page, the elements in the next one
	if err := q.Enable(cfg, Features{EventIdx: true}); err != nil {
		t.Fatal(err)
	}
	putDescriptor(m, descAt, 0, descriptor{dataAt + 4090, 16, descWrite, 0})
	offer(m, 0, 0)
	var c Chain
	if ok, err := q.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	q.Take()
	const index, elements = usedAt >> guestmem.PageShift, usedAt>>guestmem.PageShift + 1
	for _, step := range []struct {
		name string
		do   func()
		want []uint64
	}{
		{"write over a page's end", func() { q.WriteAt(&c, make([]byte, 100), 4) }, []uint64{dataAt >> 12, dataAt>>12 + 1}},
		{"put", func() { q.Put(0, 16) }, []uint64{elements}},
		{"publish", func() { q.Publish() }, []uint64{index}},
		{"ask for notification", func() { q.StartNotify() }, []uint64{elements}},
		{"with nothing to publish", func() { q.Publish() }, nil},
	} {
		m.CollectDirty(nil)
		step.do()
		dirty := guestmem.NewBitmap(m.Frames())
		m.CollectDirty(dirty)
		for _, gfn := range step.want {
			if !dirty.Has(gfn) {
				t.Errorf("%s: frame %#x is not marked", step.name, gfn)
			}
		}
		if dirty.Count() != len(step.want) {
			t.Errorf("%s: %d frames are marked, want %d", step.name, dirty.Count(), len(step.want))
		}
	}
}

// The driver's neighbours in the words around the fields stay what they are.
func TestFieldsKeepTheirNeighbours(t *testing.T) {
	m := newMemory(t)
	b := bytesAt(m, 0x1000, 16)
	for off := 2; off < 12; off += 2 {
		for i := range b {
			b[i] = 0xa5
		}
		store16(b, off, 0x1234)
		if got := load16(b, off); got != 0x1234 {
			t.Errorf("offset %d: %#x", off, got)
		}
		for i, v := range b {
			if i != off && i != off+1 && v != 0xa5 {
				t.Errorf("storing at %d changed byte %d", off, i)
			}
		}
	}
}

func TestChainBytes(t *testing.T) {
	q, m := newQueue(t, Features{})
	for i := range uint16(4) {
		flags := uint16(descNext)
		if i >= 2 {
			flags |= descWrite
		}
		if i == 3 {
			flags &^= descNext
		}
		putDescriptor(m, descAt, int(i), descriptor{dataAt + 16*uint64(i), 10, flags, i + 1})
	}
	copy(bytesAt(m, dataAt, 10), "0123456789")
	copy(bytesAt(m, dataAt+16, 10), "abcdefghij")
	offer(m, 0, 0)
	var c Chain
	if ok, err := q.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, r := range []struct {
		off  uint64
		n    int
		want string
	}{{0, 3, "012"}, {8, 4, "89ab"}, {10, 2, "ab"}, {18, 9, "ij"}, {20, 1, ""}, {1000, 1, ""}} {
		p := make([]byte, r.n)
		if got := string(p[:c.ReadAt(p, r.off)]); got != r.want {
			t.Errorf("read %d at %d: %q, want %q", r.n, r.off, got, r.want)
		}
	}
	if n := q.WriteAt(&c, []byte("wxyz"), 8); n != 4 {
		t.Errorf("wrote %d", n)
	}
	if a, b := string(bytesAt(m, dataAt+32+8, 2)), string(bytesAt(m, dataAt+48, 2)); a != "wx" || b != "yz" {
		t.Errorf("memory has %q and %q", a, b)
	}
	if n := q.WriteAt(&c, []byte("!"), 20); n != 0 {
		t.Errorf("wrote %d bytes beyond the end", n)
	}
}

func TestQueueDoesNotAllocate(t *testing.T) {
	q, m := newQueue(t, Features{EventIdx: true, Indirect: true})
	putDescriptor(m, descAt, 0, descriptor{dataAt, 100, descNext, 1})
	putDescriptor(m, descAt, 1, descriptor{dataAt, 2 * descSize, descIndirect, 0})
	putDescriptor(m, dataAt, 0, descriptor{dataAt, 100, descNext | descWrite, 1})
	putDescriptor(m, dataAt, 1, descriptor{dataAt + 200, 100, descWrite, 0})
	var c Chain
	index := uint16(0)
	p := make([]byte, 150)
	if n := testing.AllocsPerRun(100, func() {
		offer(m, index, 0)
		index++
		if ok, err := q.Next(&c); !ok || err != nil {
			panic(fmt.Sprint(ok, err))
		}
		q.Take()
		q.WriteAt(&c, p[:50], 100)
		q.Put(c.Head, 150)
		q.Publish()
		q.StartNotify()
	}); n != 0 {
		t.Errorf("%v allocations per chain", n)
	}
}

func BenchmarkQueue(b *testing.B) {
	q, m := newQueue(b, Features{EventIdx: true})
	putDescriptor(m, descAt, 0, descriptor{dataAt, 100, descNext, 1})
	putDescriptor(m, descAt, 1, descriptor{dataAt, 1500, 0, 0})
	var c Chain
	index := uint16(0)
	for b.Loop() {
		offer(m, index, 0)
		index++
		if ok, err := q.Next(&c); !ok || err != nil {
			b.Fatal(ok, err)
		}
		q.Take()
		q.Put(c.Head, 0)
		q.Publish()
	}
}
