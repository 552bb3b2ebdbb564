package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

const (
	// helloTimeout bounds the hellos. A twin builds its machine meanwhile.
	helloTimeout = 10 * time.Second
	// redialFirst and redialLast bound the pauses between attempts to reach the peer.
	redialFirst = 20 * time.Millisecond
	redialLast  = time.Second
	// greetings bounds the connections that are being accepted at one time.
	greetings = 4
)

// connect starts to dial or to accept.
func (m *Member) connect(ctx context.Context) {
	switch {
	case m.listener != nil:
		m.wg.Go(func() { m.accept(ctx) })
	case m.cfg.Dial != "":
		m.wg.Go(func() { m.dial(ctx) })
	}
}

// dial keeps a connection to the peer.
func (m *Member) dial(ctx context.Context) {
	pause, said := redialFirst, ""
	for ctx.Err() == nil {
		link, err := checkpoint.Dial(ctx, m.cfg.Dial, m.cfg.PeerName, m.cfg.Credentials)
		var c *conn
		if err == nil {
			c, err = m.greet(ctx, link)
		}
		if err == nil {
			pause, said = redialFirst, ""
			if !m.mail.put(message{kind: kindUp, conn: c}) {
				c.close()
			}
			select {
			case <-c.closed:
			case <-ctx.Done():
			}
			// Whatever ended it may last for a moment.
			sleep(ctx, redialFirst)
			continue
		}
		if text := err.Error(); text != said && ctx.Err() == nil {
			// Once for each reason: the peer may be away for days.
			m.log.Warn("no connection to the peer; trying on", "peer", m.cfg.Dial, "error", err)
			said = text
		}
		sleep(ctx, pause)
		pause = min(2*pause, redialLast)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// accept takes connections until the listener is closed.
func (m *Member) accept(ctx context.Context) {
	room := make(chan struct{}, greetings)
	for {
		raw, err := m.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			m.log.Error("accept a connection", "error", err)
			sleep(ctx, redialLast) // most likely out of file descriptors
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			_ = raw.Close() // more at one time than a peer makes
			continue
		}
		m.wg.Go(func() {
			defer func() { <-room }()
			m.accepted(ctx, raw)
		})
	}
}

func (m *Member) accepted(ctx context.Context, raw net.Conn) {
	link, err := checkpoint.Accept(ctx, raw, m.cfg.PeerName, m.cfg.Credentials)
	var c *conn
	if err == nil {
		c, err = m.greet(ctx, link)
	}
	if err != nil {
		if ctx.Err() == nil {
			m.log.Warn("connection refused", "from", raw.RemoteAddr(), "error", err)
		}
		return
	}
	if !m.mail.put(message{kind: kindUp, conn: c}) {
		c.close()
	}
}

// greet exchanges hellos. On an error the link is closed.
func (m *Member) greet(ctx context.Context, link *checkpoint.Link) (*conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	c, err := m.hellos(ctx, link)
	if err != nil {
		_ = link.Close()
		return nil, err
	}
	return c, nil
}

func (m *Member) hellos(ctx context.Context, link *checkpoint.Link) (*conn, error) {
	if err := link.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, fmt.Errorf("say hello to the peer: %w", err)
	}
	mine := m.hello()
	if err := link.End(link.Begin().Hello(mine), true); err != nil {
		return nil, err
	}
	p, err := expect(link, wire.TypeHello)
	if err != nil {
		return nil, refuse(link, err, errors.Is(err, wire.ErrVersion))
	}
	theirs, err := wire.ParseHello(p)
	if err == nil {
		err = m.judge(ctx, theirs)
	}
	if err != nil {
		return nil, refuse(link, err, true)
	}
	if err := link.End(link.Begin().HelloAck(&wire.HelloAck{Node: m.cfg.Node}), true); err != nil {
		return nil, err
	}
	if p, err = expect(link, wire.TypeHelloAck); err != nil {
		return nil, err
	}
	if _, err := wire.ParseHelloAck(p); err != nil {
		return nil, err
	}
	if err := link.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("say hello to the peer: %w", err)
	}
	return newConn(link, mine, theirs), nil
}

func (m *Member) hello() *wire.Hello {
	id := m.identity.Load()
	return &wire.Hello{
		Node: m.cfg.Node, Incarnation: m.self.Incarnation, VM: m.cfg.VM,
		PageSize: wire.PageSize, Codecs: wire.CodecsRequired, Regions: id.regions, Description: id.description,
	}
}

// judge decides whether the peer can be the other half of this pair. The error is the reason why not.
func (m *Member) judge(ctx context.Context, h *wire.Hello) error {
	if h.VM != m.cfg.VM {
		return fmt.Errorf("another VM: here is %q, the peer has %q", m.cfg.VM, h.VM)
	}
	if h.Node == m.cfg.Node {
		return fmt.Errorf("both nodes are called %q", h.Node)
	}
	reply := make(chan error, 1)
	if !m.mail.put(message{kind: kindPrepare, hello: h, reply: reply}) {
		return context.Canceled
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refuse tells the peer the reason, if it would understand, and returns it.
func refuse(link *checkpoint.Link, reason error, tell bool) error {
	if tell {
		// Best effort: what counts is that the link is closed after it.
		_ = link.End(link.Begin().Refuse(reason.Error()), true)
	}
	return reason
}

// expect reads a frame of the given type. A refusal instead is the peer's reason.
func expect(link *checkpoint.Link, want wire.Type) ([]byte, error) {
	in := link.Reader()
	h, err := in.Next()
	if err != nil {
		return nil, fmt.Errorf("wait for the peer's %v: %w", want, err)
	}
	if h.Type != want && h.Type != wire.TypeRefuse {
		return nil, fmt.Errorf("%w: %v instead of %v", wire.ErrSequence, h.Type, want)
	}
	p := make([]byte, h.Length) // bounded by the type
	if err := in.Payload(p); err != nil {
		return nil, err
	}
	if h.Type == wire.TypeRefuse {
		return nil, fmt.Errorf("%w: %s", ErrRefused, wire.ParseText(p))
	}
	return p, nil
}

// ErrRefused is wrapped by the error for a peer that said why it can't be the other half of the pair.
var ErrRefused = errors.New("the peer refuses")
