package role

func (m *Machine) onStart(create, boot bool) {
	if m.phase != PhaseNew {
		return
	}
	m.create, m.boot = create, boot
	m.witness = m.seq + 1
	m.enter(PhaseStarting)
	if m.cfg.Arbiter != Arbitrated {
		m.known = true
		m.evaluate()
	}
}

// evaluate decides what a node without a copy is good for.
func (m *Machine) evaluate() {
	before := m.phase
	switch {
	case m.phase == PhaseBooting && m.need(guardBooted, m.booted()):
		m.bootUp()
	case m.force != forceNone && m.phase == PhaseBooting:
		// An operator wants it from any record.
	case m.rec.IsZero():
		m.toBoot(m.create)
	case m.rec.Active.Node != m.cfg.Self.Node:
		m.enter(PhaseFree)
	case m.rec.Standby.IsZero():
		if m.toBoot(m.boot); !m.boot {
			m.awaitOperator()
		}
	case m.boot && m.need(guardOrphan, m.twinHasNothing()):
		m.enter(PhaseBooting)
	default:
		if m.enter(PhaseOrphan); before != PhaseOrphan {
			m.raise(NoticeAwaitTwin)
		}
	}
}

func (m *Machine) toBoot(allowed bool) {
	if allowed {
		m.enter(PhaseBooting)
	} else {
		m.enter(PhaseFree)
	}
}

// booted reports whether the record is the one that this node asked for to
// boot the guest. A record that merely names it may be from before a fault.
func (m *Machine) booted() bool {
	return m.rec.Active == m.cfg.Self && m.rec.Standby.IsZero() && m.rec.Generation == m.generation
}

// bootUp boots the guest from disks.
func (m *Machine) bootUp() {
	m.generation = m.rec.Generation
	m.captured, m.acked, m.released, m.complete = 0, 0, 0, 0
	m.out = append(m.out, Action{Kind: ActionBoot, Generation: m.generation})
	m.enter(PhaseSolo)
	m.do(ActionReleaseAll)
	m.raise(NoticeBooted)
	m.doneByForce()
}

// twinHasNothing reports whether the standby that the record names has said
// that it holds no copy, or has restarted, which comes to the same. It counts
// only if it has been said after hearing that nothing runs here any more: from
// then on, no copy of what ran here can become complete there.
func (m *Machine) twinHasNothing() bool {
	if !m.up || !m.heard || m.peer.Node != m.rec.Standby.Node {
		return false
	}
	if !m.need(guardEcho, m.peerHeard >= m.witness) {
		return false
	}
	return m.need(guardWitness, m.peer != m.rec.Standby || !m.peerPhase.Holds())
}

func (m *Machine) onFault() {
	if m.phase != PhaseFailed {
		m.giveUp(NoticeFaulted)
	}
}

// giveUp ends whatever this node has, and keeps it out until repaired.
func (m *Machine) giveUp(why Notice) {
	switch {
	case m.phase.Active():
		if m.on(guardFault) {
			m.destroy()
		}
	case m.phase.Twin():
		m.do(ActionDropCopy)
		m.complete = 0
	}
	m.force = forceNone
	m.enter(PhaseFailed)
	m.raise(why)
}

func (m *Machine) onRepaired() {
	if m.phase == PhaseFailed || m.phase == PhaseStopped {
		m.witness = m.seq + 1
		m.enter(PhaseStarting)
		if m.cfg.Arbiter != Arbitrated {
			m.evaluate()
		}
	}
}

func (m *Machine) onSwitchover() {
	if m.phase != PhaseProtected || m.verify || m.handover {
		m.raise(NoticeRefused)
		return
	}
	// An arbiter that is down would leave the guest frozen: ask first.
	if m.handover = m.on(guardAskFirst); !m.handover {
		m.startHandover()
	}
}

func (m *Machine) onFence(force bool) {
	lone := m.phase.Active() && m.phase != PhaseProtected
	if lone && !force {
		m.raise(NoticeRefused)
		return
	}
	m.giveUp(NoticeFenced)
}

func (m *Machine) onForce() {
	if m.phase.Active() || (m.up && m.heard && m.peerPhase.Active()) {
		m.raise(NoticeRefused)
		return
	}
	m.force, m.mustRead, m.alone = forceReading, true, false
	switch {
	case m.phase.Twin() && m.complete != 0:
		m.enter(PhaseClaiming)
	case m.phase.Twin():
		m.do(ActionDropCopy)
		m.enter(PhaseBooting)
	default:
		m.enter(PhaseBooting)
	}
}
