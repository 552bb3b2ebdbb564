package e2e

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/guests/register/history"
)

func dialTCP(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, time.Second) }

// load is traffic on the guest, with everything that the clients saw.
type load struct {
	p       *pair
	history *history.History
	cancel  context.CancelFunc
	done    chan error
}

func (p *pair) load() *load {
	p.t.Helper()
	p.await("the guest to be up", func() bool { return strings.Contains(p.console("a"), "ready") })
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{p: p, history: history.New(), cancel: cancel, done: make(chan error, 1)}
	go func() {
		l.done <- history.Load(ctx, history.LoadOptions{
			Address: guestIP + ":7777", UDP: 4, Pace: time.Millisecond, UDPTimeout: 100 * time.Millisecond,
		}, l.history)
	}()
	p.t.Cleanup(cancel)
	l.awaitAnswers(50)
	return l
}

// longestGap is what clients may see at worst in a test that takes no more than one thing away. It is far above what a takeover
// takes, because the machine that runs the tests may be busy with others.
const longestGap = 10 * time.Second

// awaitAnswers waits for n more answers.
func (l *load) awaitAnswers(n uint64) {
	l.p.t.Helper()
	from := l.history.Snapshot().Answers
	l.p.await("answers of the guest", func() bool { return l.history.Snapshot().Answers >= from+n })
}

// end stops the traffic and judges it.
func (l *load) end() history.Stats {
	l.p.t.Helper()
	l.cancel()
	if err := <-l.done; err != nil {
		l.p.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r := l.history.Check(ctx)
	if err := r.Err(); err != nil {
		l.p.t.Error(err)
	}
	if r.Stats.LongestGap > longestGap {
		l.p.t.Errorf("a client was without an answer for %v from %v on", r.Stats.LongestGap, r.Stats.LongestGapFrom.UTC().Format(time.RFC3339Nano))
	}
	return r.Stats
}

const serving = "mode=serve+dirty pattern=random order=scattered ws=500 rate=5000 ip=10.77.0.2/24 gw=10.77.0.1"

// checkConsole fails the test if the guest has found its memory wrong anywhere.
func (p *pair) checkConsole(names ...string) {
	p.t.Helper()
	for _, n := range names {
		if i := strings.Index(p.console(n), "panic:"); i >= 0 {
			p.t.Errorf("the guest on %s: %.200s", n, p.console(n)[i:])
		}
	}
}

// TestPrimaryIsKilled: the primary's process is gone in mid-traffic. Clients see a gap, and nothing else.
func TestPrimaryIsKilled(t *testing.T) {
	p := newPair(t)
	p.awaitProtected(p.a, p.b)
	l := p.load()
	l.awaitAnswers(500)
	before := p.a.protection()
	p.a.kill()
	killed := time.Now()
	p.await("the takeover", func() bool { return p.b.protection().Active })
	l.awaitAnswers(500)
	stats := l.end()
	p.checkConsole("a", "b")
	after := p.b.protection()
	if after.Takeover == nil {
		t.Fatalf("no takeover in %+v", after)
	}
	t.Logf("protected: %d epochs, %d/s, %d dirty pages, pause p50 %.0f us p99 %.0f us, commit p50 %.0f us; answers p50 %v p99 %v",
		before.Stats.Commits, before.Stats.Rate, before.Stats.Dirty, before.Stats.Phases["pause"].P50, before.Stats.Phases["pause"].P99,
		before.Stats.Phases["commit"].P50, stats.P50, stats.P99)
	t.Logf("takeover from epoch %d: %v (arbiter %v, load %v, start %v)", after.Takeover.Epoch, after.Takeover.Total,
		after.Takeover.Arbiter, after.Takeover.Load, after.Takeover.Start)
	x, y := l.history.AnswersBefore(killed)
	t.Logf("%d answers before, %d after, longest gap %v", x, y, stats.LongestGap)
}

// TestFailoversBackAndForth: whoever runs the guest is killed, comes back as the other's twin, and so on.
func TestFailoversBackAndForth(t *testing.T) {
	p := newPair(t)
	l := p.load()
	for i := range 4 {
		active, twin := p.a, p.b
		if i%2 == 1 {
			active, twin = p.b, p.a
		}
		p.awaitProtected(active, twin)
		l.awaitAnswers(200)
		active.kill()
		p.await("the takeover", func() bool { return twin.protection().Active })
		l.awaitAnswers(200)
		if i%2 == 0 {
			p.a = p.primary("a")
		} else {
			p.b = p.standby()
		}
	}
	p.awaitProtected(p.a, p.b)
	stats := l.end()
	p.checkConsole("a", "b")
	t.Logf("%d answers, longest gap %v", stats.Answers, stats.LongestGap)
}

// TestTwinIsKilled: the twin is gone and a new one comes. Clients must not notice more than a pause.
func TestTwinIsKilled(t *testing.T) {
	p := newPair(t)
	p.awaitProtected(p.a, p.b)
	l := p.load()
	for range 3 {
		p.b.kill()
		l.awaitAnswers(200)
		p.b = p.standby()
		p.awaitProtected(p.a, p.b)
		l.awaitAnswers(200)
	}
	stats := l.end()
	p.checkConsole("a")
	t.Logf("%d answers, longest gap %v", stats.Answers, stats.LongestGap)
}

// TestPrimarySleeps: the primary stands still for longer than its twin waits, and wakes up believing that it is still primary. Not one
// answer of its own may reach a client.
func TestPrimarySleeps(t *testing.T) {
	p := newPair(t)
	p.awaitProtected(p.a, p.b)
	l := p.load()
	p.a.signal(unix.SIGSTOP)
	p.await("the takeover", func() bool { return p.b.protection().Active })
	l.awaitAnswers(300)
	p.a.signal(unix.SIGCONT)
	l.awaitAnswers(300)
	p.awaitProtected(p.b, p.a) // fenced, and of use again
	l.awaitAnswers(300)
	stats := l.end()
	p.checkConsole("a", "b")
	t.Logf("%d answers, longest gap %v", stats.Answers, stats.LongestGap)
}

// TestWitnessIsAway: without the witness protection goes on; with it back, a takeover works.
func TestWitnessIsAway(t *testing.T) {
	p := newPair(t)
	p.awaitProtected(p.a, p.b)
	l := p.load()
	p.witness.kill()
	l.awaitAnswers(500)
	p.a.kill()
	time.Sleep(500 * time.Millisecond)
	if p.b.protection().Active {
		t.Error("taken over without the arbiter's word")
	}
	p.witness = p.start("witness", job{Kind: "witness", Dir: p.dir + "/witness", Listen: witnessAddr})
	p.await("the takeover", func() bool { return p.b.protection().Active })
	l.awaitAnswers(300)
	l.end()
	p.checkConsole("a", "b")
}
