package member

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/standby"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// conn is a connection to the peer on which both have said hello.
type conn struct {
	link  *checkpoint.Link
	peer  role.Member
	mine  *wire.Hello
	hello *wire.Hello

	closed  chan struct{} // closed by close
	once    sync.Once
	wg      sync.WaitGroup
	handled chan struct{} // the loop has handled what the reader waits for
	out     chan outgoing

	// The reader sets whole before it offers a checkpoint to the loop, and looks at accepted after.
	whole    standby.Whole
	accepted uint64
	busy     atomic.Bool // the reader works on what it has read: silence doesn't count

	// The loop's.
	received uint64        // of the link, when last looked at
	silent   time.Duration // since that changed
	retired  []*standby.Receiver
}

// outgoing is something small to send. Data goes past it, straight from the engine to the link.
type outgoing struct {
	status  *role.Status
	whole   standby.Whole // to acknowledge, if its epoch isn't 0
	barrier chan struct{} // to close when all before it is sent
}

// outgoingMax bounds what waits to be sent. Statuses beyond it are dropped (they are repeated); an acknowledgement that doesn't fit
// means that the peer has not read for very long.
const outgoingMax = 64

func newConn(link *checkpoint.Link, mine, hello *wire.Hello) *conn {
	return &conn{
		link: link, mine: mine, hello: hello,
		peer:   role.Member{Node: role.Node(hello.Node), Incarnation: hello.Incarnation},
		closed: make(chan struct{}), handled: make(chan struct{}, 1), out: make(chan outgoing, outgoingMax),
	}
}

// close ends the connection at once. It doesn't wait for its goroutines.
func (c *conn) close() {
	c.once.Do(func() {
		close(c.closed)
		_ = c.link.Close()
	})
}

// barrier returns a channel that is closed once all that was to be sent before is on its way.
func (c *conn) barrier() <-chan struct{} {
	done := make(chan struct{})
	select {
	case c.out <- outgoing{barrier: done}:
	case <-c.closed:
	}
	return done
}

// up makes c the connection to the peer.
func (m *Member) up(c *conn) {
	if m.ctx.Err() != nil {
		c.close()
		return
	}
	m.dropConn("the peer has connected anew")
	m.drain()
	m.conn = c
	c.wg.Go(func() { m.mail.put(message{kind: kindLost, conn: c, err: m.read(c)}) })
	c.wg.Go(func() { c.write(m.cfg.Heartbeat) })
	m.log.Info("connected to the peer", "peer", c.peer.Node, "address", c.link.Peer())
	m.step(role.PeerUp(c.peer))
}

// lost ends the connection after its reader has.
func (m *Member) lost(err error) {
	why := "the peer has closed the connection"
	if err != nil && !errors.Is(err, io.EOF) {
		why = err.Error()
	}
	m.dropConn(why)
}

// dropConn ends the connection, if there is one, waits for its goroutines, and lets the role machine know.
func (m *Member) dropConn(why string) {
	c := m.conn
	if c == nil {
		return
	}
	m.conn = nil
	c.close()
	// The engine's writer is not waited for: it belongs to the engine, and the closed link ends it.
	c.wg.Wait()
	for _, r := range c.retired {
		m.warn("free the standby's staging", r.Close())
	}
	m.log.Warn("connection to the peer ended", "peer", c.peer.Node, "why", why)
	m.pending = append(m.pending, role.PeerLost())
}

// watchPeer counts the peer as lost when it says nothing for too long. elapsed is the time since the last look; of a long one, in
// which this process may have stood still itself, only a part counts: what the peer has sent meanwhile is about to be read.
func (m *Member) watchPeer(elapsed time.Duration) {
	c := m.conn
	if c == nil {
		return
	}
	if n := c.link.Received(); n != c.received || c.busy.Load() {
		c.received, c.silent = n, 0
		return
	}
	if c.silent += min(elapsed, 2*tick); c.silent >= m.cfg.silence() {
		m.dropConn(fmt.Sprintf("silent for %v", c.silent))
		m.drain()
	}
}

// send gives the peer a status. It may get lost.
func (m *Member) send(s role.Status) {
	if m.conn == nil {
		return
	}
	select {
	case m.conn.out <- outgoing{status: &s}:
	default:
	}
}

// ack acknowledges the checkpoint that the reader has offered, and lets the reader apply it.
func (m *Member) ack(session, epoch uint64) {
	c := m.conn
	if c == nil || c.whole.Session != session || c.whole.Epoch != epoch {
		return
	}
	select {
	case c.out <- outgoing{whole: c.whole}:
		c.accepted = epoch
	default:
		m.dropConn("the peer doesn't read its acknowledgements")
	}
}

// write sends what is small, and heartbeats, until the connection ends.
func (c *conn) write(heartbeat time.Duration) {
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	buf := make([]byte, 0, wire.MaxRole)
	sequence := uint64(0)
	for {
		var err error
		select {
		case <-c.closed:
			return
		case o := <-c.out:
			if o.barrier != nil {
				close(o.barrier)
				continue
			}
			err = c.writeOne(o, buf)
		case <-ticker.C:
			sequence++
			err = c.link.End(c.link.Begin().Heartbeat(wire.Heartbeat{Sequence: sequence}), true)
		}
		if err != nil {
			// The link has closed itself: the reader reports it.
			return
		}
	}
}

func (c *conn) writeOne(o outgoing, buf []byte) error {
	w := c.link.Begin()
	if o.status != nil {
		return c.link.End(w.Role(o.status.Append(buf)), true)
	}
	w.Session = o.whole.Session
	return c.link.End(w.Ack(o.whole.Epoch, o.whole.Ack), true)
}

// read handles the peer's frames until the connection ends, and returns why.
func (m *Member) read(c *conn) error {
	in := c.link.Reader()
	var small [wire.MaxRole]byte
	for {
		c.busy.Store(false)
		h, err := in.Next()
		if err != nil {
			return err
		}
		c.busy.Store(h.Type != wire.TypePages) // the pages of an epoch may still be on their way
		switch h.Type {
		case wire.TypeHeartbeat:
			err = in.Skip(small[:])
		case wire.TypeRole:
			err = m.readStatus(c, h, small[:])
		case wire.TypeAck:
			err = m.readAck(c, h, small[:])
		case wire.TypeEpochBegin, wire.TypePages, wire.TypeState, wire.TypeEpochEnd:
			err = m.readEpoch(c, h, small[:])
		case wire.TypeBye, wire.TypeRefuse:
			p := small[:h.Length]
			if err = in.Payload(p); err == nil {
				err = fmt.Errorf("the peer says: %s", wire.ParseText(p))
			}
		default:
			err = fmt.Errorf("%w: %v after the hellos", standby.ErrPeer, h.Type)
		}
		if err != nil {
			return err
		}
	}
}

// errDropped ends the reader of a connection that this node has dropped.
var errDropped = errors.New("the connection was dropped")

// deliver gives the loop an event and waits until it was handled. After an error the reader must end, although more frames may have
// arrived: nobody listens to them any more, and a checkpoint that the loop has accepted must stay staged for a takeover.
func (m *Member) deliver(c *conn, ev role.Event) error {
	if !m.mail.put(message{kind: kindEvent, event: ev, conn: c, wait: true}) {
		return errDropped
	}
	select {
	case <-c.handled:
	case <-c.closed:
	}
	select {
	case <-c.closed: // by what was handled, perhaps
		return errDropped
	default:
		return nil
	}
}

func (m *Member) readStatus(c *conn, h wire.Header, buf []byte) error {
	p := buf[:h.Length]
	if err := c.link.Reader().Payload(p); err != nil {
		return err
	}
	s, err := role.ParseStatus(p)
	if err != nil {
		return fmt.Errorf("%w: %w", standby.ErrPeer, err)
	}
	// What follows on the link may depend on what the loop does with it.
	return m.deliver(c, role.StatusReceived(s))
}

func (m *Member) readAck(c *conn, h wire.Header, buf []byte) error {
	p := buf[:h.Length]
	if err := c.link.Reader().Payload(p); err != nil {
		return err
	}
	a, err := wire.ParseAck(p)
	if err != nil {
		return err
	}
	engine := m.engine.Load()
	if engine == nil {
		return nil
	}
	checkpoint, err := engine.Acked(h, a)
	if err != nil {
		return fmt.Errorf("%w: %w", standby.ErrPeer, err)
	}
	if checkpoint {
		m.mail.put(message{kind: kindEvent, conn: c, event: role.Acked(h.Session, role.Epoch(h.Epoch))})
	}
	return nil
}

func (m *Member) readEpoch(c *conn, h wire.Header, buf []byte) error {
	r := m.receiver.Load()
	if r == nil {
		return c.link.Reader().Skip(buf)
	}
	whole, done, err := r.Receive(h, c.link.Reader())
	if err != nil || !done {
		return err
	}
	c.busy.Store(true)
	if whole.Ack.Kind == wire.Round {
		select {
		case c.out <- outgoing{whole: whole}:
			return nil
		case <-c.closed:
			return errDropped
		}
	}
	c.whole, c.accepted = whole, 0
	if err := m.deliver(c, role.Completed(whole.Session, role.Epoch(whole.Epoch))); err != nil {
		return err
	}
	if c.accepted != whole.Epoch {
		m.log.LogAttrs(m.ctx, slog.LevelDebug, "checkpoint not acknowledged", slog.Uint64("epoch", whole.Epoch))
		return nil
	}
	return r.Apply(whole.Epoch)
}
