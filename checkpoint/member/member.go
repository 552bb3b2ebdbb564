package member

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/standby"
)

// ErrFailed is wrapped by Run's error when the copy on this host can't be used any more.
var ErrFailed = errors.New("the VM's copy on this host has failed")

// Member is one VM on one host. New makes it, Run is its life.
type Member struct {
	cfg  Config
	self role.Member
	log  *slog.Logger

	stats    *checkpoint.Stats
	mail     *mailbox
	listener net.Listener // nil: this node dials, or has no peer
	wg       sync.WaitGroup

	// What the link's reader looks at. The loop sets them.
	engine   atomic.Pointer[primary.Engine]
	receiver atomic.Pointer[standby.Receiver]
	identity atomic.Pointer[identity]

	// Owned by the loop.
	role     *role.Machine
	ctx      context.Context
	guest    *guest
	conn     *conn
	pending  []role.Event // what carrying out an action has brought about
	tickEnd  time.Time    // up to where time was delivered
	failure  error        // why a fault was reported
	lossSeen time.Time    // when the peer was last found lost

	mu     sync.Mutex // guards what Status reads
	status Status
}

// New checks the configuration and, if it is to listen, does so.
func New(cfg Config) (*Member, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	m := &Member{
		cfg: cfg, log: cfg.Logger.With("vm", cfg.VM, "node", cfg.Node),
		stats: checkpoint.NewStats(), mail: newMailbox(),
		self: role.Member{Node: role.Node(cfg.Node), Incarnation: incarnation()},
	}
	var err error
	if m.role, err = role.New(cfg.role(m.self)); err != nil {
		return nil, err
	}
	m.identity.Store(&identity{})
	m.note()
	if cfg.Listen != "" {
		if m.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("listen for the peer: %w", err)
		}
	}
	return m, nil
}

// incarnation draws the number of this run: never zero, and not one that any run had before.
func incarnation() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// Addr is where the member listens, nil if it doesn't.
func (m *Member) Addr() net.Addr {
	if m.listener == nil {
		return nil
	}
	return m.listener.Addr()
}

// Run lives until the guest has stopped here (nil), ctx is over (nil; a guest here is destroyed, and its twin takes over), or the
// copy here has failed. Everything is given back when it returns. It is called once.
func (m *Member) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	m.ctx = ctx
	m.tickEnd = now()
	m.step(role.Start(m.cfg.Create, m.cfg.Boot))
	m.connect(ctx)
	m.loop(ctx)
	err := m.verdict()
	cancel()
	m.shutdown()
	return err
}

func (m *Member) loop(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var batch []message
	for !m.finished() {
		select {
		case <-ctx.Done():
			return
		case <-m.mail.ready:
		case <-ticker.C:
		}
		batch = m.mail.take(batch)
		m.advance()
		for i := range batch {
			m.handle(&batch[i])
		}
		m.note()
	}
}

// finished reports whether the role machine has come to an end from which only another run leads on.
func (m *Member) finished() bool {
	p := m.role.Phase()
	return p == role.PhaseStopped || p == role.PhaseFailed
}

func (m *Member) verdict() error {
	if m.role.Phase() != role.PhaseFailed {
		return nil
	}
	if m.failure == nil {
		return ErrFailed
	}
	return fmt.Errorf("%w: %w", ErrFailed, m.failure)
}

// advance delivers the time that has passed, and what is noticed by looking: a silent peer, a full buffer.
func (m *Member) advance() {
	t := now()
	n := uint64(t.Sub(m.tickEnd) / tick)
	if n == 0 {
		return
	}
	elapsed := time.Duration(n) * tick
	m.tickEnd = m.tickEnd.Add(elapsed)
	m.step(role.Tick(n))
	m.watchPeer(elapsed)
	if m.guest != nil && m.guest.running && m.guest.Full != nil && m.guest.Full() {
		m.step(role.BufferFull())
	}
}

func (m *Member) handle(msg *message) {
	switch msg.kind {
	case kindEvent:
		if msg.conn == nil || msg.conn == m.conn {
			m.step(msg.event)
		}
		if msg.wait {
			msg.conn.handled <- struct{}{}
		}
	case kindPrepare:
		msg.reply <- m.prepare(msg.hello)
	case kindUp:
		m.up(msg.conn)
	case kindLost:
		if msg.conn == m.conn {
			m.lost(msg.err)
		}
	case kindEnded:
		m.ended(msg.guest, msg.err)
	}
	m.drain()
}

// step gives the role machine an event and carries out what it answers, and what comes of that.
func (m *Member) step(ev role.Event) {
	m.stepOne(ev)
	m.drain()
}

func (m *Member) drain() {
	for len(m.pending) > 0 {
		next := m.pending[0]
		m.pending = append(m.pending[:0], m.pending[1:]...)
		m.stepOne(next)
	}
}

func (m *Member) stepOne(ev role.Event) {
	actions := m.role.Step(ev)
	for i := range actions {
		m.carryOut(&actions[i])
	}
}

// fault makes the role machine learn that the copy here can't be used.
func (m *Member) fault(what string, err error) {
	m.log.Error(what, "error", err)
	if m.failure == nil {
		m.failure = fmt.Errorf("%s: %w", what, err)
	}
	m.pending = append(m.pending, role.Fault())
}

// shutdown ends everything that Run has started.
func (m *Member) shutdown() {
	if m.listener != nil {
		_ = m.listener.Close()
	}
	if g := m.guest; g != nil && m.role.Phase() != role.PhaseStopped {
		// What is held is of an epoch that the twin may not have.
		g.fence()
	}
	m.closeGuest()
	m.dropConn("this node ends")
	for _, msg := range m.mail.close() {
		switch {
		case msg.reply != nil:
			msg.reply <- context.Canceled
		case msg.kind == kindUp:
			msg.conn.close()
		}
	}
	m.wg.Wait()
	m.note()
}

// operator delivers an operator's wish.
func (m *Member) operator(ev role.Event) { m.mail.put(message{kind: kindEvent, event: ev}) }

// Switchover asks to hand the guest over to the twin. What becomes of it is told by Notify.
func (m *Member) Switchover() { m.operator(role.Switchover()) }

// Fence gives up the copy on this host. Without force it is refused when the copy is the only one.
func (m *Member) Fence(force bool) { m.operator(role.Fence(force)) }

// Force runs the guest here although the protocol doesn't allow it. What only the other host holds is lost.
func (m *Member) Force() { m.operator(role.Force()) }
