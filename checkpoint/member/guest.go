package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/standby"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// guest is the copy of the VM on this host. The loop owns it.
type guest struct {
	*Guest
	description []byte
	last        uint64 // the epoch that it started from
	engine      *primary.Engine
	receiver    *standby.Receiver

	waiting chan struct{} // see gatherWaiting
	running bool          // Run was called and the role machine hasn't given it up
	paused  bool          // by the role machine
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// identity is what a Hello says of the machine here.
type identity struct {
	description []byte
	regions     []wire.Region
}

func (g *guest) identity() *identity {
	id := &identity{description: g.description}
	for _, r := range g.Machine.Memory().Regions() {
		id.regions = append(id.regions, wire.Region{Base: r.Base, Size: uint64(len(r.Bytes))})
	}
	return id
}

// each does the same to all outputs.
func (g *guest) each(f func(Output) error) error {
	var errs []error
	for _, o := range g.Outputs {
		if err := f(o); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (g *guest) fence() {
	for _, o := range g.Outputs {
		o.Fence()
	}
}

// CloseEpoch is primary.Buffer's, for all outputs.
func (g *guest) CloseEpoch(n uint64) error {
	for _, o := range g.Outputs {
		if err := o.CloseEpoch(n); err != nil {
			return err
		}
	}
	return nil
}

// Waiting is primary.Buffer's, for all outputs.
func (g *guest) Waiting() <-chan struct{} {
	switch len(g.Outputs) {
	case 0:
		return nil
	case 1:
		return g.Outputs[0].Waiting()
	}
	return g.waiting
}

// gatherWaiting makes one channel of the outputs' Waiting, until ctx is over.
func (g *guest) gatherWaiting(ctx context.Context) {
	if len(g.Outputs) < 2 {
		return
	}
	g.waiting = make(chan struct{}, 1)
	for _, o := range g.Outputs {
		g.wg.Go(func() {
			for {
				select {
				case <-o.Waiting():
				case <-ctx.Done():
					return
				}
				select {
				case g.waiting <- struct{}{}:
				default:
				}
			}
		})
	}
}

// prepare gets ready to be the twin of a peer's machine, if nothing runs here. Its error is the reason to refuse the peer.
func (m *Member) prepare(h *wire.Hello) error {
	if m.conn != nil && string(m.conn.peer.Node) != h.Node {
		return fmt.Errorf("node %s is connected to node %s already", m.cfg.Node, m.conn.peer.Node)
	}
	if len(h.Description) == 0 || m.role.Phase().Holds() {
		return nil // nothing to become, or a copy here that must stay
	}
	if m.guest != nil && bytes.Equal(m.guest.description, h.Description) {
		return nil
	}
	m.closeGuest()
	built, err := m.cfg.Host.Twin(h.Description)
	if err != nil {
		return err
	}
	g := &guest{Guest: built, description: bytes.Clone(h.Description)}
	if err := sameMemory(g.identity().regions, h.Regions); err != nil {
		return errors.Join(err, built.Close())
	}
	if g.receiver, err = standby.New(built.Machine, m.stats, m.log); err != nil {
		return errors.Join(err, built.Close())
	}
	m.guest = g
	m.receiver.Store(g.receiver)
	m.log.Info("built a machine to receive into", "memory_mib", built.Machine.Memory().Size()>>20)
	return nil
}

func sameMemory(ours, theirs []wire.Region) error {
	total := func(rs []wire.Region) (n uint64) {
		for _, r := range rs {
			n += r.Size
		}
		return n
	}
	if total(ours) != total(theirs) {
		return fmt.Errorf("memory size differs: the guest has %d MiB, the machine here %d MiB", total(theirs)>>20, total(ours)>>20)
	}
	if len(ours) != len(theirs) {
		return fmt.Errorf("memory layout differs: the guest has %d regions, the machine here %d", len(theirs), len(ours))
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			return fmt.Errorf("memory layout differs: region %d is at %#x with %d MiB, here at %#x with %d MiB",
				i, theirs[i].Base, theirs[i].Size>>20, ours[i].Base, ours[i].Size>>20)
		}
	}
	return nil
}

// boot builds and starts the guest from its beginning.
func (m *Member) boot() {
	m.closeGuest() // a twin's machine that was built in vain
	built, err := m.cfg.Host.Boot(m.ctx)
	if err != nil {
		m.fault("boot the VM", err)
		return
	}
	m.guest = &guest{Guest: built, description: bytes.Clone(built.Machine.Description())}
	m.start(m.guest)
}

// takeOver starts the guest from the checkpoint that is held here.
func (m *Member) takeOver(epoch uint64) {
	g := m.guest
	if g == nil || g.receiver == nil {
		m.fault("take over", standby.ErrNoCopy)
		return
	}
	began := now()
	if err := g.receiver.TakeOver(epoch); err != nil {
		m.fault("take over", err)
		return
	}
	loaded := now()
	g.last = epoch
	m.retireReceiver(g)
	if !m.start(g) {
		return
	}
	running := now()
	t := Takeover{Epoch: epoch, Load: loaded.Sub(began), Start: running.Sub(loaded)}
	if !m.lossSeen.IsZero() {
		t.Arbiter, t.Total = began.Sub(m.lossSeen), running.Sub(m.lossSeen)
	}
	m.mu.Lock()
	m.status.Takeover = &t
	m.mu.Unlock()
	m.log.Info("took over", "epoch", epoch, "since_loss", t.Total, "arbiter", t.Arbiter, "load", t.Load, "start", t.Start)
}

// retireReceiver ends receiving. Staging can be freed only when no reader is inside of it any more.
func (m *Member) retireReceiver(g *guest) {
	m.receiver.Store(nil)
	r := g.receiver
	g.receiver = nil
	if m.conn != nil {
		m.conn.retired = append(m.conn.retired, r)
		return
	}
	m.warn("free the standby's staging", r.Close())
}

// start runs a guest that is ready to. It reports whether it does.
func (m *Member) start(g *guest) bool {
	if g.Activate != nil {
		if err := g.Activate(); err != nil {
			m.fault("connect the guest's network", err)
			return false
		}
	}
	m.identity.Store(g.identity())
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.running, g.paused = cancel, true, false
	g.gatherWaiting(ctx)
	g.wg.Go(func() {
		err := g.Machine.Run(ctx)
		m.mail.put(message{kind: kindEnded, guest: g, err: err})
	})
	if g.Announce != nil {
		g.wg.Go(func() {
			if err := g.Announce(ctx); err != nil && ctx.Err() == nil {
				m.log.Warn("announce the guest's addresses", "error", err)
			}
		})
	}
	if m.conn != nil && !bytes.Equal(m.conn.mine.Description, g.description) {
		// The peer was told of another machine, or of none: it must meet this one.
		m.dropConn("tell the peer about the machine")
	}
	return true
}

// ended takes note that a guest's Run has returned.
func (m *Member) ended(g *guest, err error) {
	if g != m.guest || !g.running {
		return // given up on purpose
	}
	if err != nil {
		m.fault("run the VM", err)
		return
	}
	g.running = false // there is nothing left to pause or to resume
	m.log.Info("the guest has stopped")
	m.pending = append(m.pending, role.GuestStopped())
}

// destroy ends the guest for good: first its output, then itself.
func (m *Member) destroy() {
	if m.guest == nil {
		return
	}
	m.guest.fence()
	m.closeGuest()
}

// closeGuest gives back the copy here, whatever its state.
func (m *Member) closeGuest() {
	g := m.guest
	m.identity.Store(&identity{})
	if g == nil {
		return
	}
	g.running = false
	if g.cancel != nil {
		g.cancel()
	}
	m.engine.Store(nil)
	if g.engine != nil {
		m.warn("free the staging", g.engine.Close())
	}
	g.wg.Wait()
	// The link's reader may be in the machine's memory.
	m.dropConn("the copy here is given up")
	m.receiver.Store(nil)
	if g.receiver != nil {
		m.warn("free the standby's staging", g.receiver.Close())
	}
	m.warn("close the machine", g.Close())
	m.guest = nil
}

func (m *Member) warn(what string, err error) {
	if err != nil {
		m.log.Warn(what, "error", err)
	}
}
