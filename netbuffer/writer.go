package netbuffer

import (
	"errors"
	"time"
)

// write is the goroutine that hands frames to the sink.
//
// The decision that a frame may leave and the mark that it is being written are made under one lock; Hold and Fence change
// the mode under the same lock and then wait for the mark to go. So a frame is either decided on before them, and then
// they wait for it, or never.
func (b *Buffer) write() {
	defer close(b.done)
	pause := retryFirst
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		frame, at, next := b.releasable()
		if frame == nil {
			if b.closing {
				return
			}
			b.work.Wait()
			continue
		}
		b.writing = true
		b.mu.Unlock()
		err := b.sink.Write(frame)
		b.mu.Lock()
		b.writing = false
		b.idle.Broadcast()
		if errors.Is(err, ErrTryAgain) {
			b.stats.Retries++
			if b.closing {
				return
			}
			b.rest(pause)
			pause = min(2*pause, retryLast)
			continue
		}
		pause = retryFirst
		b.written(len(frame), at, next, err)
	}
}

// releasable is the first frame in line if it may leave now.
func (b *Buffer) releasable() (frame []byte, at time.Duration, next uint64) {
	if b.mode == Fenced {
		return nil, 0, 0
	}
	frame, at, next = b.ring.first()
	if frame == nil || b.mode == Holding && next > b.release {
		return nil, 0, 0
	}
	return frame, at, next
}

// written takes the frame of size bytes, which ends at position next, out of the ring. Nobody else has: the lock was not
// let go since writing was true.
func (b *Buffer) written(size int, at time.Duration, next uint64, err error) {
	if err != nil {
		b.stats.DroppedFrames++
		// A guest can cause these at will, so they are logged ever more rarely.
		if n := b.stats.DroppedFrames; n&(n-1) == 0 {
			b.log.Warn("the network refused a frame of the guest", "bytes", size, "dropped", n, "error", err)
		}
	} else {
		b.stats.ReleasedFrames++
		b.stats.ReleasedBytes += uint64(size)
		b.stats.LongestHeld = max(b.stats.LongestHeld, time.Since(b.start)-at)
	}
	b.ring.head = next
	b.frames--
	b.bytes -= uint64(size)
	if b.stalled && b.roomy() {
		b.stalled = false
		if f := b.onSpace; f != nil {
			b.mu.Unlock()
			f()
			b.mu.Lock()
		}
	}
}

// roomy reports whether enough is free for a stalled queue to be worth waking: a quarter of the ring, and any frame,
// wherever the ring's end is.
func (b *Buffer) roomy() bool {
	if b.ring.head == b.ring.tail {
		return true
	}
	return b.ring.free() >= max(b.ring.capacity()/4, 2*maxRecord)
}

// rest waits before the sink is tried again, without the lock; Close ends it.
func (b *Buffer) rest(d time.Duration) {
	b.mu.Unlock()
	defer b.mu.Lock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.stop:
	}
}
