package netbuffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// wire is a sink that keeps the number in each frame and can be made to refuse.
type wire struct {
	mu      sync.Mutex
	numbers []uint64
	bad     int                  // frames whose content was not what was sent
	refuse  func(n uint64) error // nil: take everything
	gate    chan struct{}        // if set, every write waits for a value or its closing
	entered chan struct{}        // if set, every write says that it began
}

func (w *wire) Write(frame []byte) error {
	if w.entered != nil {
		w.entered <- struct{}{}
	}
	if w.gate != nil {
		<-w.gate
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := binary.BigEndian.Uint64(frame)
	if w.refuse != nil {
		if err := w.refuse(n); err != nil {
			return err
		}
	}
	if !bytes.Equal(frame, numbered(n, len(frame))) {
		w.bad++
	}
	w.numbers = append(w.numbers, n)
	return nil
}

func (w *wire) got() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.numbers)
}

// numbered is a frame of size bytes (at least 8) that shows its number and what belongs where.
func numbered(n uint64, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(n) + byte(i)
	}
	binary.BigEndian.PutUint64(b, n)
	return b
}

// upTo is 0 to n-1.
func upTo(end uint64) []uint64 {
	var s []uint64
	for n := range end {
		s = append(s, n)
	}
	return s
}

func newBuffer(t testing.TB, capacity int, sink Sink) *Buffer {
	t.Helper()
	b, err := NewBuffer(capacity, sink, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// sendAll sends frames from to to-1 in two parts each.
func sendAll(t testing.TB, b *Buffer, from, to uint64) {
	t.Helper()
	for n := from; n < to; n++ {
		f := numbered(n, 60+int(n)%1400)
		if !b.Send([][]byte{f[:12], f[12:]}) {
			t.Fatalf("frame %d did not fit", n)
		}
	}
}

// settles waits until the writer has nothing to do.
func (b *Buffer) settles(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		b.mu.Lock()
		frame, _, _ := b.releasable()
		busy := b.writing || frame != nil
		b.mu.Unlock()
		if !busy {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the writer has not finished after 10 s")
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, w *wire, want []uint64) {
	t.Helper()
	if got := w.got(); !slices.Equal(got, want) {
		t.Fatalf("on the wire: %v, want %v", got, want)
	}
	if w.bad > 0 {
		t.Fatalf("%d frames were altered", w.bad)
	}
}

func TestEpochs(t *testing.T) {
	w := &wire{}
	b := newBuffer(t, 1<<20, w)
	sendAll(t, b, 0, 3)
	b.settles(t)
	expect(t, w, nil) // a buffer starts holding
	must(t, b.CloseEpoch(1))
	sendAll(t, b, 3, 5)
	must(t, b.CloseEpoch(2))
	must(t, b.CloseEpoch(3)) // an epoch without frames
	sendAll(t, b, 5, 7)
	b.settles(t)
	expect(t, w, nil)
	must(t, b.Release(1))
	b.settles(t)
	expect(t, w, upTo(3))
	must(t, b.Release(3))
	must(t, b.Release(3)) // again
	must(t, b.Release(2)) // late
	b.settles(t)
	expect(t, w, upTo(5))
	if s := b.Snapshot(); s.HeldFrames != 2 || s.ReleasedFrames != 5 || s.SentFrames != 7 || s.OldestHeld <= 0 || s.Mode != Holding {
		t.Errorf("stats %+v", s)
	}
	must(t, b.Passthrough())
	b.settles(t)
	expect(t, w, upTo(7))
	sendAll(t, b, 7, 9)
	b.settles(t)
	expect(t, w, upTo(9))
	must(t, b.Hold())
	sendAll(t, b, 9, 11)
	b.settles(t)
	expect(t, w, upTo(9))
	must(t, b.CloseEpoch(1)) // numbers may start anew
	must(t, b.Release(1))
	b.settles(t)
	expect(t, w, upTo(11))
}

func TestEpochErrors(t *testing.T) {
	b := newBuffer(t, 1<<20, &wire{})
	if err := b.Release(0); err == nil {
		t.Error("released an epoch although none was closed")
	}
	must(t, b.CloseEpoch(5))
	if err := b.CloseEpoch(5); err == nil {
		t.Error("closed an epoch twice")
	}
	if err := b.Release(6); err == nil {
		t.Error("released an open epoch")
	}
	var err error
	for n := uint64(6); n <= 6+maxClosed && err == nil; n++ {
		sendAll(t, b, n, n+1)
		err = b.CloseEpoch(n)
	}
	if err == nil {
		t.Errorf("more than %d epochs wait", maxClosed)
	}
	must(t, b.Release(6+maxClosed-1))
}

func TestFence(t *testing.T) {
	w := &wire{}
	b := newBuffer(t, 1<<20, w)
	sendAll(t, b, 0, 5)
	must(t, b.CloseEpoch(1))
	b.Fence()
	for name, err := range map[string]error{"release": b.Release(1), "pass": b.Passthrough(), "hold": b.Hold(), "close": b.CloseEpoch(2)} {
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s after a fence: %v", name, err)
		}
	}
	if b.Send([][]byte{numbered(5, 60)}) {
		t.Error("a fenced buffer takes frames")
	}
	b.Fence()
	b.settles(t)
	expect(t, w, nil)
	if s := b.Snapshot(); s.HeldFrames != 0 || s.DroppedFrames != 5 || s.Mode != Fenced {
		t.Errorf("stats %+v", s)
	}
}

// Hold and Fence wait for a frame that the writer has in hand, and nothing follows it.
func TestNothingLeavesAfterHoldAndFence(t *testing.T) {
	for name, stop := range map[string]func(*Buffer) error{
		"hold":  (*Buffer).Hold,
		"fence": func(b *Buffer) error { b.Fence(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{gate: make(chan struct{}), entered: make(chan struct{}, 100)}
			b := newBuffer(t, 1<<20, w)
			must(t, b.Passthrough())
			sendAll(t, b, 0, 3)
			<-w.entered // frame 0 is being written
			stopped := make(chan error)
			go func() { stopped <- stop(b) }()
			select {
			case err := <-stopped:
				t.Fatalf("it returned (%v) although a frame was on its way", err)
			case <-time.After(20 * time.Millisecond):
			}
			close(w.gate)
			must(t, <-stopped)
			expect(t, w, upTo(1))
			time.Sleep(5 * time.Millisecond)
			expect(t, w, upTo(1))
		})
	}
}

func TestSinkThatIsBusyOrDown(t *testing.T) {
	failures := 0
	refused := errors.New("bad frame")
	w := &wire{refuse: func(n uint64) error {
		switch {
		case n == 2 && failures < 5:
			failures++
			return ErrTryAgain
		case n == 3:
			return refused
		}
		return nil
	}}
	b := newBuffer(t, 1<<20, w)
	must(t, b.Passthrough())
	sendAll(t, b, 0, 6)
	b.settles(t)
	expect(t, w, []uint64{0, 1, 2, 4, 5})
	if s := b.Snapshot(); s.Retries != 5 || s.DroppedFrames != 1 || s.ReleasedFrames != 5 {
		t.Errorf("stats %+v", s)
	}
}

func TestFenceAndCloseWhileTheSinkIsDown(t *testing.T) {
	down := func(uint64) error { return ErrTryAgain }
	b := newBuffer(t, 1<<20, &wire{refuse: down})
	must(t, b.Passthrough())
	sendAll(t, b, 0, 6)
	b.Fence() // and Close by newBuffer
	other := newBuffer(t, 1<<20, &wire{refuse: down})
	must(t, other.Passthrough())
	sendAll(t, other, 0, 6)
}

func TestCloseWritesWhatMayLeave(t *testing.T) {
	w := &wire{}
	b, err := NewBuffer(1<<20, w, quiet)
	must(t, err)
	sendAll(t, b, 0, 50)
	must(t, b.CloseEpoch(1))
	sendAll(t, b, 50, 60)
	must(t, b.Release(1))
	must(t, b.Close())
	must(t, b.Close())
	expect(t, w, upTo(50))
	if b.Send([][]byte{numbered(1, 60)}) {
		t.Error("a closed buffer takes frames")
	}
	if err := b.Hold(); !errors.Is(err, ErrClosed) {
		t.Errorf("hold after close: %v", err)
	}
	b.Fence()
	if s := b.Snapshot(); s.HeldFrames != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestFullBuffer(t *testing.T) {
	w := &wire{}
	b := newBuffer(t, 0, w)
	space := make(chan struct{}, 10)
	b.OnSpace(func() { space <- struct{}{} })
	var n uint64
	for b.Send([][]byte{numbered(n, 1514)}) {
		n++
	}
	if held := b.Snapshot().HeldBytes; held < uint64(MaxFrame) || held > uint64(len(b.ring.mem)) {
		t.Fatalf("full with %d bytes of %d", held, len(b.ring.mem))
	}
	select {
	case <-space:
		t.Fatal("told of room before there was any")
	default:
	}
	must(t, b.CloseEpoch(1))
	must(t, b.Release(1))
	<-space
	b.settles(t)
	sendAll(t, b, n, n+1)
	if s := b.Snapshot(); s.Stalls != 1 || s.Stalled {
		t.Errorf("stats %+v", s)
	}
	if len(space) > 0 {
		t.Error("told of room twice")
	}
}

func TestImpossibleFrames(t *testing.T) {
	b := newBuffer(t, 1<<20, &wire{})
	if !b.Send(nil) || !b.Send([][]byte{{}}) || !b.Send([][]byte{make([]byte, MaxFrame), {0}}) {
		t.Error("a frame that never fits is put off for ever")
	}
	if s := b.Snapshot(); s.DroppedFrames != 3 || s.HeldFrames != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestWaiting(t *testing.T) {
	b := newBuffer(t, 1<<20, &wire{})
	waits := func() bool {
		select {
		case <-b.Waiting():
			return true
		default:
			return false
		}
	}
	if waits() {
		t.Error("waits without a frame")
	}
	sendAll(t, b, 0, 2)
	if !waits() || waits() {
		t.Error("want one notice for an epoch's frames")
	}
	must(t, b.CloseEpoch(1))
	if waits() {
		t.Error("a closed epoch waits for a checkpoint")
	}
	sendAll(t, b, 2, 3)
	if !waits() {
		t.Error("no notice for the second epoch")
	}
	must(t, b.Passthrough())
	sendAll(t, b, 3, 4)
	if waits() {
		t.Error("notice while frames pass")
	}
}

func TestNoAllocationPerFrame(t *testing.T) {
	var count atomic.Uint64
	b := newBuffer(t, 4<<20, sinkFunc(func([]byte) error { count.Add(1); return nil }))
	frame := [][]byte{make([]byte, 12), make([]byte, 1514)}
	epoch := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		epoch++
		for range 50 {
			b.Send(frame)
		}
		if b.CloseEpoch(epoch) != nil || b.Release(epoch) != nil {
			t.Error("the epoch could not be closed and released")
		}
	}); n > 0.5 {
		t.Errorf("%.1f allocations per epoch of 50 frames", n)
	}
}

type sinkFunc func(frame []byte) error

func (f sinkFunc) Write(frame []byte) error { return f(frame) }

func BenchmarkSendAndRelease(bench *testing.B) {
	b := newBuffer(bench, 8<<20, sinkFunc(func([]byte) error { return nil }))
	must(bench, b.Passthrough())
	frame := [][]byte{make([]byte, 12), make([]byte, 1514)}
	bench.ReportAllocs()
	for bench.Loop() {
		for !b.Send(frame) {
			time.Sleep(time.Microsecond)
		}
	}
}
