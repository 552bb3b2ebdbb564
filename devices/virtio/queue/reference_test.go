package queue

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// reference is the driver's idea of what it made available.
type reference struct {
	head               uint16
	readable, writable []Segment
}

// TestAgainstReference runs random chains through a queue: what comes out is what was put in, used elements arrive in order,
// and interrupts and notifications follow the specification's rule.
func TestAgainstReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := Features{Indirect: true, EventIdx: rapid.Bool().Draw(rt, "event index")}
		m, err := guestmem.New(guestmem.MinSize)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		q := New(m, 256)
		if err := q.Enable(testConfig(), f); err != nil {
			rt.Fatal(err)
		}
		var avail, used uint16
		for range rapid.IntRange(1, 40).Draw(rt, "batches") {
			refs := drawChains(rt, m, &avail)
			event := used + rapid.Uint16Range(0, 6).Draw(rt, "used_event") - 2
			put16(m, availAt+ringOffset+2*testSize, event)
			noInterrupt := rapid.Bool().Draw(rt, "no interrupt")
			put16(m, availAt, map[bool]uint16{true: availNoInterrupt}[noInterrupt])
			var c Chain
			for i, ref := range refs {
				if ok, err := q.Next(&c); !ok || err != nil {
					rt.Fatalf("chain %d: %v, %v", i, ok, err)
				}
				if c.Head != ref.head || !same(c.Readable, ref.readable) || !same(c.Writable, ref.writable) {
					rt.Fatalf("chain %d is %v, want %v", i, c, ref)
				}
				q.Take()
				q.Put(c.Head, uint32(i))
			}
			want := !noInterrupt
			if f.EventIdx {
				want = false
				for i := range refs { // the used index moves over the event index
					want = want || used+uint16(i) == event
				}
			}
			if got := q.Publish(); got != want {
				rt.Fatalf("interrupt %v, want %v: used %d, %d more, event %d", got, want, used, len(refs), event)
			}
			for i, ref := range refs {
				element := bytesAt(m, usedAt+ringOffset+8*uint64((used+uint16(i))%testSize), 8)
				if id, n := binary.LittleEndian.Uint32(element), binary.LittleEndian.Uint32(element[4:]); id != uint32(ref.head) || n != uint32(i) {
					rt.Fatalf("used element %d: chain %d, %d bytes", i, id, n)
				}
			}
			used += uint16(len(refs))
			if got := get16(m, usedAt+indexOffset); got != used {
				rt.Fatalf("used index %d, want %d", got, used)
			}
			if q.StartNotify() {
				rt.Fatal("an empty queue has more")
			}
			if got := get16(m, usedAt+ringOffset+8*testSize); f.EventIdx && got != avail {
				rt.Fatalf("avail_event %d, want %d", got, avail)
			}
			if p := (Position{avail, used}); q.Position() != p {
				rt.Fatalf("position %v, want %v", q.Position(), p)
			}
			if rapid.Bool().Draw(rt, "saved and loaded") {
				p := q.Position()
				q = New(m, 256)
				if err := q.Enable(testConfig(), f); err != nil {
					rt.Fatal(err)
				}
				q.Resume(p)
			}
		}
	})
}

// drawChains makes up to three chains available, of up to four buffers each, direct, indirect or both.
func drawChains(rt *rapid.T, m *guestmem.Memory, avail *uint16) (refs []reference) {
	next := 0
	for c := range rapid.IntRange(1, 3).Draw(rt, "chains") {
		n := rapid.IntRange(1, 4).Draw(rt, "buffers")
		writableFrom := rapid.IntRange(0, n).Draw(rt, "readable")
		indirectFrom := rapid.IntRange(0, n).Draw(rt, "direct") // n: none
		ref := reference{head: uint16(next)}
		table, at := uint64(descAt), next
		for i := range n {
			if i == indirectFrom {
				table = indirectAt + uint64(c)*0x100
				putDescriptor(m, descAt, at, descriptor{table, uint32(n-i) * descSize, descIndirect, 0})
				next = at + 1
				at = 0
			}
			d := descriptor{
				addr:   dataAt + rapid.Uint64Range(0, 0x8000).Draw(rt, "address"),
				length: rapid.Uint32Range(0, 5000).Draw(rt, "length"),
			}
			if i >= writableFrom {
				d.flags |= descWrite
			}
			if i < n-1 {
				d.flags |= descNext
				d.next = uint16(at + 1)
			}
			putDescriptor(m, table, at, d)
			at++
			if table == descAt {
				next = at
			}
			if d.length == 0 {
				continue
			}
			s := Segment{d.addr, bytesAt(m, d.addr, uint64(d.length))}
			if i >= writableFrom {
				ref.writable = append(ref.writable, s)
			} else {
				ref.readable = append(ref.readable, s)
			}
		}
		offer(m, *avail, ref.head)
		*avail++
		refs = append(refs, ref)
	}
	return refs
}

func same(a, b []Segment) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Addr != b[i].Addr || len(a[i].Data) != len(b[i].Data) || &a[i].Data[0] != &b[i].Data[0] {
			return false
		}
	}
	return true
}
