package devices

import (
	"bytes"
	"testing"
)

type recorder struct {
	offset uint64
	p      []byte
}

func (r *recorder) Read(offset uint64, p []byte) {
	r.offset = offset
	for i := range p {
		p[i] = byte(offset) + byte(i)
	}
}

func (r *recorder) Write(offset uint64, p []byte) { r.offset, r.p = offset, bytes.Clone(p) }

func TestBusRefusesOverlap(t *testing.T) {
	b := NewBus()
	for _, c := range []struct {
		base, size uint64
		ok         bool
	}{
		{0x100, 0x10, true},
		{0x100, 0x10, false},
		{0x10f, 1, false},
		{0xf0, 0x11, false},
		{0xf0, 0x10, true},
		{0x110, 1, true},
		{0, 0, false},
		{0, ^uint64(0), false},
		{^uint64(0), 1, true},
		{^uint64(0) - 1, 4, false},
	} {
		if err := b.Register(c.base, c.size, &recorder{}); (err == nil) != c.ok {
			t.Errorf("Register(%#x, %#x) = %v, want ok=%v", c.base, c.size, err, c.ok)
		}
	}
}

func TestBusRoutes(t *testing.T) {
	b := NewBus()
	var low, high recorder
	if err := b.Register(0x100, 8, &low); err != nil {
		t.Fatal(err)
	}
	if err := b.Register(0x108, 8, &high); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if !b.Read(0x10a, p) || !bytes.Equal(p, []byte{2, 3, 4, 5}) {
		t.Errorf("read at 0x10a = %x", p)
	}
	if !b.Write(0x104, []byte{1, 2, 3, 4}) || low.offset != 4 {
		t.Errorf("write at 0x104 reached offset %#x", low.offset)
	}
	for _, address := range []uint64{0xff, 0x106, 0x10d, 0x110, ^uint64(0)} {
		if b.Read(address, p) || !bytes.Equal(p, []byte{255, 255, 255, 255}) {
			t.Errorf("read of 4 at %#x = %x, want ones: it does not lie whole inside a range", address, p)
		}
		if b.Write(address, p) {
			t.Errorf("write of 4 at %#x was taken", address)
		}
	}
	if !b.Unregister(0x100) || b.Unregister(0x100) || b.Unregister(0x109) {
		t.Error("Unregister takes exactly the range that starts there")
	}
	if b.Read(0x100, p) || !b.Read(0x108, p) {
		t.Error("after Unregister(0x100) only 0x108 answers")
	}
	if n := testing.AllocsPerRun(100, func() { b.Read(0x108, p) }); n != 0 {
		t.Errorf("%v allocations per read", n)
	}
}
