package role

// maybeSync begins to copy to a peer that offers itself, when this node runs
// the guest alone and nothing is left of an earlier twin.
func (m *Machine) maybeSync() {
	if m.phase != PhaseSolo || !m.up || !m.heard || m.syncIn > 0 {
		return
	}
	if !m.need(guardOffer, m.peerPhase == PhaseFree) {
		return
	}
	m.session = max(m.session, m.peerSession) + 1 // the peer joins no session twice
	m.other = m.peer
	m.first, m.last = 0, 0
	m.enter(PhaseSyncing)
	m.maybeTell() // the peer hears of the session before its data
	m.doSession(ActionStartSync)
}

func (m *Machine) onSyncReady(session uint64) {
	if m.phase != PhaseSyncing || session != m.session {
		return
	}
	m.waited = 0
	m.enter(PhaseClosing)
	if m.on(guardHoldFinal) {
		m.do(ActionHold)
	}
	m.doSession(ActionCapture)
}

func (m *Machine) onSyncFailed(session uint64) {
	if session != m.session {
		return
	}
	switch {
	case m.phase == PhaseSyncing, m.phase.paired():
		m.syncIn = m.cfg.SyncTicks
		m.abandon(NoticePeerLost)
	}
}

func (m *Machine) onCaptured(n Epoch, asked bool) {
	if !m.phase.paired() || n <= m.captured {
		return
	}
	if m.captured == m.acked {
		m.waited = 0
	}
	m.captured = n
	switch {
	case asked && m.phase == PhaseClosing:
		m.first = n
	case asked && m.phase == PhaseHandover:
		m.last = n
	}
	m.advance()
}

func (m *Machine) onAcked(session uint64, n Epoch) {
	switch {
	case !m.phase.paired(), n <= m.acked:
		return
	case !m.need(guardAckSession, session == m.session):
		return
	case !m.need(guardAckBound, n <= m.captured):
		m.abandon(NoticePeerLost) // it can't hold what never was: don't build on its word
		return
	}
	m.acked, m.waited = n, 0
	m.proceed()
}

// proceed does what the twin's holding an epoch allows: what may leave leaves,
// before a swap that might end the right to release it.
func (m *Machine) proceed() {
	m.release()
	m.advance()
	m.release()
}

// advance goes on to a swap once the twin holds the epoch that it is about.
func (m *Machine) advance() {
	switch {
	case m.phase == PhaseClosing && m.first != 0 && m.need(guardAckFinal, m.acked >= m.first):
		m.enter(PhasePairing)
	case m.phase == PhaseHandover && m.last != 0 && m.need(guardLastAcked, m.acked >= m.last):
		if m.need(guardAwake, !m.verify) {
			m.enter(PhaseHanding)
		}
	}
}

// release lets go of what the twin holds, in the phases in which that twin is
// the only one that may ever take over. While pairing, either it is entitled
// already or nobody is; so an arbiter that doesn't answer doesn't stop the guest.
func (m *Machine) release() {
	if m.acked <= m.released || m.verify {
		return
	}
	switch m.phase {
	case PhasePairing, PhaseProtected, PhaseHandover:
	case PhaseReverting:
		if m.on(guardReverting) {
			return
		}
	default:
		return
	}
	m.released = m.acked
	m.out = append(m.out, Action{Kind: ActionRelease, Epoch: m.acked})
	m.unpause()
}

// open reports whether output leaves without being held.
func (m *Machine) open() bool { return m.phase == PhaseSolo || m.phase == PhaseSyncing }

// settle compares the record with what the active phase waits for. It is
// called whenever the record, or what is known of it, changes.
func (m *Machine) settle() {
	if !m.phase.Active() {
		return
	}
	if m.rec.Generation != m.generation || m.rec.Active != m.cfg.Self {
		m.superseded()
		return
	}
	switch {
	case m.rec.Standby.IsZero():
		m.unentitled()
	case m.rec.Standby == m.other && (m.phase == PhasePairing || m.phase == PhaseReverting):
		// While reverting, the record may say so and still be about to change
		// in the twin's favour.
		if m.need(guardReverted, !m.unsettled) {
			m.enter(PhaseProtected)
			m.raise(NoticeProtected)
			m.release()
		}
	case m.rec.Standby == m.other && m.phase.paired() && m.phase != PhaseClosing:
		// as it should be
	case m.phase != PhaseUnpairing:
		// Somebody is entitled who doesn't hold what has been released here.
		m.abandon(NoticePeerLost)
	}
}

// unentitled goes on alone, if that is what the phase waits for, now that the
// record names no standby.
func (m *Machine) unentitled() {
	switch m.phase {
	case PhaseUnpairing:
		// The record says so, but a swap that entitles the twin may be under
		// way. Only a newer record makes it harmless.
		if m.need(guardSettled, !m.unsettled) {
			m.solo()
		}
	case PhaseProtected, PhaseHandover, PhaseHanding, PhaseReverting:
		m.abandon(NoticePeerLost)
	}
}

// abandon gives up on the twin. Until the record excludes that it takes over,
// nothing that it doesn't hold may leave.
func (m *Machine) abandon(why Notice) {
	switch {
	case m.phase == PhaseSyncing:
		m.doSession(ActionStopSync)
		m.syncIn = m.cfg.SyncTicks
		m.enter(PhaseSolo)
	case m.phase.paired():
		m.raise(why)
		m.doSession(ActionStopSync)
		m.handover, m.verify = false, false
		m.last = 0
		m.enter(PhaseUnpairing)
		if !m.on(guardHoldUnpair) {
			m.do(ActionReleaseAll)
		}
		m.unpause()
		m.settle()
	case m.phase == PhaseSolo && !m.rec.Standby.IsZero():
		m.do(ActionHold)
		m.enter(PhaseUnpairing)
	}
}

// solo lets everything go: nobody else can ever run this generation's guest.
func (m *Machine) solo() {
	m.first, m.last, m.waited = 0, 0, 0
	m.acked, m.released = m.captured, m.captured
	m.enter(PhaseSolo)
	m.do(ActionReleaseAll)
	m.unpause()
	m.raise(NoticeUnprotected)
	if m.stopping {
		m.stopped()
	}
}

// superseded deals with a record that gives the right to run to another copy.
func (m *Machine) superseded() {
	switch {
	case m.phase == PhaseHanding && m.rec.Active == m.other && m.rec.Generation == m.generation+1:
		m.destroy()
		m.raise(NoticeSwitchedOver)
		m.enter(PhaseFree)
	case m.cfg.Arbiter != Arbitrated && m.rec.Active.Node == m.cfg.Self.Node && m.rec.Active != m.cfg.Self:
		// Without an arbiter, the peer remembers the run before this one, and
		// this one couldn't know. An operator started it: it stands.
		m.rec = m.rec.succeed(m.cfg.Self)
		m.generation = m.rec.Generation
		m.news = true
	case !m.on(guardFence):
	default:
		m.destroy()
		m.raise(NoticeFenced)
		m.enter(PhaseFree)
		if m.rec.Active.Node == m.cfg.Self.Node && m.on(guardDuel) {
			m.enter(PhaseFailed) // another process on this host has it: stay out of its way
		}
	}
}

// destroy ends the copy that runs here. It comes first in the list of actions:
// not one more frame may leave.
func (m *Machine) destroy() {
	m.do(ActionDestroy)
	if m.phase == PhaseSyncing || m.phase.paired() {
		m.doSession(ActionStopSync)
	}
	m.generation = 0
	m.paused, m.stopping, m.handover, m.verify = false, false, false, false
	m.captured, m.acked, m.released, m.first, m.last = 0, 0, 0, 0, 0
}

// judgeTwin looks at what the peer says of itself.
func (m *Machine) judgeTwin() {
	if !m.phase.paired() && m.phase != PhaseSyncing {
		return
	}
	if m.peer != m.other || m.peerSession < m.session {
		return // it hasn't heard of the session yet
	}
	switch m.peerPhase {
	case PhaseReceiving, PhaseSynced, PhaseStandby:
		if m.peerSession == m.session {
			m.standsBy()
			return
		}
	}
	if m.on(guardTwinDropped) {
		m.abandon(NoticePeerLost)
	}
}

// standsBy hears that the twin holds its copy and has not claimed.
func (m *Machine) standsBy() {
	if m.verify && m.need(guardFreshTwin, m.peerHeard >= m.verifySeq) {
		m.verify = false
		m.proceed()
	}
}

// watchAcks counts the time that the twin makes no progress.
func (m *Machine) watchAcks(n uint64) {
	if !m.phase.paired() || m.captured == m.acked {
		m.waited = 0
		return
	}
	m.waited += min(n, m.cfg.AckTicks)
	if m.on(guardGrey) && m.waited >= m.cfg.AckTicks {
		m.abandon(NoticePeerGrey)
	}
}

// startHandover freezes the guest at the end of an epoch and ships it.
func (m *Machine) startHandover() {
	if m.phase != PhaseProtected {
		return
	}
	m.last, m.waited, m.paused = 0, 0, true
	m.enter(PhaseHandover)
	m.out = append(m.out, Action{Kind: ActionCapture, Session: m.session, Frozen: true})
}

// revert goes on here after a handover that the arbiter didn't answer to. The
// guest runs; whether it is allowed to, a swap of the same revision decides.
func (m *Machine) revert() {
	m.last = 0
	if m.on(guardHandRevert) {
		m.enter(PhaseReverting)
	} else {
		m.enter(PhaseProtected)
	}
	m.raise(NoticeSwitchoverFailed)
	m.unpause()
}

func (m *Machine) onBufferFull() {
	if m.phase.Active() && !m.open() && !m.paused {
		m.paused = true
		m.do(ActionPause)
	}
}

// unpause lets the guest run again, if it doesn't.
func (m *Machine) unpause() {
	if m.paused && m.phase != PhaseHandover && m.phase != PhaseHanding {
		m.paused = false
		m.do(ActionResume)
	}
}

// onGuestStopped ends protection before the guest is forgotten, so that the
// twin doesn't bring it back.
func (m *Machine) onGuestStopped() {
	if !m.phase.Active() {
		return
	}
	m.stopping = true
	if m.phase != PhaseSolo {
		m.abandon(NoticePeerLost)
	}
	if m.phase == PhaseSolo {
		m.stopped()
	}
}

func (m *Machine) stopped() {
	m.stopping, m.paused = false, false
	m.generation = 0
	m.enter(PhaseStopped)
	m.raise(NoticeStopped)
}
