package virtio

import (
	"sync"
	"sync/atomic"
)

// gate decides whether a device may work. Workers enter it for each batch; Freeze closes it.
type gate struct {
	// closing is set before mu is asked for, so that workers end their batch early and keep away from the lock: a freeze
	// waits for at most the piece of work that is being done.
	closing atomic.Bool

	mu     sync.Mutex // guards the device's whole state
	frozen bool
	closed bool
}

// enter locks the device for a batch of work, or reports that it must not work now: closing is set then.
func (g *gate) enter() bool {
	if g.closing.Load() {
		return false
	}
	g.mu.Lock()
	if g.frozen || g.closed {
		g.mu.Unlock()
		return false
	}
	return true
}

// leave ends what enter began.
func (g *gate) leave() { g.mu.Unlock() }

// hurry reports that a freeze waits for the batch that the caller is in.
func (g *gate) hurry() bool { return g.closing.Load() }

// Freeze implements devices.Device.
func (g *gate) Freeze() {
	g.closing.Store(true)
	g.mu.Lock()
	g.frozen = true
	g.closing.Store(true) // once more: a Thaw may have come between
	g.mu.Unlock()
}
