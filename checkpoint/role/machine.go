package role

import (
	"errors"
	"fmt"
)

// Arbiter says who decides ties.
type Arbiter uint8

// The ways to decide.
const (
	// Arbitrated: a quorum store holds the record. The only mode in which the
	// promises hold.
	Arbitrated Arbiter = iota
	// Unarbitrated: there is no store. The active node decides for itself; a
	// twin never takes over without Force.
	Unarbitrated
	// Unsafe: there is no store, and a twin takes over by itself all the same.
	// A broken link then makes two active nodes. For the lab only.
	Unsafe
)

var arbiterNames = [...]string{Arbitrated: "arbitrated", Unarbitrated: "unarbitrated", Unsafe: "unsafe"}

func (a Arbiter) String() string { return nameOf(arbiterNames[:], int(a)) }

// Config is what a Machine has to know from the beginning. The times are in
// ticks, of whatever length the caller gives them; none of them matters to
// safety.
type Config struct {
	Self    Member
	Arbiter Arbiter

	RetryTicks  uint64 // pause between attempts at an arbiter that doesn't answer, and between polls
	StatusTicks uint64 // a status is repeated after this
	AckTicks    uint64 // a twin that makes no progress with acknowledgements for this long is grey: lost
	StallTicks  uint64 // a Tick of at least this many ticks means that this node has been asleep
	SyncTicks   uint64 // pause after a sync that failed
}

// ErrConfig is wrapped by the errors of New.
var ErrConfig = errors.New("invalid role configuration")

func (c Config) validate() error {
	if err := c.Self.validate(); err != nil {
		return fmt.Errorf("%w: self: %w", ErrConfig, err)
	}
	if c.Arbiter > Unsafe {
		return fmt.Errorf("%w: arbiter mode %d", ErrConfig, c.Arbiter)
	}
	for _, t := range [...]uint64{c.RetryTicks, c.StatusTicks, c.AckTicks, c.StallTicks, c.SyncTicks} {
		if t == 0 {
			return fmt.Errorf("%w: a number of ticks is zero", ErrConfig)
		}
	}
	return nil
}

// Machine is the role of one VM on one host. See the package's documentation
// for how to call it.
type Machine struct {
	cfg Config
	off guard // the guard that a test has switched off; never set otherwise
	out []Action
	state
}

// state is all that a Machine remembers. It is comparable, so that a search
// can tell where it has been.
type state struct {
	phase        Phase
	create, boot bool   // what Start allowed
	generation   uint64 // active: the generation in which the guest here runs

	// The arbiter.
	rec        Record // the newest record known
	known      bool   // the arbiter has been heard at least once
	unsettled  bool   // a swap that expects rec has been sent and may still succeed
	mustRead   bool   // the last request wasn't answered: read before swapping again
	request    uint64 // the number of the last request
	inflight   uint64 // the number of the request without a result; 0: none
	asked      goal   // what that request is for
	retry      uint64 // ticks until the next request
	verify     bool   // been asleep: release nothing before the arbiter or the twin was heard
	verifyFrom uint64 // answers to requests up to this one don't count for verify
	verifySeq  uint64 // nor do words of the twin from before it had this status

	// The connection.
	up          bool
	peer        Member // the last one connected
	heard       bool   // a status has arrived on this connection, with:
	peerPhase   Phase
	peerSession uint64
	peerHeard   uint64 // the newest status from here that the peer had had
	witness     uint64 // a peer that hasn't had this one can't testify; see twinHasNothing
	seen        uint64 // the newest status of peer that has arrived
	seq         uint64 // the newest status that was sent
	news        bool   // something changed that the peer should know
	tell        uint64 // ticks until the next status

	// The sync and what follows it.
	other    Member // the counterpart in session
	session  uint64
	base     uint64 // twin: the record's revision when the session began
	first    Epoch  // active: the final round; the twin has nothing before it is acknowledged
	last     Epoch  // active, switchover: the epoch at whose end the guest stands
	captured Epoch  // active: newest capture
	acked    Epoch  // active: newest that the twin holds
	released Epoch  // active: newest that was released
	complete Epoch  // twin: newest whole checkpoint; 0: none
	waited   uint64 // ticks without progress in acked
	syncIn   uint64 // ticks until a sync may be tried again

	// The guest.
	paused   bool // by Pause, or by a frozen capture
	stopping bool // it has powered off
	handover bool // a switchover waits for a sign of life from the arbiter
	force    forced
	alone    bool // NoticeAwaitOperator has been raised
}

// forced is how far an operator's Force has got.
type forced uint8

const (
	forceNone    forced = iota
	forceReading        // the record has to be read first
	forceGoing          // swap whatever was read; anything newer ends the force
)

// New returns a Machine that waits for Start.
func New(cfg Config) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Machine{cfg: cfg, out: make([]Action, 0, 16)}, nil
}

// View is a copy of what an operator or a metric may want to see.
type View struct {
	Phase      Phase
	Generation uint64 // in which the guest runs here; 0: it doesn't
	Record     Record // the newest known
	Settled    bool   // no swap of unknown outcome is under way
	PeerUp     bool
	Peer       Member
	Session    uint64
	Captured   Epoch // active
	Acked      Epoch // active
	Complete   Epoch // twin
	Held       bool  // active: output is not free to leave
}

// View tells where the machine stands.
func (m *Machine) View() View {
	v := View{
		Phase: m.phase, Record: m.rec, Settled: !m.unsettled, PeerUp: m.up, Peer: m.peer,
		Session: m.session, Captured: m.captured, Acked: m.acked, Complete: m.complete,
	}
	if m.phase.Active() {
		v.Generation = m.generation
		v.Held = !m.open()
	}
	return v
}

// Phase tells the machine's phase.
func (m *Machine) Phase() Phase { return m.phase }

// Step takes one event and returns what has to be done, in order. The slice
// and what it holds are valid until the next call.
func (m *Machine) Step(ev Event) []Action {
	m.out = m.out[:0]
	if m.phase == PhaseNew && ev.Kind != EventStart {
		return m.out
	}
	m.handle(&ev)
	m.maybeSync()
	m.pursue()
	m.maybeTell()
	return m.out
}

func (m *Machine) handle(ev *Event) {
	switch ev.Kind {
	case EventStart:
		m.onStart(ev.Create, ev.Boot)
	case EventTick:
		m.onTick(ev.Ticks)
	case EventPeerUp:
		m.onPeerUp(ev.Peer)
	case EventPeerLost:
		m.onPeerLost()
	case EventStatus:
		m.onStatus(&ev.Status)
	case EventSyncReady:
		m.onSyncReady(ev.Session)
	case EventSyncFailed:
		m.onSyncFailed(ev.Session)
	case EventCaptured:
		m.onCaptured(ev.Epoch, ev.Asked)
	case EventAcked:
		m.onAcked(ev.Session, ev.Epoch)
	case EventCompleted:
		m.onCompleted(ev.Session, ev.Epoch)
	case EventObserved:
		m.onObserved(ev.Request, ev.Record)
	case EventUnanswered:
		m.onUnanswered(ev.Request)
	case EventBufferFull:
		m.onBufferFull()
	case EventGuestStopped:
		m.onGuestStopped()
	case EventFault:
		m.onFault()
	case EventRepaired:
		m.onRepaired()
	case EventSwitchover:
		m.onSwitchover()
	case EventFence:
		m.onFence(ev.Force)
	case EventForce:
		m.onForce()
	}
}

func (m *Machine) do(k ActionKind) { m.out = append(m.out, Action{Kind: k}) }

func (m *Machine) doSession(k ActionKind) {
	m.out = append(m.out, Action{Kind: k, Session: m.session})
}

func (m *Machine) raise(n Notice) {
	m.out = append(m.out, Action{Kind: ActionRaise, Notice: n, Record: m.rec, Generation: m.generation, Epoch: m.complete})
}

// enter changes the phase. What the new phase wants of the arbiter doesn't wait
// for what the old one had to.
func (m *Machine) enter(p Phase) {
	if m.phase != p {
		m.phase, m.news, m.retry = p, true, 0
	}
}

func (m *Machine) onTick(n uint64) {
	m.retry -= min(n, m.retry)
	m.tell -= min(n, m.tell)
	m.syncIn -= min(n, m.syncIn)
	if n >= m.cfg.StallTicks {
		m.onStall()
		return
	}
	m.watchAcks(n)
}

func (m *Machine) onPeerUp(peer Member) {
	if peer.validate() != nil || peer.Node == m.cfg.Self.Node {
		return
	}
	if m.up {
		m.onPeerLost()
	}
	if peer != m.peer {
		m.seen = 0
		if !m.phase.Active() && !m.phase.Twin() {
			m.session = 0 // sessions are counted per pair of members
		}
	}
	m.up, m.peer, m.heard, m.news = true, peer, false, true
	if m.phase == PhaseStandby && m.activeGone() {
		m.claim()
	}
}

func (m *Machine) onPeerLost() {
	if !m.up {
		return
	}
	m.up, m.heard = false, false
	switch {
	case m.phase.Active():
		m.abandon(NoticePeerLost)
	case m.phase.Twin():
		m.lostActive()
	}
}

func (m *Machine) onStatus(s *Status) {
	if !m.up || s.From != m.peer || !m.need(guardAddressee, s.To == m.cfg.Self) {
		return
	}
	if !m.need(guardSequence, s.Seq > m.seen) {
		return // a duplicate, or overtaken by a newer one
	}
	m.seen, m.heard = s.Seq, true
	m.peerPhase, m.peerSession, m.peerHeard = s.Phase, s.Session, s.Heard
	m.news = m.news || s.Ask
	if !s.Record.IsZero() {
		m.learn(s.Record)
	}
	switch {
	case m.phase.Active():
		m.judgeTwin()
	case m.phase.Twin():
		m.judgeActive(s)
	case m.phase == PhaseOrphan:
		m.evaluate()
	}
	if m.phase == PhaseFree {
		m.maybeJoin(s)
	}
}

// maybeTell sends the peer a status when something has changed or when the
// last one is old enough to have been lost.
func (m *Machine) maybeTell() {
	if !m.up || (!m.news && m.tell > 0) {
		return
	}
	m.seq++
	m.news, m.tell = false, m.cfg.StatusTicks
	epoch := m.complete
	if m.phase.Active() {
		epoch = m.captured
	}
	m.out = append(m.out, Action{Kind: ActionSend, Status: Status{
		From: m.cfg.Self, To: m.peer, Seq: m.seq, Heard: m.seen, Phase: m.phase,
		Ask:     m.verify || m.phase == PhaseOrphan,
		Session: m.session, Epoch: epoch, Record: m.rec,
	}})
}
