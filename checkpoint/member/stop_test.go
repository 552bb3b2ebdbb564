package member

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

// fullHost says of its guests' output that it is at its bound.
type fullHost struct {
	*fakeHost
	full atomic.Bool
}

func (h *fullHost) Boot(ctx context.Context) (*Guest, error) {
	g, err := h.fakeHost.Boot(ctx)
	if err == nil {
		g.Full = h.full.Load
	}
	return g, err
}

// TestStoppedGuestIsNotPaused: a guest that has powered off with its output at the bound is not a guest that fails to pause, which its
// twin would bring back.
func TestStoppedGuestIsNotPaused(t *testing.T) {
	h := &fullHost{}
	p := newPair(t, func(a, _ *Config, ha, _ *fakeHost) {
		h.fakeHost = ha
		a.Host = h
	})
	p.awaitProtected()
	p.arbiter.SetFault(func(bool) arbitertest.Fault { return arbitertest.LoseRequest })
	m := h.newest()
	m.mu.Lock()
	m.over = true
	m.wake.Broadcast()
	m.mu.Unlock()
	p.await("a to exclude its twin", func() bool { return p.a.phase() == role.PhaseUnpairing })
	time.Sleep(10 * tick) // the end of a capture may have come first
	h.full.Store(true)
	time.Sleep(10 * tick)
	p.arbiter.SetFault(nil)
	select {
	case <-p.a.done:
	case <-time.After(patience):
		t.Fatal("a goes on")
	}
	if p.a.err != nil {
		t.Error(p.a.err)
	}
	p.await("b to drop its copy", func() bool { return p.b.phase() == role.PhaseFree })
}
