package role

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	flagSeed = flag.Uint64("role.seed", 0, "replay this one run of the simulation, with its transcript")
	flagRuns = flag.Uint64("role.runs", 100_000, "number of runs of the simulation")
	flagFrom = flag.Uint64("role.from", 1, "seed of the first run of the simulation")
)

// TestSimulation explores the role protocol at random: every seed is a run
// with its own mixture of faults, invariants are checked after every step, and
// in the end everything is repaired and the pair has to be protected again.
func TestSimulation(t *testing.T) {
	simulation(t, Arbitrated, *flagRuns)
}

// TestSimulationWithoutArbiter checks that without an arbiter nothing is worse
// but the lack of automatic takeover: a pair still never runs twice.
func TestSimulationWithoutArbiter(t *testing.T) {
	simulation(t, Unarbitrated, *flagRuns/10)
}

func simulation(t *testing.T, mode Arbiter, runs uint64) {
	begin := func() *rig { return newRig(simConfig(mode), guardNone) }
	if seed := *flagSeed; seed != 0 {
		told, v := transcript(begin(), seed)
		if t.Log(told); v != "" {
			t.Fatalf("seed %d: %s", seed, v)
		}
		return
	}
	start := time.Now()
	runs = max(runs/raceFactor, 1)
	total := explore(t, runs, begin)
	t.Logf("%d runs in %v: %v", runs, time.Since(start).Round(time.Millisecond), total)
}

// tally counts what happened in many runs, so that one can see that the
// simulation gets to where it should.
type tally struct {
	moves, takeovers, boots, protected, handovers, capped, single uint64
}

func (a *tally) add(b tally) {
	a.moves += b.moves
	a.takeovers += b.takeovers
	a.boots += b.boots
	a.protected += b.protected
	a.handovers += b.handovers
	a.capped += b.capped
	a.single += b.single
}

func (a tally) String() string {
	return fmt.Sprintf("%d moves, %d takeovers (%d of them handovers), %d boots, %d times protected again, %d single-fault runs, %d runs cut short",
		a.moves, a.takeovers, a.handovers, a.boots, a.protected, a.single, a.capped)
}

// explore makes runs on all processors and fails t with the transcript of the
// first violation that it finds.
func explore(t *testing.T, runs uint64, newRig func() *rig) tally {
	t.Helper()
	var (
		wg    sync.WaitGroup
		next  atomic.Uint64
		bad   atomic.Uint64
		mu    sync.Mutex
		total tally
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			r, sum := newRig(), tally{}
			for {
				k := next.Add(1) - 1
				if k >= runs || bad.Load() != 0 {
					break
				}
				if r.simulate(*flagFrom+k) != "" {
					bad.CompareAndSwap(0, *flagFrom+k)
				}
				sum.add(r.tally)
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(sum)
		})
	}
	wg.Wait()
	if seed := bad.Load(); seed != 0 {
		told, v := transcript(newRig(), seed)
		t.Fatalf("%s\nseed %d: %s\nreplay: go test ./checkpoint/role -run '%s$' -role.seed=%d -v", told, seed, v, t.Name(), seed)
	}
	return total
}

// transcript runs a seed again and returns what happened, and the violation.
func transcript(r *rig, seed uint64) (told, violation string) {
	var b strings.Builder
	r.trace = func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	violation = r.simulate(seed)
	return b.String(), violation
}

// deck is a bag of moves to draw from; a kind that is in it twice comes twice
// as often.
type deck struct {
	kinds [256]moveKind
	n     int
}

func (d *deck) add(k moveKind, times int) {
	for ; times > 0 && d.n < len(d.kinds); times-- {
		d.kinds[d.n] = k
		d.n++
	}
}

// ordinary is what happens when nothing goes wrong, with weights.
var ordinary = [...]struct {
	kind  moveKind
	times int
}{
	{moveDeliver, 40},
	{moveExecute, 14},
	{moveAnswer, 14},
	{moveConnect, 6},
	{moveHear, 10},
	{moveTick, 10},
	{moveSyncReady, 6},
	{moveWork, 10},
	{moveCapture, 12},
}

// mishaps is what may go wrong.
var mishaps = [...]moveKind{
	moveRepeat, moveLose, movePeerLost, moveAnswerTwo, moveLoseAsk, moveGiveUp, moveSyncFailed,
	moveBufferFull, moveCrash, moveSleep, moveFault, moveSwitchover, moveFence, moveCut,
	moveArbiterDown, moveArbiterCut, moveGuestStops,
}

// fatal reports whether a mishap of kind k may end the guest where nobody may
// take over without an operator.
func fatal(k moveKind) bool { return k == moveCrash || k == moveFault || k == moveFence }

// remedy maps a mishap that lasts to what ends it.
var remedy = map[moveKind]moveKind{
	moveCrash: moveRestart, moveSleep: moveWake, moveFault: moveRepair, moveFence: moveRepair, moveGuestStops: moveRepair,
	moveCut: moveMend, moveArbiterDown: moveArbiterUp, moveArbiterCut: moveArbiterMend,
}

// simulate makes the run of one seed and returns the violation, if any.
func (r *rig) simulate(seed uint64) string {
	rnd := rand.New(rand.NewPCG(seed, 0x706f6c6c7578))
	r.tally = tally{}
	r.reset()
	switch {
	case r.m.cfg.Arbiter == Arbitrated && rnd.IntN(4) == 0:
		r.single(rnd)
	default:
		r.chaos(rnd)
	}
	if r.full {
		r.tally.capped++
	}
	r.tally.moves, r.tally.takeovers, r.tally.boots = uint64(r.now), uint64(r.takeovers), uint64(r.boots)
	r.tally.handovers = uint64(r.handovers)
	return r.violation
}

// chaos mixes faults of several kinds for a while, then repairs everything.
func (r *rig) chaos(rnd *rand.Rand) {
	if rnd.IntN(4) != 0 {
		r.repair() // most runs begin with a protected pair
	}
	var d deck
	for _, o := range ordinary {
		d.add(o.kind, o.times)
	}
	rare := 2 + rnd.IntN(7)
	for _, k := range mishaps {
		if r.m.cfg.Arbiter != Arbitrated && fatal(k) {
			continue
		}
		if rnd.IntN(rare) == 0 {
			d.add(k, 1+rnd.IntN(3))
			if cure, ok := remedy[k]; ok {
				d.add(cure, 2+rnd.IntN(4))
			}
		}
	}
	r.wander(rnd, &d, 60+rnd.IntN(240))
	if r.violation == "" && !r.full {
		r.mustHeal()
	}
}

// wander makes n moves drawn from d.
func (r *rig) wander(rnd *rand.Rand, d *deck, n int) {
	for tries := 4 * n; n > 0 && tries > 0 && r.violation == "" && !r.full; tries-- {
		x := rnd.Uint64()
		mv := move{kind: d.kinds[int(x>>32)%d.n], node: uint8(x & 1), arg: 0}
		if x&6 == 0 { // now and then out of order
			mv.arg = uint8(x>>8) % maxMessages
		}
		if r.try(mv) {
			n--
		}
	}
}

// mustHeal repairs everything and fails unless the pair is protected (I5).
func (r *rig) mustHeal() {
	if r.repair() {
		r.tally.protected++
	} else if r.violation == "" && !r.full {
		r.fail("I5: all is repaired, but %v and %v, and the arbiter says %v",
			r.hosts[0].st.phase, r.hosts[1].st.phase, r.rec)
	}
}

// repair ends all faults and lets everything run its ordinary course until the
// pair is protected; it reports whether that happened.
func (r *rig) repair() bool {
	r.logf("all faults end")
	r.cut, r.arbCut, r.arbDown = [2]bool{}, [2]bool{}, false
	for i := range uint8(2) {
		r.try(move{kind: moveWake, node: i})
		r.try(move{kind: moveRestart, node: i})
	}
	for range 120 {
		if r.violation != "" || r.full || r.protected() {
			break
		}
		r.try(move{kind: moveRepair})
		r.try(move{kind: moveRepair, node: 1})
		r.round()
	}
	return r.violation == "" && !r.full && r.protected()
}

// round lets everything that can happen without a fault happen once.
func (r *rig) round() {
	r.roundOf(moveHear, moveTick, moveSyncReady, moveWork, moveCapture)
}

// roundOf is a round with only some of the moves of a host.
func (r *rig) roundOf(kinds ...moveKind) {
	for i := range uint8(2) {
		h := &r.hosts[i]
		if peer := &r.hosts[1-i]; h.conn != 0 && h.conn != peer.conn && h.conn != peer.upConn {
			r.try(move{kind: movePeerLost, node: i})
		}
		if h.pending != 0 && !r.asked(int(i), h.pending) {
			r.try(move{kind: moveGiveUp, node: i})
		}
	}
	r.try(move{kind: moveConnect})
	for i := range uint8(2) {
		for _, k := range kinds {
			r.try(move{kind: k, node: i})
		}
		for n := r.nnet[i]; n > 0; n-- {
			r.try(move{kind: moveDeliver, node: i})
		}
	}
	for k := r.nasks; k > 0; k-- {
		r.try(move{kind: moveExecute})
		if !r.try(move{kind: moveAnswer}) {
			r.try(move{kind: moveLoseAsk})
		}
	}
}

// asked reports whether the request id of node i is on its way.
func (r *rig) asked(i int, id uint64) bool {
	for _, q := range r.asks[:r.nasks] {
		if int(q.node) == i && q.run == r.hosts[i].run && q.id == id {
			return true
		}
	}
	return false
}

// single makes one fault hit a protected pair and checks I4: the guest goes
// on, its history with it, on exactly one node.
func (r *rig) single(rnd *rand.Rand) {
	r.tally.single++
	if !r.repair() {
		if !r.full {
			r.fail("I5: a new pair isn't protected")
		}
		return
	}
	var calm deck
	for _, o := range ordinary {
		calm.add(o.kind, o.times)
	}
	r.wander(rnd, &calm, rnd.IntN(60))
	if !r.protected() || r.violation != "" || r.full {
		return
	}
	boots, i := r.boots, uint8(rnd.IntN(2))
	faults := [...]moveKind{
		moveCrash, moveFault, moveSleep, moveCut, moveArbiterDown, moveArbiterCut, movePeerLost, moveFence,
	}
	fault := faults[rnd.IntN(len(faults))]
	r.try(move{kind: fault, node: i})
	if fault == moveCut && rnd.IntN(2) == 0 {
		r.try(move{kind: moveCut, node: 1 - i}) // both directions
	}
	// While the fault lasts, messages flow otherwise. Whoever can't hear the
	// other gives up on it.
	r.wander(rnd, &calm, 20+rnd.IntN(60))
	for k := 0; k < 30 && r.violation == "" && !r.full; k++ {
		for n := range uint8(2) {
			if dead := r.hosts[1-n].run == 0 || r.hosts[1-n].asleep || r.cut[n]; dead {
				r.try(move{kind: movePeerLost, node: n})
			}
		}
		r.round()
	}
	if r.violation != "" || r.full {
		return
	}
	if n, _ := r.running(); n != 1 {
		r.fail("I4: after %v of %s, %d copies run (%v and %v), and the arbiter says %v", fault, nodeNames[i], n,
			r.hosts[0].st.phase, r.hosts[1].st.phase, r.rec)
	}
	if r.mustHeal(); r.boots != boots {
		r.fail("I4: after a single fault the guest was booted anew")
	}
}
