package member

import (
	"bytes"
	"context"
	"log/slog"

	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

// carryOut does what the role machine asks for. What can fail and takes the copy with it becomes a fault; results that take time
// become events.
func (m *Member) carryOut(a *role.Action) {
	if m.log.Enabled(m.ctx, slog.LevelDebug) && a.Kind != role.ActionSend && a.Kind != role.ActionRelease && a.Kind != role.ActionAck {
		m.log.Debug("role", "action", a.String(), "phase", m.role.Phase())
	}
	switch a.Kind {
	case role.ActionHold:
		m.output("hold the guest's output", Output.Hold)
	case role.ActionRelease:
		m.output("release the guest's output", func(o Output) error { return o.Release(uint64(a.Epoch)) })
	case role.ActionReleaseAll:
		m.output("let the guest's output pass", Output.Passthrough)
	case role.ActionSend:
		m.send(a.Status)
	case role.ActionAck:
		m.ack(a.Session, uint64(a.Epoch))
	case role.ActionSwap, role.ActionRead:
		m.ask(*a)
	case role.ActionStartSync:
		m.startSync(a.Session)
	case role.ActionStopSync:
		if m.guest != nil && m.guest.engine != nil {
			m.guest.engine.StopSync()
		}
	case role.ActionCapture:
		if m.guest != nil && m.guest.engine != nil {
			m.guest.engine.Capture(a.Session, a.Frozen)
		}
	case role.ActionPause:
		m.pause()
	case role.ActionResume:
		m.resume()
	case role.ActionBeginStandby:
		m.beginStandby(a.Session)
	case role.ActionDropCopy:
		if m.guest != nil && m.guest.receiver != nil {
			m.guest.receiver.Drop()
		}
	case role.ActionTakeOver:
		m.takeOver(uint64(a.Epoch))
	case role.ActionBoot:
		m.boot()
	case role.ActionDestroy:
		m.destroy()
	case role.ActionRaise:
		m.raise(a)
	}
}

// output does something to all outputs. One that can't do it can't be trusted with the next either.
func (m *Member) output(what string, f func(Output) error) {
	if m.guest == nil {
		return // booting or taking over has failed; the fault is on its way
	}
	if err := m.guest.each(f); err != nil {
		m.guest.fence()
		m.fault(what, err)
	}
}

func (m *Member) raise(a *role.Action) {
	if a.Notice == role.NoticePeerLost {
		m.lossSeen = now()
	}
	if m.cfg.Notify != nil {
		m.cfg.Notify(*a)
		return
	}
	m.log.Info(a.Notice.String(), "record", a.Record.String(), "phase", m.role.Phase().String())
}

// pause stops the guest. Here and in resume a refusal is no fault of the copy: a guest that has just powered off refuses too, and
// must not come back on the twin. A machine that really fails ends its Run with an error, and that is the fault.
func (m *Member) pause() {
	if g := m.guest; g != nil && g.running && !g.paused {
		if err := g.Machine.Freeze(); err != nil {
			m.warn("pause the guest", err)
			return
		}
		g.paused = true
	}
}

// resume undoes pause, or a capture that was to leave the guest frozen.
func (m *Member) resume() {
	g := m.guest
	if g == nil || !g.running {
		return
	}
	if g.paused {
		g.paused = false
		if err := g.Machine.Thaw(); err != nil {
			m.warn("resume the guest", err)
			return
		}
	}
	if g.engine != nil {
		m.warn("resume the guest", g.engine.Resume())
	}
}

func (m *Member) startSync(session uint64) {
	g := m.guest
	if g == nil || m.conn == nil {
		m.pending = append(m.pending, role.SyncFailed(session))
		return
	}
	if g.engine == nil {
		engine, err := primary.New(primary.Config{
			Machine: g.Machine, Buffer: g, Events: engineEvents{m}, Stats: m.stats, Logger: m.log,
			Pace: m.cfg.Pace, AreaPages: m.cfg.AreaPages,
		}, g.last)
		if err != nil {
			m.log.Error("start to copy to the peer", "error", err)
			m.pending = append(m.pending, role.SyncFailed(session))
			return
		}
		g.engine = engine
		m.engine.Store(engine)
	}
	// The peer must hear of the session, in a status, before its data.
	g.engine.StartSync(session, m.conn.link, m.conn.barrier())
}

// engineEvents reports an engine's doings to the loop.
type engineEvents struct{ m *Member }

// SyncReady is primary.Events'.
func (e engineEvents) SyncReady(session uint64) { e.m.operator(role.SyncReady(session)) }

// SyncFailed is primary.Events'.
func (e engineEvents) SyncFailed(session uint64, err error) {
	e.m.log.Warn("copying to the peer has ended", "session", session, "error", err)
	e.m.operator(role.SyncFailed(session))
}

// Captured is primary.Events'.
func (e engineEvents) Captured(epoch uint64, asked bool) {
	e.m.operator(role.Captured(role.Epoch(epoch), asked))
}

// beginStandby gets ready to receive a session.
func (m *Member) beginStandby(session uint64) {
	g, c := m.guest, m.conn
	if c == nil {
		return // the role machine is about to hear of it
	}
	if g == nil || g.receiver == nil || !bytes.Equal(g.description, c.hello.Description) {
		// When the peer said hello there was a copy here that had to stay. On the next hello there will be a machine like the peer's.
		m.dropConn("meet the peer's machine")
		return
	}
	g.receiver.Begin(session)
}

// ask puts a question to the arbiter and lets the answer come as an event.
func (m *Member) ask(a role.Action) {
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.ctx, m.cfg.ArbiterTimeout)
		defer cancel()
		var r role.Record
		var err error
		if a.Kind == role.ActionSwap {
			r, err = m.cfg.Arbiter.Swap(ctx, m.cfg.VM, a.Old, a.New)
		} else {
			r, err = m.cfg.Arbiter.Read(ctx, m.cfg.VM)
		}
		if err == nil {
			err = r.Validate()
		}
		if err != nil {
			// Once for each reason: it is asked again and again.
			if m.setArbiter(err.Error()) && m.ctx.Err() == nil {
				m.log.Warn("no answer from the arbiter; asking on", "request", a.String(), "error", err)
			}
			m.operator(role.Unanswered(a.Request))
			return
		}
		if m.setArbiter("") {
			m.log.Info("the arbiter answers")
		}
		m.operator(role.Observed(a.Request, r))
	})
}
