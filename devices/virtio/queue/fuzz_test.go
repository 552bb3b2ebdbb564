package queue

import (
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// fuzzConfig puts the whole queue into the first kilobyte of the image.
func fuzzConfig() Config { return Config{Size: 8, Desc: 0, Driver: 0x80, Device: 0x100} }

// FuzzQueue takes chains from a queue in arbitrary guest memory: whatever it holds, segments lie in memory, chains are
// bounded, and an error ends it.
func FuzzQueue(f *testing.F) {
	f.Add(seedImage(func(b []byte) { // two plain chains
		descriptorAt(b, 0, 0x400, 64, descNext, 1)
		descriptorAt(b, 1, 0x500, 64, descWrite, 0)
		available(b, 0, 1)
	}), true, true)
	f.Add(seedImage(func(b []byte) { // an indirect table, which loops
		descriptorAt(b, 0, 0x300, 32, descIndirect, 0)
		descriptorAt(b, 0x30, 0x400, 64, descNext, 1)
		descriptorAt(b, 0x31, 0x400, 64, descNext, 0)
		available(b, 0)
	}), true, false)
	f.Add(seedImage(func(b []byte) { // a table made of the queue's own descriptors
		descriptorAt(b, 0, 0, 128, descIndirect, 0)
		available(b, 0, 0, 0)
	}), true, true)
	f.Add(seedImage(func(b []byte) { // buffers that are the used ring
		descriptorAt(b, 0, 0x100, 128, descWrite, 0)
		available(b, 0, 0, 0, 0)
	}), false, true)
	f.Fuzz(func(t *testing.T, image []byte, indirect, eventIdx bool) {
		m, err := guestmem.New(guestmem.MinSize)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		copy(m.Regions()[0].Bytes, image)
		q := New(m, 8)
		if err := q.Enable(fuzzConfig(), Features{Indirect: indirect, EventIdx: eventIdx}); err != nil {
			t.Fatal(err)
		}
		var c Chain
		p := make([]byte, 4096)
		for range 100 {
			ok, err := q.Next(&c)
			if !ok || err != nil {
				break
			}
			checkChain(t, &c)
			c.ReadAt(p, 0)
			q.Take()
			q.Put(c.Head, uint32(q.WriteAt(&c, p, 0))) // may overwrite the queue itself
			q.Publish()
			q.StartNotify()
		}
	})
}

func checkChain(t *testing.T, c *Chain) {
	if len(c.Readable)+len(c.Writable) > maxIndirect+8 {
		t.Fatalf("%d segments", len(c.Readable)+len(c.Writable))
	}
	var totals [2]uint64
	for i, segments := range [][]Segment{c.Readable, c.Writable} {
		for _, s := range segments {
			if n := uint64(len(s.Data)); n == 0 || s.Addr+n > guestmem.MinSize {
				t.Fatalf("segment of %d bytes at %#x", n, s.Addr)
			}
			totals[i] += uint64(len(s.Data))
		}
	}
	if totals != [2]uint64{c.ReadableBytes, c.WritableBytes} || totals[0]+totals[1] > maxBytes {
		t.Fatalf("totals %v, chain says %d and %d", totals, c.ReadableBytes, c.WritableBytes)
	}
}

func seedImage(fill func(b []byte)) []byte {
	b := make([]byte, 0x400)
	fill(b)
	return b
}

func descriptorAt(b []byte, i int, addr uint64, length uint32, flags, next uint16) {
	b = b[i*descSize:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

func available(b []byte, heads ...uint16) {
	b = b[0x80:]
	binary.LittleEndian.PutUint16(b[indexOffset:], uint16(len(heads)))
	for i, h := range heads {
		binary.LittleEndian.PutUint16(b[ringOffset+2*i:], h)
	}
}
