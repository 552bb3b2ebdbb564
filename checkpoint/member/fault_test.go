package member

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

var (
	faults = flag.Int("faults", 12, "number of faults in TestRandomFaults")
	seed   = flag.Uint64("seed", 0, "of TestRandomFaults; 0: from the clock")
)

// TestRandomFaults breaks the pair in random ways at random moments, lets it heal, and watches what comes out: every count at most once,
// in order, none back; and every takeover's memory whole (LoadState of the fake checks all of it).
func TestRandomFaults(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	rng := testRand(s)
	p := newPair(t)
	kinds := []struct {
		name string
		do   func()
	}{
		{"cut", func() { p.proxy.cut() }},
		{"cut within bytes", func() { p.proxy.cutAt.Store(int64(rng.IntN(300_000))) }},
		{"flip", func() { p.proxy.flipAt.Store(int64(rng.IntN(300_000))) }},
		{"silence", func() { p.proxy.stalled.Store(true) }},
		{"one-way silence", func() { p.proxy.stallUp.Store(true) }},
		{"cut and lost replies", func() {
			replies := testRand(rng.Uint64()) // of its own: the fake calls from other goroutines, one at a time
			p.arbiter.SetFault(func(bool) arbitertest.Fault { return arbitertest.Fault(replies.IntN(3)) })
			p.proxy.cut()
		}},
		{"a dies", func() { p.restart(p.a) }},
		{"b dies", func() { p.restart(p.b) }},
	}
	for i := range *faults {
		p.awaitProtected()
		p.awaitFrames(uint64(rng.IntN(300)))
		k := kinds[rng.IntN(len(kinds))]
		before := p.arbiter.Record("vm")
		k.do()
		// The fault lasts for a while, then goes.
		time.Sleep(time.Duration(rng.IntN(600)) * time.Millisecond)
		p.proxy.stalled.Store(false)
		p.proxy.stallUp.Store(false)
		p.proxy.flipAt.Store(-1)
		p.proxy.cutAt.Store(-1)
		p.arbiter.SetFault(nil)
		p.awaitProtected()
		if testing.Verbose() {
			last, frames := p.world.seen()
			t.Logf("%3d %-22s %v -> %v, count %d in %d frames", i, k.name, before, p.arbiter.Record("vm"), last, frames)
		}
		p.world.check()
		if t.Failed() {
			t.Fatalf("after fault %d, %s; seed %d", i, k.name, s)
		}
	}
	last, frames := p.world.seen()
	t.Logf("%d faults, %d commits by the present members, count %d in %d frames, record %v", *faults,
		p.a.Status().Stats.Commits+p.b.Status().Stats.Commits, last, frames, p.arbiter.Record("vm"))
}

// restart replaces a member by a new run of it, as after a crash.
func (p *pair) restart(n *node) {
	n.stop()
	cfg := n.cfg
	if n == p.b {
		cfg.Listen = n.Addr().String()
		p.b = p.start(cfg, n.host)
		return
	}
	p.a = p.start(cfg, n.host)
}

// TestLoserNeverReleases: the link is down, the twin has taken over, and the old primary can't reach the arbiter. It must hold
// everything, and destroy its guest when it hears.
func TestLoserNeverReleases(t *testing.T) {
	cut := &cutArbiter{}
	p := newPair(t, func(a, _ *Config, _, _ *fakeHost) {
		cut.Fake = a.Arbiter.(*arbitertest.Fake)
		a.Arbiter = cut
	})
	p.awaitProtected()
	p.awaitFrames(100)
	old := p.a.host.newest()
	cut.down.Store(true)
	p.proxy.down.Store(true)
	p.proxy.cut()
	p.await("the takeover", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(300)
	if got := p.a.phase(); got != role.PhaseUnpairing {
		t.Errorf("a is %v", got)
	}
	if s := p.a.Status(); !s.Held || s.Arbiter == "" {
		t.Errorf("a: held %t, arbiter %q", s.Held, s.Arbiter)
	}
	cut.down.Store(false)
	p.await("a to hear of it", func() bool { return p.a.noticed(role.NoticeFenced) })
	old.mu.Lock()
	over := old.over
	old.mu.Unlock()
	if !over {
		t.Error("the loser's guest runs")
	}
	p.awaitFrames(300)
	p.world.check()
	// And with the link back, the loser becomes the twin.
	p.proxy.down.Store(false)
	p.awaitProtected()
	p.world.check()
}

// TestArbiterAway: protection goes on without the arbiter as long as nothing else fails; when the twin is lost then, output waits.
func TestArbiterAway(t *testing.T) {
	p := newPair(t)
	p.awaitProtected()
	p.arbiter.SetFault(func(bool) arbitertest.Fault { return arbitertest.LoseRequest })
	p.awaitFrames(200)
	p.b.stop()
	p.await("a to miss its twin", func() bool { return p.a.phase() == role.PhaseUnpairing })
	time.Sleep(20 * time.Millisecond) // what was released before is on its way
	before, _ := p.world.seen()
	time.Sleep(300 * time.Millisecond)
	if after, _ := p.world.seen(); after != before {
		t.Errorf("output left without an arbiter: %d to %d", before, after)
	}
	p.arbiter.SetFault(nil)
	p.await("a to go on alone", func() bool { return p.a.phase() == role.PhaseSolo })
	p.awaitFrames(200)
	p.world.check()
}

func TestSwitchover(t *testing.T) {
	p := newPair(t)
	for i := range 6 {
		p.awaitProtected()
		p.awaitFrames(100)
		from, to := p.a, p.b
		if i%2 == 1 {
			from, to = to, from
		}
		from.Switchover()
		p.await("the handover", func() bool { return to.phase().Active() })
		p.awaitFrames(100)
		p.world.check()
	}
	p.awaitProtected()
	if r := p.arbiter.Record("vm"); r.Generation != 7 {
		t.Errorf("record %v", r)
	}
}

// TestCaptureFails: a capture that fails leaves the guest running, half of nothing at the twin, and protection comes back.
func TestCaptureFails(t *testing.T) {
	for name, fail := range map[string]func(*fakeMachine, error){
		"save":    func(f *fakeMachine, err error) { f.failSave = err },
		"collect": func(f *fakeMachine, err error) { f.failCollect = err },
		"freeze":  func(f *fakeMachine, err error) { f.failFreeze = err },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.awaitProtected()
			m := p.a.host.newest()
			set := func(err error) {
				m.mu.Lock()
				fail(m, err)
				m.mu.Unlock()
			}
			set(errors.New("injected"))
			p.await("the loss of protection", func() bool { return p.a.noticed(role.NoticeUnprotected) })
			p.awaitFrames(200)
			set(nil)
			p.awaitProtected()
			p.awaitFrames(200)
			p.a.stop()
			p.await("the takeover", func() bool { return p.b.phase() == role.PhaseSolo })
			p.world.check()
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(a, b *Config, ha, hb *fakeHost)
		want   string
	}{
		"memory":   {func(_, _ *Config, _, hb *fakeHost) { hb.memory = 8 << 20 }, "memory size differs: the guest has 16 MiB, the machine here 8 MiB"},
		"CPU":      {func(_, _ *Config, _, hb *fakeHost) { hb.twinError = errors.New("the twin's CPU lacks avx512f") }, "the twin's CPU lacks avx512f"},
		"VM":       {func(_, b *Config, _, _ *fakeHost) { b.VM = "other" }, "another VM"},
		"name":     {func(_, b *Config, _, _ *fakeHost) { b.Node = "a" }, "both nodes are called"},
		"identity": {func(a, _ *Config, _, _ *fakeHost) { a.PeerName = "somebody-else" }, "somebody-else"},
	} {
		t.Run(name, func(t *testing.T) {
			logs := &logSink{}
			p := newPair(t, func(a, b *Config, ha, hb *fakeHost) {
				a.Logger = logs.logger()
				tt.change(a, b, ha, hb)
			})
			p.await("the refusal", func() bool { return strings.Contains(logs.String(), tt.want) })
			p.awaitFrames(100) // alone
			if p.a.phase() == role.PhaseProtected {
				t.Error("protected all the same")
			}
		})
	}
}

// TestGuestStops: the guest powers off by itself, and the twin must not bring it back.
func TestGuestStops(t *testing.T) {
	p := newPair(t)
	p.awaitProtected()
	m := p.a.host.newest()
	m.mu.Lock()
	m.over = true
	m.wake.Broadcast()
	m.mu.Unlock()
	select {
	case <-p.a.done:
	case <-time.After(patience):
		t.Fatal("a goes on")
	}
	if p.a.err != nil {
		t.Error(p.a.err)
	}
	p.await("b to drop its copy", func() bool { return p.b.phase() == role.PhaseFree })
	p.world.check()
}

// TestLargeEpochs: epochs many times as large as staging, from a guest that stands still for them.
func TestLargeEpochs(t *testing.T) {
	p := newPair(t, func(a, b *Config, ha, hb *fakeHost) {
		a.AreaPages, b.AreaPages = 3, 3
		a.Pace = primary.Pace{Interval: 40 * time.Millisecond, MinInterval: 40 * time.Millisecond, MaxRounds: 2}
		b.Pace = a.Pace
		ha.change = func(f *fakeMachine) { f.pace = 0 }
	})
	p.awaitProtected()
	p.await("large epochs", func() bool { return p.a.Status().Stats.Oversized > 10 })
	p.a.stop()
	p.await("the takeover", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(100)
	p.world.check()
}

// TestSlowLink: a link that carries far less than the guest changes. The next capture waits, nothing grows, nothing is lost.
func TestSlowLink(t *testing.T) {
	p := newPair(t, func(_, _ *Config, ha, _ *fakeHost) { ha.change = func(f *fakeMachine) { f.pace = 0 } })
	p.awaitProtected()
	p.proxy.slow.Store(int64(20 * time.Millisecond)) // 800 KB/s
	var most uint64
	before := p.a.Status().Stats.Commits
	for start := time.Now(); time.Since(start) < 2*time.Second; time.Sleep(time.Millisecond) {
		most = max(most, p.a.Status().Stats.Lag)
	}
	if most > 2 {
		t.Errorf("%d epochs captured and not acknowledged", most)
	}
	p.await("an epoch to get through", func() bool { return p.a.Status().Stats.Commits > before })
	p.proxy.slow.Store(0)
	p.awaitProtected()
	p.awaitFrames(100)
	p.a.stop()
	p.await("the takeover", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(100)
	p.world.check()
}

// TestIdleGuest: a guest that does nothing is checkpointed rarely.
func TestIdleGuest(t *testing.T) {
	p := newPair(t, func(a, _ *Config, ha, _ *fakeHost) {
		ha.change = func(f *fakeMachine) { f.idle = true }
		a.Pace = primary.Pace{Interval: 5 * time.Millisecond, IdleMax: 100 * time.Millisecond}
	})
	p.awaitProtected()
	time.Sleep(300 * time.Millisecond) // the interval grows
	before := p.a.Status().Stats.Commits
	time.Sleep(time.Second)
	if n := p.a.Status().Stats.Commits - before; n < 3 || n > 20 {
		t.Errorf("%d epochs in a second of an idle guest", n)
	}
}

func TestBadConfig(t *testing.T) {
	good := newPair(t)
	base := good.config("c", &fakeHost{w: good.world})
	for name, change := range map[string]func(*Config){
		"no VM":          func(c *Config) { c.VM = "" },
		"no node":        func(c *Config) { c.Node = "" },
		"both ends":      func(c *Config) { c.Listen, c.Dial = "localhost:0", "localhost:1" },
		"no credentials": func(c *Config) { c.Listen, c.Credentials = "localhost:0", nil },
		"bad address":    func(c *Config) { c.Dial = "nowhere" },
		"negative":       func(c *Config) { c.Heartbeat = -1 },
		"unsafe":         func(c *Config) { c.UnsafeTakeover = true },
	} {
		c := base
		change(&c)
		if _, err := New(c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	inUse := base
	inUse.Listen = good.b.Addr().String()
	if _, err := New(inUse); err == nil || !strings.Contains(fmt.Sprint(err), "in use") {
		t.Errorf("port in use: %v", err)
	}
}
