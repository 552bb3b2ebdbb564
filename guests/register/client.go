package register

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"
)

// Operation is one attempt of a client as seen from its side: what was asked, when, and what came back.
type Operation struct {
	Stream  uint64 // one connection or flow of one client
	UDP     bool
	Request Request
	Answer  Answer // valid if Known
	// Known is false if no answer came: the server may or may not have done it, and may still do it later.
	Known  bool
	Reset  bool // the connection was broken by the other side while the request was out
	Call   time.Time
	Return time.Time // when the answer came or the client gave up
}

// Recorder takes every attempt of a client, also those without an answer. It is called from the goroutine that uses the
// client, right after the attempt.
type Recorder interface {
	// Begin tells of an attempt before its request is sent.
	Begin(stream uint64, at time.Time)
	// Record tells of the same attempt when it has ended.
	Record(op Operation)
}

// ClientOptions says how a client behaves.
type ClientOptions struct {
	// Timeout bounds each attempt: a UDP attempt is followed by another one, a TCP connection is given up. Zero means
	// 250 ms for UDP and one minute for TCP, which leaves a takeover time to finish.
	Timeout time.Duration
	// Recorder may be nil.
	Recorder Recorder
}

// Client talks to one server over one TCP connection or one UDP flow, one request at a time. It is for one goroutine.
type Client struct {
	conn    net.Conn
	udp     bool
	id      uint64
	next    uint64
	options ClientOptions
	buf     [RequestSize]byte
	in      [AnswerSize + 1]byte // one more byte shows a datagram that is too long
	broken  error
}

// Dial opens a client; network is "tcp" or "udp".
func Dial(ctx context.Context, network, address string, options ClientOptions) (*Client, error) {
	udp := network == "udp"
	if !udp && network != "tcp" {
		return nil, fmt.Errorf("register client over %q: want tcp or udp", network)
	}
	if options.Timeout == 0 {
		options.Timeout = time.Minute
		if udp {
			options.Timeout = 250 * time.Millisecond
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to register server %s over %s: %w", address, network, err)
	}
	return &Client{conn: conn, udp: udp, id: rand.Uint64(), options: options}, nil
}

// ID is the client's number in its requests; also the stream of its operations.
func (c *Client) ID() uint64 { return c.id }

// Close closes the connection. Closing unblocks a Do of another goroutine.
func (c *Client) Close() error { return c.conn.Close() }

// Read returns the register's value.
func (c *Client) Read(ctx context.Context, register uint16) (Answer, error) {
	return c.Do(ctx, Request{Op: Read, Register: register})
}

// Write sets the register.
func (c *Client) Write(ctx context.Context, register uint16, value uint64) (Answer, error) {
	return c.Do(ctx, Request{Op: Write, Register: register, Value: value})
}

// CompareAndSwap sets the register to value if it holds expect; Answer.Status tells which.
func (c *Client) CompareAndSwap(ctx context.Context, register uint16, expect, value uint64) (Answer, error) {
	return c.Do(ctx, Request{Op: CompareAndSwap, Register: register, Expect: expect, Value: value})
}

// Do sends r with the client's number and a fresh id and waits for its answer. Over UDP a request without an answer is
// sent again, each time with another id, until ctx ends: an earlier attempt may have been carried out as well. Over TCP
// an error leaves the client unusable, and whether r was carried out unknown.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	if c.broken != nil {
		return Answer{}, c.broken
	}
	// The deadline of the attempt is what ends a blocked read when ctx does.
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // only fails on a closed connection
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended // or it would cut short the next call's wait
		}
	}()
	for {
		a, err := c.attempt(ctx, r)
		if err == nil {
			return a, nil
		}
		err = fmt.Errorf("%v register %d at %s: %w", r.Op, r.Register, c.conn.RemoteAddr(), err)
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		if !c.udp {
			c.broken = err // the stream may hold half an answer
			return Answer{}, err
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return Answer{}, err
		}
	}
}

// attempt sends r once and records what came of it.
func (c *Client) attempt(ctx context.Context, r Request) (Answer, error) {
	c.next++
	r.Client, r.ID = c.id, c.next
	op := Operation{Stream: c.id, UDP: c.udp, Request: r, Call: time.Now()}
	if c.options.Recorder != nil {
		c.options.Recorder.Begin(c.id, op.Call)
	}
	a, err := c.exchange(ctx, r, op.Call.Add(c.options.Timeout))
	op.Return = time.Now()
	op.Answer, op.Known = a, err == nil
	// A UDP flow cannot be reset; what looks like it is a port unreachable, and the next attempt may succeed.
	op.Reset = !c.udp && isReset(err)
	if c.options.Recorder != nil {
		c.options.Recorder.Record(op)
	}
	return a, err
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

func (c *Client) exchange(ctx context.Context, r Request, deadline time.Time) (Answer, error) {
	if err := c.conn.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	// A ctx that ended before the deadline was set would otherwise go unnoticed.
	if err := ctx.Err(); err != nil {
		return Answer{}, err
	}
	if _, err := c.conn.Write(AppendRequest(c.buf[:0], r)); err != nil {
		return Answer{}, c.pause(ctx, err, deadline)
	}
	if !c.udp {
		return c.readStream(r)
	}
	for {
		n, err := c.conn.Read(c.in[:])
		if err != nil {
			return Answer{}, c.pause(ctx, err, deadline)
		}
		// An answer to an earlier attempt is too late: that attempt has been recorded as unknown.
		if a, err := ParseAnswer(c.in[:n]); err == nil && a.Answers(r) {
			return a, nil
		}
	}
}

func (c *Client) readStream(r Request) (Answer, error) {
	if _, err := io.ReadFull(c.conn, c.in[:AnswerSize]); err != nil {
		return Answer{}, err
	}
	a, err := ParseAnswer(c.in[:AnswerSize])
	if err != nil {
		return Answer{}, err
	}
	if !a.Answers(r) {
		return Answer{}, fmt.Errorf("%w: answer to %v of register %d, id %d, where id %d was asked", ErrMalformed, a.Op, a.Register, a.ID, r.ID)
	}
	return a, nil
}

// pause lets the rest of a UDP attempt's time go by after an error that came at once (port or host unreachable), so that
// retries don't spin. It returns err.
func (c *Client) pause(ctx context.Context, err error, deadline time.Time) error {
	if !c.udp || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return err
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	return err
}
