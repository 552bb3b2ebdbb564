package netbuffer

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// ErrFenced is returned for everything that would let frames out after Fence.
var ErrFenced = errors.New("the network buffer is fenced: another copy of the guest may be running")

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the network buffer is closed")

// ErrTryAgain is wrapped by a Sink's errors that will pass: the frame stays first in line.
var ErrTryAgain = errors.New("cannot take frames now")

// Sink is where released frames go.
type Sink interface {
	// Write takes one frame whole or not at all, and does not block. An error that wraps ErrTryAgain keeps the frame for
	// later; any other error means that this frame can never be written.
	Write(frame []byte) error
}

// Mode is what a Buffer does with frames.
type Mode uint8

// The modes.
const (
	Holding Mode = iota // frames wait for the release of their epoch
	Passing             // frames leave at once
	Fenced              // no frame leaves, ever
)

func (m Mode) String() string { return [...]string{"holding", "passing", "fenced"}[m] }

// maxClosed bounds the closed epochs that hold frames and are not released. Staging bounds them far below it.
const maxClosed = 1024

// retryFirst and retryLast bound the pauses between attempts at a sink that is busy or down.
const (
	retryFirst = time.Millisecond
	retryLast  = 50 * time.Millisecond
)

// boundary is the end of a closed epoch in the ring.
type boundary struct {
	epoch uint64
	end   uint64
}

// Buffer holds frames until their epoch is released and then hands them to a Sink, in order. All methods are safe for
// concurrent use. One goroutine writes to the sink; Close stops it.
type Buffer struct {
	sink  Sink
	log   *slog.Logger
	start time.Time

	waiting chan struct{}
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the writer has ended

	mu       sync.Mutex
	work     sync.Cond // there may be something to write, or the buffer closes
	idle     sync.Cond // a write has ended
	ring     ring
	mode     Mode
	writing  bool // the writer is in sink.Write, without the lock
	closing  bool
	stalled  bool // Send refused a frame; onSpace is owed
	onSpace  func()
	closed   [maxClosed]boundary // circular, oldest first
	first, n int                 // of closed
	last     uint64              // the last closed epoch; valid if any
	any      bool                // an epoch was closed since holding began
	release  uint64              // frames before this position may leave while holding
	open     uint64              // frames sent in the open epoch
	frames   uint64              // frames in the ring
	bytes    uint64              // their bytes
	stats    Stats
}

// Stats counts what a Buffer has done; the first five are how it is now.
type Stats struct {
	Mode           Mode
	HeldFrames     uint64
	HeldBytes      uint64
	OldestHeld     time.Duration // how long the first frame in line has waited
	Stalled        bool          // a Send was refused and there is no room yet
	SentFrames     uint64        // taken from the guest
	SentBytes      uint64
	ReleasedFrames uint64 // written to the sink
	ReleasedBytes  uint64
	DroppedFrames  uint64        // of impossible length, or refused by the sink for good
	Stalls         uint64        // times that Send found the buffer full
	Retries        uint64        // writes that the sink put off
	LongestHeld    time.Duration // the longest time between Send and the write, of all frames written
}

// NewBuffer makes a buffer of capacity bytes (at least two of the largest frames) in front of sink. It starts holding.
func NewBuffer(capacity int, sink Sink, log *slog.Logger) (*Buffer, error) {
	r, err := newRing(capacity)
	if err != nil {
		return nil, err
	}
	b := &Buffer{
		sink: sink, log: log, start: time.Now(), ring: r,
		waiting: make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	b.work.L = &b.mu
	b.idle.L = &b.mu
	go b.write()
	return b, nil
}

// Send copies one frame, scattered over parts, into the open epoch. False: there is no room, nothing was taken, and the
// function given to OnSpace is called when there is. Frames that can't be (empty, longer than MaxFrame) are taken and
// dropped: they would never fit.
func (b *Buffer) Send(parts [][]byte) bool {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing || b.mode == Fenced {
		return false // for good: the guest is about to be destroyed
	}
	if size == 0 || size > MaxFrame {
		b.stats.DroppedFrames++
		return true
	}
	if !b.ring.push(parts, size, time.Since(b.start)) {
		b.stats.Stalls++
		b.stalled = true
		b.signalWaiting()
		return false
	}
	b.frames++
	b.bytes += uint64(size)
	b.stats.SentFrames++
	b.stats.SentBytes += uint64(size)
	b.open++
	switch {
	case b.mode == Passing:
		b.work.Signal()
	case b.open == 1:
		b.signalWaiting()
	}
	return true
}

func (b *Buffer) signalWaiting() {
	select {
	case b.waiting <- struct{}{}:
	default:
	}
}

// OnSpace sets the function that is called, without locks held, when there is room again after a refused Send. It must not
// block: frames wait meanwhile.
func (b *Buffer) OnSpace(f func()) {
	b.mu.Lock()
	b.onSpace = f
	b.mu.Unlock()
}

// Waiting receives a value when, while holding, the open epoch has its first frame or the buffer is full: output waits for
// a checkpoint. One value may stand for several such moments.
func (b *Buffer) Waiting() <-chan struct{} { return b.waiting }

// Hold makes frames wait from here on. When it returns, no frame leaves any more until Release; those that had not left
// belong to the epoch that is closed next. Epoch numbers may start anew. It does nothing to a buffer that holds already.
func (b *Buffer) Hold() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usable(); err != nil {
		return err
	}
	if b.mode == Holding {
		return nil
	}
	b.mode = Holding
	b.release = 0 // nothing is released yet of what is in the ring
	// The frame that the writer has in hand was decided on before; wait until it is out, or put off.
	for b.writing {
		b.idle.Wait()
	}
	if b.mode != Holding {
		return b.usable() // another call was later and prevails
	}
	b.forgetEpochs()
	b.release = b.ring.head
	if b.open = b.frames; b.open > 0 {
		b.signalWaiting()
	}
	return nil
}

// forgetEpochs clears everything that is known about closed epochs.
func (b *Buffer) forgetEpochs() { b.first, b.n, b.any = 0, 0, false }

// Passthrough lets everything out: what is held, in order, and every later frame at once.
func (b *Buffer) Passthrough() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usable(); err != nil {
		return err
	}
	b.mode = Passing
	b.forgetEpochs()
	b.work.Signal()
	return nil
}

// Fence makes sure that no frame leaves any more, ever, and drops those held. When it returns, none is on its way.
func (b *Buffer) Fence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mode = Fenced
	for b.writing {
		b.idle.Wait()
	}
	if b.ring.mem != nil {
		b.stats.DroppedFrames += b.frames
		b.ring.head = b.ring.tail
	}
	b.frames, b.bytes, b.open = 0, 0, 0
	b.stalled = false
	b.forgetEpochs()
}

// CloseEpoch says that epoch n ends here: all frames sent so far belong to n or earlier, all later ones to n+1 or later.
// Epochs are closed in rising order. While frames pass, it does nothing.
func (b *Buffer) CloseEpoch(n uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usable(); err != nil {
		return err
	}
	if b.mode == Passing {
		return nil
	}
	if b.any && n <= b.last {
		return fmt.Errorf("close epoch %d of the network buffer: epoch %d was closed before", n, b.last)
	}
	// An epoch without frames needs no boundary: its release lets nothing out that the ones before did not.
	if b.open > 0 {
		if b.n == maxClosed {
			return fmt.Errorf("close epoch %d of the network buffer: %d epochs wait for their release", n, b.n)
		}
		b.closed[(b.first+b.n)%maxClosed] = boundary{epoch: n, end: b.ring.tail}
		b.n++
	}
	b.last, b.any, b.open = n, true, 0
	return nil
}

// Release lets the frames of all epochs up to n leave. It is an error to release an epoch that was not closed.
func (b *Buffer) Release(n uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usable(); err != nil {
		return err
	}
	if b.mode == Passing {
		return nil // everything was let out already
	}
	if !b.any || n > b.last {
		return fmt.Errorf("release epoch %d of the network buffer: it was not closed", n)
	}
	for b.n > 0 && b.closed[b.first].epoch <= n {
		b.release = b.closed[b.first].end
		b.first = (b.first + 1) % maxClosed
		b.n--
	}
	b.work.Signal()
	return nil
}

// usable says why nothing more can be done with the buffer.
func (b *Buffer) usable() error {
	if b.mode == Fenced {
		return ErrFenced
	}
	if b.closing {
		return ErrClosed
	}
	return nil
}

// Snapshot tells how the buffer stands.
func (b *Buffer) Snapshot() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Mode, s.HeldFrames, s.HeldBytes, s.Stalled = b.mode, b.frames, b.bytes, b.stalled
	if b.frames > 0 && b.ring.mem != nil {
		_, at, _ := b.ring.first()
		s.OldestHeld = time.Since(b.start) - at
	}
	return s
}

// Close writes what may leave and the sink takes at once, drops the rest, and stops the writer. The sink is not used
// afterwards.
func (b *Buffer) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		<-b.done
		return nil
	}
	b.closing = true
	close(b.stop)
	b.work.Signal()
	b.mu.Unlock()
	<-b.done
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats.DroppedFrames += b.frames
	b.frames, b.bytes = 0, 0
	if err := b.ring.unmap(); err != nil {
		return fmt.Errorf("unmap held frames: %w", err)
	}
	return nil
}
