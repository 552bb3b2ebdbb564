package role

// moveKind is a kind of thing that can happen in the model.
type moveKind uint8

const (
	moveDeliver   moveKind = iota // message arg arrives at node
	moveRepeat                    // and will arrive again
	moveLose                      // is lost
	moveConnect                   // the hosts connect
	moveHear                      // the machine of node hears of the connection
	movePeerLost                  // node takes the other one for lost
	moveExecute                   // the arbiter carries out request arg
	moveAnswer                    // its answer arrives
	moveAnswerTwo                 // and will arrive again
	moveLoseAsk                   // request or answer arg is lost
	moveGiveUp                    // node gives up waiting for the arbiter
	moveTick
	moveSyncReady
	moveSyncFailed
	moveWork    // the guest of node runs and sends
	moveCapture // an epoch ends on node
	moveBufferFull
	moveCrash
	moveRestart
	moveSleep
	moveWake
	moveFault
	moveRepair
	moveSwitchover
	moveFence
	moveGuestStops
	moveCut  // messages to node are lost from now on
	moveMend // no more
	moveArbiterDown
	moveArbiterUp
	moveArbiterCut // node can't reach the arbiter
	moveArbiterMend
	moveKinds
)

var moveNames = [moveKinds]string{
	moveDeliver: "deliver", moveRepeat: "deliver-twice", moveLose: "lose", moveConnect: "connect",
	moveHear: "hear", movePeerLost: "peer-lost", moveExecute: "execute", moveAnswer: "answer",
	moveAnswerTwo: "answer-twice", moveLoseAsk: "lose-request", moveGiveUp: "give-up", moveTick: "tick",
	moveSyncReady: "sync-ready", moveSyncFailed: "sync-failed", moveWork: "work", moveCapture: "capture",
	moveBufferFull: "buffer-full", moveCrash: "crash", moveRestart: "restart", moveSleep: "sleep",
	moveWake: "wake", moveFault: "fault", moveRepair: "repair", moveSwitchover: "switchover",
	moveFence: "fence", moveGuestStops: "guest-stops", moveCut: "cut", moveMend: "mend", moveArbiterDown: "down", moveArbiterUp: "up",
	moveArbiterCut: "arbiter-cut", moveArbiterMend: "arbiter-mend",
}

func (k moveKind) String() string { return moveNames[k] }

type move struct {
	kind moveKind
	node uint8
	arg  uint8
}

// try makes the move and reports whether it was possible.
func (r *rig) try(mv move) bool {
	r.now++
	if !r.make(mv) {
		r.now--
		return false
	}
	r.check()
	return true
}

func (r *rig) make(mv move) bool {
	switch i := int(mv.node); {
	case mv.kind <= moveLose:
		return r.moveMessage(mv.kind, i, mv.arg)
	case mv.kind >= moveExecute && mv.kind <= moveLoseAsk:
		return r.moveRequest(mv.kind, mv.arg)
	case mv.kind >= moveCrash:
		return r.moveFault(mv.kind, i)
	case mv.kind == moveConnect:
		return r.connect()
	default:
		h := &r.hosts[i]
		return h.run != 0 && !h.asleep && r.moveHost(mv.kind, i)
	}
}

func (r *rig) moveMessage(kind moveKind, i int, k uint8) bool {
	if k >= r.nnet[i] || r.hosts[i].asleep {
		return false
	}
	if r.net[i][k].conn == r.hosts[i].upConn {
		return false // it has to hear of the connection first
	}
	switch kind {
	case moveDeliver:
		r.deliver(i, k, false)
	case moveRepeat:
		r.deliver(i, k, true)
	default:
		r.removeMessage(i, k)
	}
	return true
}

func (r *rig) moveRequest(kind moveKind, k uint8) bool {
	if k >= r.nasks {
		return false
	}
	q := &r.asks[k]
	switch kind {
	case moveExecute:
		// A request that was carried out may be carried out again when the
		// network repeats it.
		if r.arbDown || r.arbCut[q.node] {
			return false
		}
		r.execute(k)
	case moveLoseAsk:
		r.removeAsk(k)
	default:
		if !q.done || r.arbCut[q.node] || r.hosts[q.node].asleep {
			return false
		}
		r.answer(k, kind == moveAnswerTwo)
	}
	return true
}

func (r *rig) connect() bool {
	a, b := &r.hosts[0], &r.hosts[1]
	if a.run == 0 || b.run == 0 || a.asleep || b.asleep || r.cut[0] || r.cut[1] {
		return false
	}
	if a.conn != 0 && a.conn == b.conn || a.upConn != 0 || b.upConn != 0 {
		return false
	}
	r.lastConn++
	a.upConn, b.upConn = r.lastConn, r.lastConn
	return true
}

func (r *rig) moveHost(kind moveKind, i int) bool {
	h := &r.hosts[i]
	switch kind {
	case moveHear:
		if h.upConn == 0 || r.hosts[1-i].run == 0 {
			return false
		}
		h.conn, h.upConn = h.upConn, 0
		r.step(i, PeerUp(memberOf(1-i, r.hosts[1-i].run)))
	case movePeerLost:
		if h.conn == 0 {
			return false
		}
		h.conn = 0
		r.step(i, PeerLost())
	case moveGiveUp:
		if h.pending == 0 {
			return false
		}
		id := h.pending
		h.pending = 0
		r.step(i, Unanswered(id))
	case moveTick:
		r.step(i, Tick(1))
	case moveSyncReady:
		if h.st.phase != PhaseSyncing {
			return false
		}
		r.step(i, SyncReady(h.shipping))
	case moveSyncFailed:
		if h.shipping == 0 {
			return false
		}
		r.step(i, SyncFailed(h.shipping))
	case moveWork:
		if !h.guest || h.paused || h.off {
			return false
		}
		r.work(i)
	case moveCapture:
		if !h.guest || !h.capture && (!h.epochs || h.frozen || h.shipping == 0) {
			return false
		}
		r.finishCapture(i)
	case moveBufferFull:
		if !h.guest || h.open || h.paused {
			return false
		}
		r.step(i, BufferFull())
	}
	return true
}

func (r *rig) moveFault(kind moveKind, i int) bool {
	h := &r.hosts[i]
	set := func(b *bool, to bool) bool {
		changed := *b != to
		*b = to
		return changed
	}
	switch kind {
	case moveCut:
		return set(&r.cut[i], true)
	case moveMend:
		return set(&r.cut[i], false)
	case moveArbiterDown:
		return set(&r.arbDown, true)
	case moveArbiterUp:
		return set(&r.arbDown, false)
	case moveArbiterCut:
		return set(&r.arbCut[i], true)
	case moveArbiterMend:
		return set(&r.arbCut[i], false)
	case moveRestart:
		if h.run != 0 {
			return false
		}
		r.start(i)
		return true
	case moveWake:
		if h.run == 0 || !set(&h.asleep, false) {
			return false
		}
		r.logf("%s wakes up", nodeNames[i])
		h.woke = r.now
		r.step(i, Tick(r.m.cfg.StallTicks+h.slept))
		return true
	}
	if h.run == 0 {
		return false
	}
	switch kind {
	case moveCrash:
		r.crash(i)
	case moveSleep:
		if h.asleep {
			return false
		}
		r.logf("%s falls asleep", nodeNames[i])
		h.asleep = true
	case moveFault:
		return r.moveOperator(i, Fault(), h.st.phase != PhaseFailed)
	case moveRepair:
		return r.moveOperator(i, Repaired(), h.st.phase == PhaseFailed || h.st.phase == PhaseStopped)
	case moveGuestStops:
		h.off = h.off || h.guest && !h.asleep
		return r.moveOperator(i, GuestStopped(), h.guest)
	case moveSwitchover:
		return r.moveOperator(i, Switchover(), h.st.phase == PhaseProtected)
	case moveFence:
		return r.moveOperator(i, Fence(false), h.st.phase == PhaseProtected || h.st.phase.Twin())
	}
	return true
}

func (r *rig) moveOperator(i int, ev Event, possible bool) bool {
	if !possible || r.hosts[i].asleep {
		return false
	}
	r.step(i, ev)
	return true
}
