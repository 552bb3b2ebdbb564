package role

import (
	"errors"
	"strings"
	"testing"
)

func TestNewRefuses(t *testing.T) {
	good := simConfig(Arbitrated)
	good.Self = memberOf(0, 1)
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*Config){
		"no name":         func(c *Config) { c.Self.Node = "" },
		"a long name":     func(c *Config) { c.Self.Node = Node(strings.Repeat("x", maxNode+1)) },
		"no incarnation":  func(c *Config) { c.Self.Incarnation = 0 },
		"unknown arbiter": func(c *Config) { c.Arbiter = Unsafe + 1 },
		"no retry":        func(c *Config) { c.RetryTicks = 0 },
		"no status":       func(c *Config) { c.StatusTicks = 0 },
		"no ack bound":    func(c *Config) { c.AckTicks = 0 },
		"no stall bound":  func(c *Config) { c.StallTicks = 0 },
		"no sync pause":   func(c *Config) { c.SyncTicks = 0 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := good
			spoil(&cfg)
			if _, err := New(cfg); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v, want ErrConfig", err)
			}
		})
	}
}

func TestNothingBeforeStart(t *testing.T) {
	r := newRig(simConfig(Arbitrated), guardNone)
	cfg := r.m.cfg
	cfg.Self = memberOf(0, 1)
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range []Event{Tick(1), PeerUp(memberOf(1, 2)), Force(), Observed(1, Record{})} {
		if acts := m.Step(ev); len(acts) != 0 {
			t.Errorf("%v before start: %v", ev.Kind, acts)
		}
	}
}

// protectedPair returns the machines of a protected pair, a and b.
func protectedPair(tb testing.TB) (a, b *Machine) {
	tb.Helper()
	r := newRig(simConfig(Arbitrated), guardNone)
	if !r.repair() {
		tb.Fatalf("no protection: %s", r.violation)
	}
	for i, m := range []**Machine{&a, &b} {
		cfg := simConfig(Arbitrated)
		cfg.StatusTicks, cfg.AckTicks = 1<<40, 1<<40
		cfg.Self = memberOf(i, r.hosts[i].run)
		*m = &Machine{cfg: cfg, out: make([]Action, 0, 16), state: r.hosts[i].st}
		(*m).tell, (*m).news = 1<<40, false
	}
	return a, b
}

// TestEpochAllocatesNothing holds the promise of the hot path.
func TestEpochAllocatesNothing(t *testing.T) {
	a, b := protectedPair(t)
	n, released := a.captured, 0
	allocs := testing.AllocsPerRun(1000, func() {
		n++
		a.Step(Captured(n, false))
		b.Step(Completed(b.session, n))
		a.Step(Tick(1))
		for _, act := range a.Step(Acked(a.session, n)) {
			if act.Kind == ActionRelease && act.Epoch == n {
				released++
			}
		}
	})
	if allocs != 0 {
		t.Errorf("an epoch allocates %v times", allocs)
	}
	if released < 1000 {
		t.Errorf("%d epochs were released", released)
	}
}

func BenchmarkEpoch(b *testing.B) {
	x, y := protectedPair(b)
	n := x.captured
	b.ReportAllocs()
	for b.Loop() {
		n++
		x.Step(Captured(n, false))
		y.Step(Completed(y.session, n))
		x.Step(Acked(x.session, n))
	}
}

// TestNames checks that whatever an operator may get to see has a name.
func TestNames(t *testing.T) {
	for p := range PhaseClaiming + 1 {
		if p.String() == "unknown" {
			t.Errorf("phase %d has no name", p)
		}
	}
	for k := EventStart; k <= EventForce; k++ {
		if k.String() == "unknown" {
			t.Errorf("event %d has no name", k)
		}
	}
	for k := ActionHold; k <= ActionRaise; k++ {
		if k.String() == "unknown" || (Action{Kind: k}).String() == "" {
			t.Errorf("action %d has no name", k)
		}
	}
	for n := NoticeProtected; n <= NoticeRefused; n++ {
		if n.String() == "unknown" {
			t.Errorf("notice %d has no name", n)
		}
	}
	if got := Phase(200).String(); got != "unknown" {
		t.Errorf("phase 200 is called %q", got)
	}
}

func TestRecordNewer(t *testing.T) {
	at := func(gen, rev uint64, node Node) Record {
		return Record{Generation: gen, Revision: rev, Active: Member{Node: node, Incarnation: 1}}
	}
	ordered := []Record{{}, at(1, 1, "a"), at(1, 2, "a"), at(1, 2, "b"), at(1, 9, "a"), at(2, 3, "a"), at(3, 3, "a")}
	for i, x := range ordered {
		for j, y := range ordered {
			if got, want := x.newer(y), i > j; got != want {
				t.Errorf("%v newer than %v: %v, want %v", x, y, got, want)
			}
		}
	}
}

// TestView checks what an operator gets to see of a pair.
func TestView(t *testing.T) {
	a, b := protectedPair(t)
	v := a.View()
	if v.Phase != PhaseProtected || v.Generation != 1 || !v.Held || !v.PeerUp || !v.Settled || v.Peer != b.cfg.Self {
		t.Errorf("the primary shows %+v", v)
	}
	if w := b.View(); w.Phase != PhaseStandby || w.Generation != 0 || w.Complete == 0 || w.Record != v.Record {
		t.Errorf("the standby shows %+v", w)
	}
}
