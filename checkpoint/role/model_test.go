package role

import "fmt"

// The model: two nodes, an arbiter, a network and a guest whose output tells
// its history. It is driven by moves, one at a time, which a random source
// (simulation_test.go) or an exhaustive search (search_test.go) picks. The
// machines in it are the real ones.
//
// A world holds no pointer and no slice, so that copying one is an assignment.

const (
	maxMessages = 6   // on the way in one direction; the oldest is lost beyond
	maxRequests = 6   // to the arbiter
	maxHistory  = 512 // steps of guests
	maxHeld     = 24  // steps whose output a netbuffer holds
	maxRuns     = 24  // incarnations
	maxGens     = 48  // generations
	maxTrunks   = 32  // histories that have ended
)

// hist is a step of a guest's history: an index into world.parent. The output
// of a step can be explained only by that step and all that came before it.
type hist = uint16

type messageKind uint8

const (
	messageStatus     messageKind = iota + 1
	messageCheckpoint             // from the active node
	messageAck                    // from the twin
)

type message struct {
	kind    messageKind
	conn    uint16
	status  Status
	session uint64
	epoch   Epoch
	full    bool // checkpoint: the end of a sync; needs nothing before it
	at      hist // checkpoint: the guest's history
}

// request is a question to the arbiter on its way there and back.
type request struct {
	node, run uint8
	id        uint64
	swap      bool
	old, new  Record
	done      bool // executed: answer is on the way back
	answer    Record
}

type heldStep struct {
	at    hist
	epoch Epoch
}

// host is one node: the process, its machine, and the caller of the machine,
// reduced to what matters.
type host struct {
	st     state
	run    uint8 // index of the incarnation; 0: the process isn't there
	asleep bool
	slept  uint64 // ticks missed
	woke   uint32 // world.now at the end of the last long sleep

	conn   uint16 // the connection as this host sees it; 0: none
	upConn uint16 // a connection that the machine doesn't know yet

	// Active.
	guest    bool
	paused   bool
	off      bool // it has powered off by itself
	head     hist
	gen      uint64
	open     bool // netbuffer: output isn't held
	held     [maxHeld]heldStep
	nheld    uint8
	shipping uint64 // session
	epoch    Epoch  // last captured
	epochs   bool   // the final round is captured: more epochs may follow
	capture  bool   // a capture was asked for
	frozen   bool   // and that one leaves the guest frozen

	// Twin.
	receiving uint64 // session
	copied    bool   // the copy is complete
	copyEpoch Epoch
	copyAt    hist

	pending uint64 // request to the arbiter that the caller waits for
}

// world is everything there is.
type world struct {
	now   uint32
	hosts [2]host
	runs  uint8

	rec       Record
	moved     uint32 // now, when the generation last changed
	paired    [maxGens]uint8
	asks      [maxRequests]request
	nasks     uint8
	arbDown   bool
	arbCut    [2]bool
	weak      bool                    // the arbiter compares all but the revision
	net       [2][maxMessages]message // by destination
	nnet      [2]uint8
	cut       [2]bool // by destination
	lastConn  uint16
	parent    [maxHistory]hist
	depth     [maxHistory]uint16
	nhist     hist
	tip       hist            // the newest history that anybody outside can know
	trunks    [maxTrunks]hist // the same of earlier histories, which a boot has ended
	ntrunks   uint8
	ownerOf   [maxGens]uint8 // run that released in a generation
	heldBy    [maxRuns]hist  // newest that a run has held completely
	boots     uint8
	takeovers uint8
	handovers uint8
	full      bool // a bound of the model is reached: end the run
	violation string
}

// rig drives a world. It holds what is not part of the state.
type rig struct {
	world
	m      Machine
	actBuf []Action
	tally  tally
	trace  func(format string, args ...any)
}

var nodeNames = [2]Node{"a", "b"}

func memberOf(node int, run uint8) Member {
	return Member{Node: nodeNames[node], Incarnation: uint64(run)}
}

func simConfig(a Arbiter) Config {
	return Config{Arbiter: a, RetryTicks: 2, StatusTicks: 3, AckTicks: 12, StallTicks: 5, SyncTicks: 2}
}

func newRig(cfg Config, off guard) *rig {
	r := &rig{m: Machine{cfg: cfg, off: off, out: make([]Action, 0, 16)}}
	r.reset()
	return r
}

func (r *rig) reset() {
	weak := r.weak
	r.world = world{weak: weak}
	r.nhist = 1 // history 0 is "nothing has happened"
	for i := range r.hosts {
		r.start(i)
	}
}

func (r *rig) logf(format string, args ...any) {
	if r.trace != nil {
		r.trace(format, args...)
	}
}

func (r *rig) fail(format string, args ...any) {
	if r.violation == "" {
		r.violation = fmt.Sprintf(format, args...)
		r.logf("VIOLATION: %s", r.violation)
	}
}

// start starts the process of node i.
func (r *rig) start(i int) {
	if r.runs+1 >= maxRuns {
		r.full = true
		return
	}
	r.runs++
	r.hosts[i] = host{run: r.runs}
	r.logf("%s starts as %v", nodeNames[i], memberOf(i, r.runs))
	r.step(i, Start(i == 0, true))
}

// step gives one event to node i's machine and carries out the actions.
func (r *rig) step(i int, ev Event) {
	h := &r.hosts[i]
	r.m.cfg.Self = memberOf(i, h.run)
	r.m.state = h.st
	before := r.m.phase
	acts := append(r.actBuf[:0], r.m.Step(ev)...)
	r.actBuf = acts
	h.st = r.m.state
	if r.m.cfg.Arbiter != Arbitrated && h.st.rec.newer(r.rec) {
		r.land(i, h.st.rec) // what a node grants itself takes the arbiter's place
	}
	if r.trace != nil {
		r.logf("  %s <- %s", nodeNames[i], describe(ev))
		if h.st.phase != before {
			r.logf("  %s is %v (was %v)", nodeNames[i], h.st.phase, before)
		}
	}
	for k := range acts {
		if r.trace != nil {
			r.logf("  %s -> %v", nodeNames[i], acts[k])
		}
		r.carryOut(i, &acts[k])
	}
	if h.st.phase == PhaseStopped {
		h.guest, h.open = false, false
	}
}

func (r *rig) carryOut(i int, a *Action) {
	h := &r.hosts[i]
	switch a.Kind {
	case ActionHold:
		h.open = false
	case ActionRelease:
		r.release(i, a.Epoch)
	case ActionReleaseAll:
		r.release(i, ^Epoch(0))
		h.open = true
	case ActionSend:
		r.send(i, &message{kind: messageStatus, status: a.Status})
	case ActionAck:
		r.send(i, &message{kind: messageAck, session: a.Session, epoch: a.Epoch})
	case ActionSwap, ActionRead:
		r.ask(i, a)
	case ActionStartSync:
		h.shipping, h.epochs = a.Session, false
	case ActionStopSync:
		h.shipping, h.epochs, h.capture = 0, false, false
	case ActionCapture:
		h.capture, h.frozen = true, a.Frozen
	case ActionPause:
		h.paused = true
	case ActionResume:
		h.paused = false
		if h.frozen {
			h.frozen, h.capture = false, false
		}
	case ActionBeginStandby:
		h.receiving, h.copied = a.Session, false
	case ActionDropCopy:
		h.receiving, h.copied = 0, false
	case ActionTakeOver:
		r.takeOver(i, a)
	case ActionBoot:
		r.boot(i, a)
	case ActionDestroy:
		h.guest, h.open, h.nheld, h.shipping, h.epochs, h.capture, h.paused, h.frozen =
			false, false, 0, 0, false, false, false, false
	}
}

func (r *rig) send(i int, m *message) {
	h, to := &r.hosts[i], 1-i
	if h.conn == 0 || r.cut[to] {
		return
	}
	m.conn = h.conn
	n := r.nnet[to]
	if n == maxMessages {
		copy(r.net[to][:], r.net[to][1:])
		n--
	}
	r.net[to][n] = *m
	r.nnet[to] = n + 1
}

func (r *rig) removeMessage(to int, k uint8) {
	n := r.nnet[to]
	copy(r.net[to][k:n], r.net[to][k+1:n])
	r.nnet[to] = n - 1
	r.net[to][n-1] = message{}
}

// deliver hands message k to node i.
func (r *rig) deliver(i int, k uint8, keep bool) {
	m := r.net[i][k]
	if !keep {
		r.removeMessage(i, k)
	}
	h := &r.hosts[i]
	if h.run == 0 || h.conn != m.conn {
		return
	}
	switch m.kind {
	case messageStatus:
		r.step(i, StatusReceived(m.status))
	case messageAck:
		r.step(i, Acked(m.session, m.epoch))
	case messageCheckpoint:
		if m.session != h.receiving {
			return
		}
		if h.guest {
			// It was on its way through the host when the takeover came.
			r.step(i, Completed(m.session, m.epoch))
			return
		}
		if !m.full && (!h.copied || m.epoch != h.copyEpoch+1) {
			return // its predecessor is missing
		}
		if m.full && h.copied {
			return // a duplicate
		}
		if h.st.phase != PhaseClaiming {
			// A claim has frozen the copy at its newest checkpoint.
			h.copied, h.copyEpoch, h.copyAt = true, m.epoch, m.at
			if !r.ancestor(m.at, r.heldBy[h.run]) {
				r.heldBy[h.run] = m.at
			}
		}
		r.step(i, Completed(m.session, m.epoch))
	}
}

// ask puts a request to the arbiter on its way.
func (r *rig) ask(i int, a *Action) {
	r.hosts[i].pending = a.Request
	if r.nasks == maxRequests {
		r.removeAsk(0)
	}
	r.asks[r.nasks] = request{
		node: uint8(i), run: r.hosts[i].run, id: a.Request,
		swap: a.Kind == ActionSwap, old: a.Old, new: a.New,
	}
	r.nasks++
}

func (r *rig) removeAsk(k uint8) {
	copy(r.asks[k:r.nasks], r.asks[k+1:r.nasks])
	r.nasks--
	r.asks[r.nasks] = request{}
}

// execute lets the arbiter carry out request k.
func (r *rig) execute(k uint8) {
	q := &r.asks[k]
	if q.swap && r.expected(q.old) {
		r.logf("arbiter: %v -> %v for %s", r.rec, q.new, nodeNames[q.node])
		r.land(int(q.node), q.new)
	} else {
		r.logf("arbiter: answers %s that it holds %v", nodeNames[q.node], r.rec)
	}
	q.done, q.answer = true, r.rec
}

func (r *rig) expected(old Record) bool {
	if r.weak {
		old.Revision = r.rec.Revision
	}
	return old == r.rec
}

// answer brings the result of request k back.
func (r *rig) answer(k uint8, keep bool) {
	q := r.asks[k]
	if !keep {
		r.removeAsk(k)
	}
	h := &r.hosts[q.node]
	if h.run != q.run {
		return
	}
	if h.pending == q.id {
		h.pending = 0
	}
	r.step(int(q.node), Observed(q.id, q.answer))
}

// work lets the guest of node i run for a moment and send something.
func (r *rig) work(i int) {
	h := &r.hosts[i]
	if r.nhist == maxHistory {
		r.full = true
		return
	}
	if h.nheld == maxHeld {
		return // the buffer is full: the guest has to wait
	}
	at := r.nhist
	r.nhist++
	r.parent[at], r.depth[at] = h.head, r.depth[h.head]+1
	h.head = at
	if h.open {
		r.leave(i, at)
		return
	}
	h.held[h.nheld] = heldStep{at, h.epoch + 1}
	h.nheld++
}

// finishCapture ends an epoch on node i and ships it.
func (r *rig) finishCapture(i int) {
	h := &r.hosts[i]
	asked, full := h.capture, h.capture && !h.frozen
	if asked && h.frozen {
		h.paused = true
	}
	h.capture = false
	h.epochs = true
	h.epoch++
	m := message{kind: messageCheckpoint, session: h.shipping, epoch: h.epoch, full: full, at: h.head}
	r.step(i, Captured(h.epoch, asked))
	if h.shipping == m.session {
		r.send(i, &m)
	}
}

func (r *rig) crash(i int) {
	r.logf("%s dies", nodeNames[i])
	r.hosts[i] = host{}
	clear(r.net[i][:])
	r.nnet[i] = 0
	r.hosts[1-i].upConn = 0
}

func describe(ev Event) string {
	switch ev.Kind {
	case EventTick:
		return fmt.Sprintf("tick %d", ev.Ticks)
	case EventPeerUp:
		return fmt.Sprintf("peer-up %v", ev.Peer)
	case EventStatus:
		return fmt.Sprintf("status %v", ev.Status)
	case EventSyncReady, EventSyncFailed:
		return fmt.Sprintf("%v %d", ev.Kind, ev.Session)
	case EventCaptured:
		return fmt.Sprintf("captured %d", ev.Epoch)
	case EventAcked, EventCompleted:
		return fmt.Sprintf("%v %d of session %d", ev.Kind, ev.Epoch, ev.Session)
	case EventObserved:
		return fmt.Sprintf("observed #%d %v", ev.Request, ev.Record)
	case EventUnanswered:
		return fmt.Sprintf("unanswered #%d", ev.Request)
	default:
		return ev.Kind.String()
	}
}
