package role

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/maphash"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var flagDepth = flag.Int("role.depth", 0, "make the exhaustive search this much wider, up to 3 million states a scenario")

// budget is how often each kind of move may be made, for those that are
// counted; what isn't in it may not happen, but for what is in free.
type budget [moveKinds]uint8

// free are the moves that may happen at any time: without them nothing would
// come to an end.
var free = [moveKinds]bool{moveDeliver: true, moveExecute: true, moveAnswer: true, moveHear: true, moveTick: true}

// search is an exhaustive search of a small configuration: every order of
// every choice within a budget, from one starting point.
type search struct {
	*rig
	left    budget
	seen    map[[2]uint64]struct{}
	seeds   [2]maphash.Seed
	key     []byte
	path    []move
	healed  int // states from which healing was tried
	edges   int
	limit   int
	limited bool
}

// TestSearch visits every state of small configurations, checks the invariants
// in each, and tries from a part of them whether the pair heals.
func TestSearch(t *testing.T) {
	begin := time.Now()
	var total atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d states in %v", total.Load(), time.Since(begin).Round(time.Millisecond))
	})
	for _, sc := range scenarios(uint8(*flagDepth)) {
		if raceFactor > 1 && sc.large {
			continue // nothing in here is concurrent
		}
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			s := newSearch(sc.left)
			sc.begin(s.rig)
			start := s.world
			if s.visit(); s.violation != "" {
				t.Fatal(s.retrace(&start))
			}
			t.Logf("%d states, %d steps, healed from %d", len(s.seen), s.edges, s.healed)
			if s.limited && *flagDepth == 0 {
				t.Errorf("stopped at %d states", s.limit)
			}
			total.Add(int64(len(s.seen)))
		})
	}
}

// scenario is a starting point and what may happen from there.
type scenario struct {
	name  string
	large bool
	begin func(*rig)
	left  budget
}

func scenarios(wider uint8) []scenario {
	return []scenario{
		{"a protected pair, a lost link", false, beginProtected, budget{
			movePeerLost: 2, moveWork: 1, moveCapture: 1, moveGiveUp: 1 + wider, moveLoseAsk: wider,
		}},
		{"a protected pair, a crash and a restart", true, beginProtected, budget{
			movePeerLost: 1, moveWork: 1, moveCapture: 1, moveCrash: 1, moveRestart: 1, moveConnect: 1,
			moveGiveUp: wider,
		}},
		{"a protected pair, both hosts lost", false, beginProtected, budget{
			moveCrash: 2, moveRestart: 2, moveConnect: 1, movePeerLost: wider,
		}},
		{"a pair that is being formed", true, beginSynced, budget{
			moveSyncReady: 1, moveCapture: 1, moveWork: 1, movePeerLost: 2, moveGiveUp: 1, moveLoseAsk: wider,
		}},
		{"a fault while the twin is being entitled", true, beginPairing, budget{
			moveFault: 1, moveRepair: 1, moveGiveUp: 1, movePeerLost: wider,
		}},
		{"a switchover", true, beginProtected, budget{
			moveSwitchover: 1, moveWork: 1, moveCapture: 2, movePeerLost: 1 + wider, moveGiveUp: 1,
		}},
		{"a primary that sleeps", false, beginProtected, budget{
			moveSleep: 1, moveWake: 1, moveWork: 1, moveCapture: 1, movePeerLost: 1 + wider, moveGiveUp: wider,
		}},
		{"a copy that fails and is repaired", true, beginProtected, budget{
			moveFault: 1, moveRepair: 1, movePeerLost: 1 + wider, moveWork: 1, moveCapture: 1, moveGiveUp: wider,
		}},
	}
}

func newSearch(left budget) *search {
	cfg := simConfig(Arbitrated)
	// Timers would only multiply the states: what they do early or late is
	// covered by moves. A status is sent when something changes.
	cfg.RetryTicks, cfg.SyncTicks = 1, 1
	cfg.StatusTicks, cfg.AckTicks = 1<<40, 1<<40
	return &search{
		rig: newRig(cfg, guardNone), left: left, seen: map[[2]uint64]struct{}{}, limit: 3_000_000,
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
	}
}

func beginProtected(r *rig) {
	r.repair()
	for range 10 { // let it come to rest
		r.try(move{kind: moveDeliver})
		r.try(move{kind: moveDeliver, node: 1})
	}
}

// beginSynced stops just before the final round of the first sync.
func beginSynced(r *rig) {
	r.round()
	for r.hosts[0].st.phase != PhaseSyncing || r.hosts[1].st.phase != PhaseReceiving {
		r.roundOf(moveHear, moveTick)
	}
}

// beginPairing stops when the swap that entitles the twin is on its way.
func beginPairing(r *rig) {
	beginSynced(r)
	r.try(move{kind: moveSyncReady})
	r.try(move{kind: moveCapture})
	for range 10 {
		r.try(move{kind: moveDeliver})
		r.try(move{kind: moveDeliver, node: 1})
	}
}

// visit makes every possible move from the present state, and so on.
func (s *search) visit() {
	if !s.enter() {
		return
	}
	here, left := s.world, s.left
	for mv := range s.moves() {
		if mv.kind == moveTick && s.idle(int(mv.node)) {
			continue
		}
		if !s.try(mv) {
			continue
		}
		s.edges++
		if !free[mv.kind] {
			s.left[mv.kind]--
		}
		s.path = append(s.path, mv)
		if s.violation == "" {
			s.visit()
		}
		if s.violation != "" {
			return
		}
		s.path = s.path[:len(s.path)-1]
		s.world, s.left = here, left
	}
}

// idle reports whether time changes nothing for node i.
func (s *search) idle(i int) bool {
	st := &s.hosts[i].st
	return st.retry == 0 && st.syncIn == 0
}

// moves yields whatever might be possible now and within the budget.
func (s *search) moves() func(yield func(move) bool) {
	return func(yield func(move) bool) {
		for k := range moveKinds {
			if !free[k] && s.left[k] == 0 {
				continue
			}
			args, nodes := uint8(1), uint8(2)
			switch {
			case k <= moveLose:
				args = max(s.nnet[0], s.nnet[1])
			case k >= moveExecute && k <= moveLoseAsk:
				args, nodes = s.nasks, 1
			case k == moveConnect:
				nodes = 1
			}
			for node := range nodes {
				for arg := range args {
					if k == moveExecute && (arg >= s.nasks || s.asks[arg].done) {
						continue
					}
					if !yield(move{kind: k, node: node, arg: arg}) {
						return
					}
				}
			}
		}
	}
}

// enter notes the present state and reports whether it is new.
func (s *search) enter() bool {
	s.encode()
	k := [2]uint64{maphash.Bytes(s.seeds[0], s.key), maphash.Bytes(s.seeds[1], s.key)}
	if _, old := s.seen[k]; old || s.limited {
		return false
	}
	s.seen[k] = struct{}{}
	s.limited = len(s.seen) >= s.limit
	if len(s.seen)%64 == 0 {
		s.heal()
	}
	return true
}

// heal checks from here that the pair is protected once all faults end.
func (s *search) heal() {
	here, cfg := s.world, s.m.cfg
	s.healed++
	s.m.cfg = simConfig(Arbitrated)
	for i := range s.hosts {
		s.hosts[i].st.tell, s.hosts[i].st.waited = 0, 0
	}
	if !s.repair() && s.violation == "" {
		s.fail("I5: all is repaired, but %v and %v, and the arbiter says %v",
			s.hosts[0].st.phase, s.hosts[1].st.phase, s.rec)
	}
	v := s.violation
	s.world, s.m.cfg = here, cfg
	s.violation = v
}

// retrace tells how the search came to where it is.
func (s *search) retrace(start *world) string {
	var b strings.Builder
	v := s.violation
	s.world = *start
	s.trace = func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, mv := range s.path {
		s.logf("%v %s %d", mv.kind, nodeNames[mv.node&1], mv.arg)
		s.try(mv)
	}
	return b.String() + v
}

// encode writes what matters of the present state to key. Numbers that only
// have to differ, or to grow, are replaced by how they compare.
func (s *search) encode() {
	s.key = append(s.key[:0], s.left[:]...)
	s.record(&s.rec)
	s.number(uint64(s.nhist), uint64(s.tip), uint64(s.runs))
	for _, p := range s.parent[:s.nhist] {
		s.number(uint64(p))
	}
	for _, t := range s.trunks[:s.ntrunks] {
		s.number(uint64(t))
	}
	for _, h := range s.heldBy[:s.runs+1] {
		s.number(uint64(h))
	}
	for i := range s.hosts {
		s.host(i)
	}
	for _, q := range s.asks[:s.nasks] {
		h := &s.hosts[q.node]
		if q.run != h.run && (q.done || !q.swap) {
			continue // nobody waits for it any more, and it changes nothing
		}
		s.number(uint64(q.node), uint64(q.run))
		s.flags(q.swap, q.done, q.id == h.st.inflight, q.id > h.st.verifyFrom, q.id == h.pending)
		s.record(&q.old)
		s.record(&q.new)
		s.record(&q.answer)
	}
	for to := range s.net {
		for k := range s.net[to][:s.nnet[to]] {
			s.message(to, k)
		}
	}
}

func (s *search) number(list ...uint64) {
	for _, n := range list {
		s.key = binary.AppendUvarint(s.key, n)
	}
}

func (s *search) flags(list ...bool) {
	var n uint64
	for i, b := range list {
		if b {
			n |= 1 << i
		}
	}
	s.number(n)
}

func (s *search) record(r *Record) {
	s.number(r.Revision, r.Generation, r.Active.Incarnation, r.Standby.Incarnation)
}

func (s *search) host(i int) {
	h, peer := &s.hosts[i], &s.hosts[1-i]
	s.number(uint64(h.run))
	if h.run == 0 {
		return
	}
	st := &h.st
	s.flags(h.asleep, h.woke > s.moved, h.conn != 0, h.conn == peer.conn, h.upConn != 0, h.upConn == s.lastConn,
		h.guest, h.paused, h.off, h.open, h.epochs, h.capture, h.frozen, h.copied, h.pending != 0, h.pending == st.inflight,
		st.known, st.unsettled, st.mustRead, st.inflight != 0, st.verify, st.up, st.heard, st.paused, st.stopping,
		st.handover, st.alone, st.peerHeard >= st.witness, st.seen >= peer.st.witness,
		st.seen >= peer.st.verifySeq)
	s.number(uint64(h.head), h.gen, uint64(h.nheld), h.shipping, uint64(h.epoch), h.receiving,
		uint64(h.copyEpoch), uint64(h.copyAt), uint64(st.phase), st.generation, uint64(st.asked), st.retry,
		st.peer.Incarnation, uint64(st.peerPhase), st.peerSession, st.other.Incarnation, st.session, st.base,
		uint64(st.first), uint64(st.last), uint64(st.captured), uint64(st.acked), uint64(st.released),
		uint64(st.complete), st.syncIn, uint64(st.force))
	for _, x := range h.held[:h.nheld] {
		s.number(uint64(x.at), uint64(x.epoch))
	}
	s.record(&st.rec)
}

func (s *search) message(to, k int) {
	m, h := &s.net[to][k], &s.hosts[to]
	if h.run == 0 || m.conn != h.conn && m.conn != h.upConn {
		return // it will never arrive
	}
	s.number(uint64(m.kind))
	s.flags(m.conn == h.conn)
	if m.kind != messageStatus {
		s.number(m.session, uint64(m.epoch), uint64(m.at))
		return
	}
	order := uint64(0) // among those on the way
	for j := range s.net[to][:s.nnet[to]] {
		if o := &s.net[to][j]; o.kind == messageStatus && o.status.Seq < m.status.Seq {
			order++
		}
	}
	st := &m.status
	s.flags(st.Seq > h.st.seen, st.Heard >= h.st.witness, st.Heard >= h.st.verifySeq, st.Ask)
	s.number(order, st.From.Incarnation, st.To.Incarnation, uint64(st.Phase), st.Session)
	s.record(&st.Record)
}
