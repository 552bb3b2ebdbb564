package netbuffer

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model: what may be on the wire after any sequence of operations is a prefix of what was sent, at most up to what
// was released, and exactly that once the writer has settled.
func TestAnySequenceOfOperations(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &wire{}
		b, err := NewBuffer(0, w, quiet)
		if err != nil {
			rt.Fatal(err)
		}
		defer b.Close()
		m := model{ends: map[uint64]uint64{}}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				got := w.got()
				if uint64(len(got)) > m.allowed || w.bad > 0 || !slices.Equal(got, upTo(uint64(len(got)))) {
					rt.Fatalf("on the wire: %v (%d altered), allowed: %d", got, w.bad, m.allowed)
				}
			},
			"send": func(rt *rapid.T) {
				size := rapid.OneOf(rapid.IntRange(8, 1526), rapid.IntRange(8, MaxFrame)).Draw(rt, "size")
				cut := rapid.IntRange(0, size).Draw(rt, "cut")
				f := numbered(m.sent, size)
				if b.Send([][]byte{f[:cut], f[cut:]}) {
					m.send()
				}
			},
			"close":       func(rt *rapid.T) { m.close(rt, b) },
			"release":     func(rt *rapid.T) { m.release(rt, b, rapid.Uint64Range(0, 8).Draw(rt, "behind")) },
			"hold":        func(rt *rapid.T) { must(t, b.Hold()); m.hold(uint64(len(w.got()))) },
			"passthrough": func(*rapid.T) { must(t, b.Passthrough()); m.pass() },
			"settle": func(rt *rapid.T) {
				b.settles(t)
				if got := uint64(len(w.got())); got != m.allowed {
					rt.Fatalf("%d frames on the wire, %d may leave", got, m.allowed)
				}
			},
		})
		b.Fence()
		before := len(w.got())
		time.Sleep(100 * time.Microsecond)
		if after := len(w.got()); after != before {
			rt.Fatalf("%d frames left after the fence", after-before)
		}
	})
}

// model is what is known about a buffer from outside.
type model struct {
	sent, allowed uint64
	passing       bool
	last          uint64            // closed epoch since holding began, 0 if none
	ends          map[uint64]uint64 // epoch → frames sent until its end
}

func (m *model) send() {
	m.sent++
	if m.passing {
		m.allowed = m.sent
	}
}

func (m *model) close(rt *rapid.T, b *Buffer) {
	n := m.last + rapid.Uint64Range(1, 3).Draw(rt, "step")
	if err := b.CloseEpoch(n); err != nil {
		rt.Fatal(err)
	}
	if !m.passing {
		m.last = n
		m.ends[n] = m.sent
	}
}

func (m *model) release(rt *rapid.T, b *Buffer, behind uint64) {
	if m.passing || m.last <= behind {
		return
	}
	n := m.last - behind
	if err := b.Release(n); err != nil {
		rt.Fatal(err)
	}
	for epoch, end := range m.ends {
		if epoch <= n {
			m.allowed = max(m.allowed, end)
		}
	}
}

func (m *model) hold(onWire uint64) {
	if !m.passing {
		return
	}
	m.passing, m.last, m.allowed = false, 0, onWire
	clear(m.ends)
}

func (m *model) pass() {
	m.passing, m.allowed = true, m.sent
	clear(m.ends)
}

// A sender, a checkpointer and an observer at once: at every write, the frame's epoch has been released.
func TestConcurrentEpochs(t *testing.T) {
	var released atomic.Uint64 // set before Release
	var early, count atomic.Uint64
	b := newBuffer(t, 0, sinkFunc(func(f []byte) error {
		count.Add(1)
		if binary.BigEndian.Uint64(f[8:]) > released.Load() {
			early.Add(1)
		}
		return nil
	}))
	var lock sync.Mutex // what freezing the device does: a frame's epoch is known when it is sent
	epoch := uint64(1)
	const frames = 20000
	var wg sync.WaitGroup
	space := make(chan struct{}, 1)
	b.OnSpace(func() {
		select {
		case space <- struct{}{}:
		default:
		}
	})
	wg.Go(func() {
		f := make([]byte, 300)
		for n := uint64(0); n < frames; {
			lock.Lock()
			binary.BigEndian.PutUint64(f, n)
			binary.BigEndian.PutUint64(f[8:], epoch)
			ok := b.Send([][]byte{f})
			lock.Unlock()
			if ok {
				n++
				continue
			}
			<-space
		}
	})
	for count.Load() < frames {
		lock.Lock()
		must(t, b.CloseEpoch(epoch))
		epoch++
		lock.Unlock()
		if n := epoch - 1; n > 2 {
			released.Store(n - 2)
			must(t, b.Release(n-2))
		}
		time.Sleep(50 * time.Microsecond)
	}
	wg.Wait()
	if early.Load() > 0 {
		t.Errorf("%d frames left before their epoch was released", early.Load())
	}
}

// Hold and Fence against a sender and a writer that are busy: whatever the moment, nothing leaves after they return.
func TestConcurrentHoldAndFence(t *testing.T) {
	for round := range 150 {
		var count atomic.Uint64
		b, err := NewBuffer(0, sinkFunc(func([]byte) error { count.Add(1); return nil }), quiet)
		must(t, err)
		must(t, b.Passthrough())
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
					b.Send([][]byte{numbered(n, 64)})
				}
			}
		})
		time.Sleep(time.Duration(round*7%300) * time.Microsecond)
		if round%2 == 0 {
			b.Fence()
		} else {
			must(t, b.Hold())
		}
		before := count.Load()
		time.Sleep(300 * time.Microsecond)
		if after := count.Load(); after != before {
			t.Fatalf("%d frames left afterwards", after-before)
		}
		close(stop)
		wg.Wait()
		must(t, b.Close())
	}
}
