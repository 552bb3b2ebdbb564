package member

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/tlstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two members, A (which dials, and may boot) and B (which listens), with a proxy between them.
type pair struct {
	t       *testing.T
	world   *world
	arbiter *arbitertest.Fake
	proxy   *proxy
	pki     *tlstest.PKI
	a, b    *node
}

// node is one member and its run.
type node struct {
	*Member
	host   *fakeHost
	cancel context.CancelFunc
	done   chan struct{}
	err    error

	mu      sync.Mutex
	notices []role.Notice
}

var pace = primary.Pace{Interval: 2 * time.Millisecond, MinInterval: 300 * time.Microsecond, IdleMax: 10 * time.Millisecond}

func newPair(t *testing.T, change ...func(a, b *Config, ha, hb *fakeHost)) *pair {
	t.Helper()
	pki, err := tlstest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, world: &world{t: t}, arbiter: &arbitertest.Fake{}, pki: pki}
	ha := &fakeHost{w: p.world, node: "a", description: "fake v1"}
	hb := &fakeHost{w: p.world, node: "b"}
	ca, cb := p.config("a", ha), p.config("b", hb)
	ca.Create, ca.Boot = true, true
	cb.Listen = "127.0.0.1:0"
	for _, f := range change {
		f(&ca, &cb, ha, hb)
	}
	p.b = p.start(cb, hb)
	p.proxy = newProxy(t, p.b.Addr().String())
	ca.Dial = p.proxy.addr()
	p.a = p.start(ca, ha)
	return p
}

func (p *pair) config(name string, h *fakeHost) Config {
	p.t.Helper()
	cert, key, err := p.pki.Issue(name)
	if err != nil {
		p.t.Fatal(err)
	}
	creds, err := checkpoint.LoadCredentials(cert, key, p.pki.CAFile)
	if err != nil {
		p.t.Fatal(err)
	}
	return Config{
		VM: "vm", Node: name, Host: h, Arbiter: p.arbiter, Credentials: creds, Pace: pace, AreaPages: 64,
		Heartbeat: 20 * time.Millisecond, Misses: 40, Logger: testLogger(),
	}
}

func testLogger() *slog.Logger {
	if os.Getenv("POLLUX_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start runs a member until the test is over or stop is called.
func (p *pair) start(cfg Config, h *fakeHost) *node {
	p.t.Helper()
	n := &node{host: h, done: make(chan struct{})}
	cfg.Notify = func(a role.Action) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.notices = append(n.notices, a.Notice)
	}
	var err error
	if n.Member, err = New(cfg); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() {
		defer close(n.done)
		n.err = n.Run(ctx)
	}()
	p.t.Cleanup(n.stop)
	return n
}

func (n *node) stop() {
	n.cancel()
	<-n.done
}

func (n *node) phase() role.Phase { return n.Status().View.Phase }

func (n *node) noticed(want role.Notice) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, got := range n.notices {
		if got == want {
			return true
		}
	}
	return false
}

// patience is how long a test waits for what must happen; this machine may be busy with other things.
const patience = 30 * time.Second

func (p *pair) await(what string, cond func() bool) {
	p.t.Helper()
	for start := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			p.t.Fatalf("waited in vain for %s; a is %v, b is %v, record %v", what, p.a.phase(), p.b.phase(), p.arbiter.Record("vm"))
		}
	}
}

// awaitProtected waits until one of the two is protected by the other, and has had some epochs acknowledged since: a connection
// whose bytes were damaged or swallowed may look well until then.
func (p *pair) awaitProtected() {
	p.t.Helper()
	var active *node
	var commits uint64
	p.await("protection", func() bool {
		a, b := p.a.phase(), p.b.phase()
		now := p.a
		switch {
		case a == role.PhaseProtected && b == role.PhaseStandby:
		case b == role.PhaseProtected && a == role.PhaseStandby:
			now = p.b
		default:
			active = nil
			return false
		}
		if now != active {
			active, commits = now, now.Status().Stats.Commits
		}
		return active.Status().Stats.Commits >= commits+5
	})
}

// awaitFrames waits until the world has seen n more frames.
func (p *pair) awaitFrames(n uint64) {
	p.t.Helper()
	_, begin := p.world.seen()
	p.await(fmt.Sprintf("%d more frames", n), func() bool {
		_, now := p.world.seen()
		return now >= begin+n
	})
}

func TestProtectAndTakeOver(t *testing.T) {
	p := newPair(t)
	p.awaitProtected()
	p.awaitFrames(2000)
	before, _ := p.world.seen()
	p.a.stop() // as a crash: the outputs are fenced, the link is closed
	p.await("the takeover", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(500)
	after, _ := p.world.seen()
	if after <= before {
		t.Errorf("counter went from %d to %d", before, after)
	}
	p.world.check()
	s := p.b.Status()
	if s.Takeover == nil || s.Takeover.Epoch == 0 || s.Takeover.Total <= 0 {
		t.Errorf("takeover not measured: %+v", s.Takeover)
	}
	t.Logf("took over from epoch %d in %v (arbiter %v, load %v, start %v)", s.Takeover.Epoch, s.Takeover.Total, s.Takeover.Arbiter, s.Takeover.Load, s.Takeover.Start)
	st := p.a.Status().Stats
	t.Logf("a: %d commits, pause p50 %.0f us p99 %.0f us, commit p50 %.0f us", st.Commits, st.Phases["pause"].P50, st.Phases["pause"].P99, st.Phases["commit"].P50)
	if r := p.arbiter.Record("vm"); r.Generation != 2 || r.Active.Node != "b" || !r.Standby.IsZero() {
		t.Errorf("record %v", r)
	}
}
