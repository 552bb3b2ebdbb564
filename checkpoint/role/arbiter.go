package role

// goal is what a phase wants of the arbiter.
type goal uint8

const (
	goalNone goal = iota
	goalRead      // the record, as soon as possible
	goalPoll      // the record, now and then
	goalSwap      // to replace the record by what want returns
)

// goal tells what the present phase wants of the arbiter. It is asked anew
// after every event, so that a swap which was overtaken by events isn't
// repeated: the next request carries what is wanted by then.
func (m *Machine) goal() goal {
	switch m.phase {
	case PhaseStarting:
		return goalRead
	case PhaseBooting, PhasePairing, PhaseUnpairing, PhaseHanding, PhaseReverting, PhaseClaiming:
		if !m.known || m.mustRead {
			return goalRead
		}
		return goalSwap
	case PhaseOrphan:
		return goalPoll
	}
	switch {
	case m.verify, m.handover:
		return goalRead
	case m.phase == PhaseSynced && m.on(guardPollLost) && m.activeGone():
		return goalPoll // the swap that entitles this copy may be on its way
	}
	return goalNone
}

// want returns the record that the present phase swaps for.
func (m *Machine) want() Record {
	switch m.phase {
	case PhaseBooting:
		m.generation = m.rec.Generation + 1 // to know it again: see booted
		return m.rec.succeed(m.cfg.Self)
	case PhasePairing, PhaseReverting:
		return m.rec.next(m.other)
	case PhaseUnpairing:
		return m.rec.next(Member{})
	case PhaseHanding:
		return m.rec.succeed(m.other)
	default: // PhaseClaiming
		return m.rec.succeed(m.cfg.Self)
	}
}

// pursue asks the arbiter for what the phase wants. There is one request at a
// time; one that isn't answered is given up by the caller (Unanswered).
func (m *Machine) pursue() {
	if m.cfg.Arbiter != Arbitrated {
		m.grant()
		return
	}
	if m.inflight != 0 || m.retry > 0 {
		return
	}
	g := m.goal()
	if g == goalNone {
		return
	}
	m.request++
	m.inflight, m.asked = m.request, g
	if g != goalSwap {
		m.out = append(m.out, Action{Kind: ActionRead, Request: m.request})
		return
	}
	m.unsettled = true
	m.out = append(m.out, Action{Kind: ActionSwap, Request: m.request, Old: m.rec, New: m.want()})
}

// grant stands in for the arbiter where there is none. What the active node
// wants it gets; a twin that wants to take over is not granted it unless an
// operator, or the lab, has said so.
func (m *Machine) grant() {
	m.verify = false
	if m.handover {
		m.handover = false
		m.startHandover()
	}
	if m.force == forceReading {
		m.force = forceGoing
	}
	switch m.phase {
	case PhaseClaiming:
		if !m.need(guardGrant, m.cfg.Arbiter == Unsafe || m.force == forceGoing) {
			m.awaitOperator()
			return
		}
	case PhaseBooting, PhasePairing, PhaseUnpairing, PhaseHanding, PhaseReverting:
	default:
		return
	}
	m.learn(m.want())
}

// awaitOperator tells once that nothing goes on without one.
func (m *Machine) awaitOperator() {
	if !m.alone {
		m.alone = true
		m.raise(NoticeAwaitOperator)
	}
}

func (m *Machine) onObserved(request uint64, r Record) {
	if r.Validate() != nil {
		m.onUnanswered(request) // not written by a Machine: as good as no answer
		return
	}
	answer := request != 0 && request == m.inflight
	asked := m.asked
	if answer {
		m.inflight, m.asked, m.mustRead = 0, goalNone, false
	}
	if m.verify && m.need(guardFresh, request > m.verifyFrom) {
		m.verify = false
	}
	news := m.learn(r)
	if answer {
		m.answered(asked, news)
	}
	m.proceed()
}

// answered goes on with what waited for a sign of life from the arbiter. asked
// is what the request was for; news tells whether it has changed the record.
func (m *Machine) answered(asked goal, news bool) {
	if m.force == forceReading {
		m.force = forceGoing
	}
	if m.handover {
		m.handover = false
		m.startHandover()
	}
	if m.phase == PhaseStarting {
		m.evaluate()
		return
	}
	if news {
		return
	}
	m.settle()
	if asked == goalSwap || m.goal() == goalPoll {
		m.retry = m.cfg.RetryTicks
	}
}

func (m *Machine) onUnanswered(request uint64) {
	if request == 0 || request != m.inflight {
		return
	}
	m.inflight, m.asked = 0, goalNone
	m.mustRead = true
	if m.handover {
		m.handover = false
		m.raise(NoticeSwitchoverFailed)
	}
	if m.phase == PhaseHanding {
		m.revert()
	}
	m.retry = m.cfg.RetryTicks
}

// learn takes r for what the arbiter holds if it is newer than what is known,
// and reports whether it is. Whatever names a newer revision is true for ever
// of all older ones: no swap that expects one of those can succeed any more.
// That is the only way in which a swap of unknown outcome becomes known.
func (m *Machine) learn(r Record) bool {
	if m.known && !m.need(guardStale, r.newer(m.rec)) {
		return false
	}
	m.rec, m.known, m.unsettled, m.mustRead = r, true, false, false
	m.news, m.alone, m.retry = true, false, 0
	if m.force == forceGoing && r.Active != m.cfg.Self && m.on(guardForceOnce) {
		m.force = forceNone // the operator has not seen this record
		m.raise(NoticeRefused)
	}
	m.reconsider()
	return true
}

// reconsider draws the conclusions from a newer record.
func (m *Machine) reconsider() {
	switch {
	case m.phase.Active():
		m.settle()
	case m.phase.Twin():
		m.judgeCopy()
	case m.phase == PhaseStopped:
		if m.rec.Active.Node != m.cfg.Self.Node {
			m.enter(PhaseFree)
		}
	case m.phase == PhaseFree, m.phase == PhaseOrphan, m.phase == PhaseBooting:
		m.evaluate()
	}
	// PhaseStarting waits for the arbiter's own answer: what the peer knows
	// may be out of date. PhaseFailed waits for a repair.
}

// onStall takes a long tick for what it probably is: the process, or the host,
// has been stopped for a while. The twin may have taken over meanwhile, and
// acknowledgements from before may wait in sockets. Hear the arbiter first, or
// the twin, in case that the arbiter is down: one that stands by after this has
// not been made active before.
func (m *Machine) onStall() {
	m.waited = 0
	if !m.phase.paired() || !m.on(guardStall) {
		return
	}
	if !m.verify {
		m.raise(NoticeStalled)
	}
	m.verify, m.verifyFrom, m.verifySeq, m.news = true, m.request, m.seq+1, true
}
