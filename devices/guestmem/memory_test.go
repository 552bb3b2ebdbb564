package guestmem

import (
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func newMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	m, err := New(size)
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

func TestNewRefusesSizes(t *testing.T) {
	for _, size := range []uint64{0, 1, MinSize - 1, MinSize + 4096, MaxSize + sizeStep, 1 << 63, ^uint64(0)} {
		if m, err := New(size); err == nil {
			t.Errorf("New(%d) = %d regions, want an error", size, len(m.Regions()))
		}
	}
}

func TestRegionsLeaveTheHole(t *testing.T) {
	m := newMemory(t, 64<<30)
	r := m.Regions()
	if len(r) != 2 || r[0].Base != 0 || len(r[0].Bytes) != HoleStart || r[1].Base != HoleEnd ||
		len(r[1].Bytes) != 64<<30-HoleStart {
		t.Fatalf("regions of 64 GiB: %d, first %#x+%#x", len(r), r[0].Base, len(r[0].Bytes))
	}
	if got, want := m.Frames(), uint64(65<<30)>>PageShift; got != want {
		t.Errorf("frames = %d, want %d", got, want)
	}
}

func TestSliceBounds(t *testing.T) {
	m := newMemory(t, HoleStart+(8<<20))
	top := uint64(HoleEnd + 8<<20)
	for _, c := range []struct {
		gpa, n uint64
		ok     bool
	}{
		{0, 0, true},
		{0, HoleStart, true},
		{HoleStart - 1, 1, true},
		{HoleStart - 1, 2, false},
		{HoleStart, 0, true},
		{HoleStart, 1, false},
		{HoleEnd - 1, 2, false},
		{HoleEnd, 8 << 20, true},
		{top - 1, 1, true},
		{top - 1, 2, false},
		{top, 1, false},
		{^uint64(0), 1, false},
		{^uint64(0), ^uint64(0), false},
		{1, ^uint64(0), false},
		{HoleEnd + 1, ^uint64(0) - HoleEnd, false},
	} {
		s, err := m.Slice(c.gpa, c.n)
		if (err == nil) != c.ok || (err == nil && uint64(len(s)) != c.n) || (err != nil && !errors.Is(err, ErrBounds)) {
			t.Errorf("Slice(%#x, %#x) = %d bytes, %v; want ok=%v", c.gpa, c.n, len(s), err, c.ok)
		}
	}
}

func TestWriteAtMarksDirty(t *testing.T) {
	m := newMemory(t, HoleStart+(8<<20))
	for _, gpa := range []uint64{0, 4095, 3 << 12, HoleStart - 1, HoleEnd, HoleEnd + 8<<20 - 2} {
		n := uint64(2)
		if gpa == HoleStart-1 {
			n = 1
		}
		if err := m.WriteAt(make([]byte, n), gpa); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.WriteAt([]byte{1, 2}, HoleStart-1); err == nil {
		t.Error("a write over the hole's edge was taken")
	}
	b := NewBitmap(m.Frames())
	m.CollectDirty(b)
	want := []uint64{0, 1, 3, HoleStart>>12 - 1, HoleEnd >> 12, HoleEnd>>12 + 2047}
	var got []uint64
	for first, n := b.NextRun(0); n > 0; first, n = b.NextRun(first + n) {
		for ; n > 0; first, n = first+1, n-1 {
			got = append(got, first)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("dirty frames %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("dirty frames %v, want %v", got, want)
		}
	}
	b.Clear()
	m.CollectDirty(b)
	if b.Count() != 0 {
		t.Errorf("%d frames still dirty after collecting", b.Count())
	}
	m.MarkDirty(^uint64(0)-4, 100) // must neither panic nor wrap
	m.MarkDirty(0, ^uint64(0))
}

// A page that is marked while another goroutine collects shows up in this collection or in a later one.
func TestMarksAreNeverLost(t *testing.T) {
	m := newMemory(t, 64<<20)
	frames := m.Frames()
	seen := NewBitmap(frames)
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for gfn := w; gfn < frames; gfn += 4 {
				m.MarkDirty(gfn<<PageShift, 1)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		m.CollectDirty(seen)
	}
	if got := seen.Count(); uint64(got) != frames {
		t.Fatalf("collected %d of %d frames", got, frames)
	}
}

func TestNextRunAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames := uint64(rapid.IntRange(1, 5).Draw(t, "words")) * 64
		b := NewBitmap(frames)
		model := make([]bool, frames)
		for range rapid.IntRange(0, 6).Draw(t, "runs") {
			first := rapid.Uint64Range(0, frames-1).Draw(t, "first")
			for gfn := first; gfn < min(frames, first+rapid.Uint64Range(1, 130).Draw(t, "n")); gfn++ {
				b.Set(gfn)
				model[gfn] = true
			}
		}
		got := make([]bool, frames)
		lastEnd := uint64(0)
		for first, n := b.NextRun(0); n > 0; first, n = b.NextRun(first + n) {
			if first < lastEnd || (first == lastEnd && first != 0) {
				t.Fatalf("run at %d touches the one before, which ended at %d", first, lastEnd)
			}
			lastEnd = first + n
			for i := first; i < first+n; i++ {
				got[i] = true
			}
		}
		for i := range model {
			if got[i] != model[i] || b.Has(uint64(i)) != model[i] {
				t.Fatalf("frame %d: run says %v, Has says %v, want %v", i, got[i], b.Has(uint64(i)), model[i])
			}
		}
	})
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	m := newMemory(t, 64<<20)
	b := NewBitmap(m.Frames())
	p := make([]byte, 8192)
	if n := testing.AllocsPerRun(100, func() {
		_ = m.WriteAt(p, 12345)
		m.CollectDirty(b)
		for first, n := b.NextRun(0); n > 0; first, n = b.NextRun(first + n) {
		}
		b.Clear()
	}); n != 0 {
		t.Errorf("%v allocations per round", n)
	}
}
