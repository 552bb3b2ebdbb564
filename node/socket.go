package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// socketTerminal is a console on a Unix socket: who connected last sees what the guest prints from then on, and types.
type socketTerminal struct {
	listener net.Listener
	log      *slog.Logger
	closed   closeOnce

	mu   sync.Mutex
	conn net.Conn // nil: nobody is connected
}

func listenTerminal(path string, log *slog.Logger) (*socketTerminal, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w (is another machine using it? remove the file if not)", err)
	}
	return &socketTerminal{listener: l, log: log}, nil
}

// Write implements terminal. Without a reader the output is lost, as on a line with nothing at its end.
func (t *socketTerminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn != nil {
		if _, err := conn.Write(p); err != nil {
			t.drop(conn)
		}
	}
	return len(p), nil
}

// SetWriteDeadline bounds what is being written: a console that ends asks for it, so that a user who doesn't read can't keep this host
// from giving a machine up.
func (t *socketTerminal) SetWriteDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		return nil
	}
	return t.conn.SetWriteDeadline(at)
}

// Run implements terminal.
func (t *socketTerminal) Run(ctx context.Context, feed func(context.Context, []byte) error) error {
	stop := context.AfterFunc(ctx, func() { _ = t.Close() })
	defer stop()
	var readers sync.WaitGroup
	defer readers.Wait()
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("console socket: %w", err)
		}
		t.mu.Lock()
		before := t.conn
		t.conn = conn
		t.mu.Unlock()
		if before != nil {
			before.Close()
		}
		readers.Go(func() {
			// However reading ends, this connection is over and the socket waits for the next one.
			err := pump(ctx, conn, nil, feed)
			t.log.Debug("console connection ended", "error", err)
			t.drop(conn)
		})
	}
}

func (t *socketTerminal) drop(conn net.Conn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == conn {
		t.conn = nil
	}
}

// Close ends the listener, which removes the socket, and the connection.
func (t *socketTerminal) Close() error {
	return t.closed.do(func() error {
		err := t.listener.Close()
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.conn != nil {
			t.conn.Close()
		}
		return err
	})
}
