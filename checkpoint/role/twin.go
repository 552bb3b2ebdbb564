package role

// maybeJoin begins to receive when the peer copies to this node.
func (m *Machine) maybeJoin(s *Status) {
	if s.Phase != PhaseSyncing || s.Session <= m.session {
		return
	}
	if !m.need(guardJoinKnown, m.rec == s.Record && m.rec.Active == s.From && m.rec.Standby.IsZero()) {
		return
	}
	m.session, m.other, m.base, m.complete = s.Session, s.From, m.rec.Revision, 0
	m.enter(PhaseReceiving)
	m.doSession(ActionBeginStandby)
}

func (m *Machine) onCompleted(session uint64, n Epoch) {
	switch {
	case !m.need(guardTwinAcks, m.phase.Twin()):
		return
	case !m.need(guardClaimAcks, m.phase != PhaseClaiming):
		return
	case !m.need(guardTwinSession, session == m.session), !m.need(guardTwinEpoch, n > m.complete):
		return
	}
	if m.phase.Twin() {
		m.complete = n
	}
	m.out = append(m.out, Action{Kind: ActionAck, Session: session, Epoch: n})
	if m.phase == PhaseReceiving {
		m.enter(PhaseSynced)
		m.judgeCopy()
	}
}

// entitled reports whether the record allows this copy to take over.
func (m *Machine) entitled() bool {
	return m.rec.Standby == m.cfg.Self && m.rec.Active == m.other
}

// judgeCopy compares the record with the copy that is held here.
func (m *Machine) judgeCopy() {
	switch {
	case m.need(guardGranted, m.rec.Active == m.cfg.Self):
		m.takeOver()
	case m.force != forceNone && m.phase == PhaseClaiming:
		// An operator wants it from any record.
	case m.entitled():
		if m.phase == PhaseSynced {
			m.enter(PhaseStandby)
			m.raise(NoticeStandby)
			if m.activeGone() {
				m.claim()
			}
		}
	case m.phase == PhaseReceiving, m.phase == PhaseSynced:
		// Not yet entitled. Once the record has moved on without naming this
		// copy, it never will be: the swap for it expected the old revision.
		if m.rec.Revision != m.base || m.rec.Active != m.other {
			m.drop()
		}
	default:
		if m.on(guardDropStale) {
			m.drop()
		}
	}
}

// takeOver runs the guest from the newest whole checkpoint, which is at least
// as new as any that was acknowledged from here.
func (m *Machine) takeOver() {
	if !m.need(guardHasCopy, m.complete != 0) {
		m.giveUp(NoticeFaulted) // somebody has to say what shall happen
		return
	}
	m.generation = m.rec.Generation
	m.captured, m.acked, m.released = m.complete, m.complete, m.complete
	m.out = append(m.out, Action{Kind: ActionTakeOver, Epoch: m.complete, Generation: m.generation})
	m.enter(PhaseSolo)
	m.do(ActionReleaseAll)
	m.raise(NoticeTookOver)
	m.doneByForce()
	m.complete = 0
}

func (m *Machine) doneByForce() {
	if m.force != forceNone {
		m.force = forceNone
		m.raise(NoticeForced)
	}
}

// drop forgets the copy.
func (m *Machine) drop() {
	m.do(ActionDropCopy)
	m.raise(NoticeDropped)
	m.complete = 0
	m.enter(PhaseFree)
	m.evaluate()
}

// claim asks for the right to run the guest. There is no way back from it but
// a newer record, because the swap may succeed at any time.
func (m *Machine) claim() {
	m.raise(NoticePeerLost)
	if m.need(guardEntitled, m.entitled()) {
		m.enter(PhaseClaiming)
	}
}

func (m *Machine) lostActive() {
	switch m.phase {
	case PhaseReceiving:
		m.drop()
	case PhaseSynced, PhaseStandby:
		// Not being entitled yet, the former only finds out whether the swap
		// for its copy is on its way: see goal.
		m.claim()
	}
}

// activeGone reports whether nothing is to be hoped for from the active node:
// it is out of reach, has restarted, or says that it runs nothing.
func (m *Machine) activeGone() bool {
	return !m.up || m.peer != m.other || m.heard && !m.peerPhase.Active()
}

// judgeActive looks at what the peer says of itself.
func (m *Machine) judgeActive(s *Status) {
	switch m.phase {
	case PhaseReceiving:
		if s.From != m.other || s.Session != m.session || !s.Phase.Active() || s.Phase == PhaseSolo {
			m.drop()
		}
	case PhaseSynced:
		// A node that runs the guest without this copy has settled that this
		// copy is not entitled. One that runs nothing may have died before.
		if s.From == m.other && (s.Phase == PhaseSolo || s.Phase == PhaseSyncing) {
			m.drop()
		}
	case PhaseStandby:
		if m.on(guardActGone) && m.activeGone() {
			m.claim()
		}
	}
}
