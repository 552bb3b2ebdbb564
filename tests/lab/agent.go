package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// agent serves the lab inside a node. See wire.go for its protocol. It trusts whoever reaches it: only the lab's manage network
// does.
type agent struct {
	log      *slog.Logger
	children *children
	started  time.Time
	// off is called once when the lab asks for an orderly shutdown.
	off func()

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu; nil once closed
	wg    sync.WaitGroup
}

func newAgent(log *slog.Logger, off func()) *agent {
	return &agent{
		log: log, children: newChildren(), started: time.Now(), off: sync.OnceFunc(off),
		conns: make(map[net.Conn]struct{}),
	}
}

// serve answers connections until ctx ends; then it closes them all and waits for their goroutines.
func (a *agent) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer a.close()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("agent: accept: %w", err)
		}
		if !a.track(conn) {
			conn.Close()
			continue
		}
		a.wg.Go(func() {
			defer a.untrack(conn)
			if err := a.handle(ctx, conn); err != nil && !errors.Is(err, io.EOF) {
				a.log.Warn("agent operation failed", "peer", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

func (a *agent) track(c net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns == nil {
		return false
	}
	a.conns[c] = struct{}{}
	return true
}

func (a *agent) untrack(c net.Conn) {
	c.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
}

func (a *agent) close() {
	a.mu.Lock()
	for c := range a.conns {
		c.Close()
	}
	a.conns = nil
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *agent) handle(ctx context.Context, conn net.Conn) error {
	var req request
	if err := readMessage(conn, &req); err != nil {
		return err
	}
	switch req.Op {
	case opExec:
		return a.exec(ctx, conn, req.Exec)
	case opPut:
		return a.put(conn, req)
	case opGet:
		return a.get(conn, req.Path)
	case opDial:
		return a.dial(ctx, conn, req.Dial)
	case opWatch:
		return a.watch(ctx, conn)
	case opOff:
		err := writeMessage(conn, answer{})
		a.off()
		return err
	default:
		return refuse(conn, fmt.Errorf("no operation %q", req.Op))
	}
}

// refuse answers with an error. What it returns is only about the answering.
func refuse(conn io.Writer, err error) error {
	return writeMessage(conn, answer{Error: err.Error()})
}

// put receives a file as a whole: it appears under its name when it is complete.
func (a *agent) put(conn net.Conn, req request) error {
	if err := writeMessage(conn, answer{}); err != nil {
		return err
	}
	err := receiveFile(conn, req)
	if err != nil {
		return refuse(conn, err)
	}
	return writeMessage(conn, answer{})
}

func receiveFile(r io.Reader, req request) error {
	if req.Size < 0 || !filepath.IsAbs(req.Path) {
		return fmt.Errorf("put %q with %d bytes: need an absolute path and a size", req.Path, req.Size)
	}
	if err := os.MkdirAll(filepath.Dir(req.Path), 0o755); err != nil {
		return fmt.Errorf("put %s: %w", req.Path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(req.Path), ".put-*")
	if err != nil {
		return fmt.Errorf("put %s: %w", req.Path, err)
	}
	_, err = io.CopyN(f, r, req.Size)
	err = errors.Join(err, f.Chmod(os.FileMode(req.Mode)&os.ModePerm), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), req.Path)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", req.Path, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func (a *agent) get(conn net.Conn, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return refuse(conn, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return refuse(conn, err)
	}
	if !st.Mode().IsRegular() {
		return refuse(conn, fmt.Errorf("get %s: not a regular file", path))
	}
	if err := writeMessage(conn, answer{Size: st.Size()}); err != nil {
		return err
	}
	if _, err := io.CopyN(conn, f, st.Size()); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

func (a *agent) dial(ctx context.Context, conn net.Conn, target *dialTarget) error {
	if target == nil || (target.Network != "unix" && target.Network != "tcp") {
		return refuse(conn, fmt.Errorf("dial: need a unix or tcp target, got %+v", target))
	}
	var d net.Dialer
	peer, err := d.DialContext(ctx, target.Network, target.Address)
	if err != nil {
		return refuse(conn, err)
	}
	defer peer.Close()
	stop := context.AfterFunc(ctx, func() { peer.Close() })
	defer stop()
	if err := writeMessage(conn, answer{}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { splice(peer, conn) })
	splice(conn, peer)
	wg.Wait()
	return nil
}

// splice copies until src ends, then passes the end on. An error ends the pair as a whole.
func splice(dst, src net.Conn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok {
		if c.CloseWrite() == nil {
			return
		}
	}
	dst.Close()
}

func (a *agent) watch(ctx context.Context, conn net.Conn) error {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	for {
		if err := writeMessage(conn, answer{Uptime: time.Since(a.started)}); err != nil {
			return nil // the lab hung up: the usual end
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
