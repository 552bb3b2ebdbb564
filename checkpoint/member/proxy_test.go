package member

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/arbiter"
	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

// proxy is the network between two members: TCP in the middle of which things go wrong.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	down    atomic.Bool  // refuse connections
	cutAt   atomic.Int64 // bytes until all connections are cut; <0: never
	flipAt  atomic.Int64 // bytes until one bit is flipped; <0: never
	stalled atomic.Bool  // swallow everything, keep the connections
	stallUp atomic.Bool  // the same for what the dialler sends
	slow    atomic.Int64 // pause per 16 KiB, in nanoseconds

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: make(map[net.Conn]bool)}
	p.cutAt.Store(-1)
	p.flipAt.Store(-1)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		a, err := p.listener.Accept()
		if err != nil {
			return
		}
		if p.down.Load() {
			_ = a.Close()
			continue
		}
		b, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = a.Close()
			continue
		}
		p.mu.Lock()
		p.conns[a], p.conns[b] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(b, a, &p.stallUp) })
		p.wg.Go(func() { p.copy(a, b, nil) })
	}
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *proxy) copy(dst io.WriteCloser, src io.ReadCloser, stall *atomic.Bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if at := p.flipAt.Load(); at >= 0 && p.flipAt.CompareAndSwap(at, at-int64(n)) && at < int64(n) {
				buf[at] ^= 0x10
				p.flipAt.Store(-1)
			}
			if at := p.cutAt.Load(); at >= 0 && p.cutAt.CompareAndSwap(at, at-int64(n)) && at < int64(n) {
				_, _ = dst.Write(buf[:at])
				p.cutAt.Store(-1)
				p.cut()
				return
			}
			time.Sleep(time.Duration(p.slow.Load() * int64(n) / int64(len(buf))))
			if !p.stalled.Load() && (stall == nil || !stall.Load()) {
				if _, err := dst.Write(buf[:n]); err != nil {
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// cutArbiter is an arbiter that one node can't reach.
type cutArbiter struct {
	*arbitertest.Fake
	down atomic.Bool
}

func (c *cutArbiter) Read(ctx context.Context, vm string) (role.Record, error) {
	if c.down.Load() {
		return role.Record{}, arbiter.ErrUnanswered
	}
	return c.Fake.Read(ctx, vm)
}

func (c *cutArbiter) Swap(ctx context.Context, vm string, old, next role.Record) (role.Record, error) {
	if c.down.Load() {
		return role.Record{}, arbiter.ErrUnanswered
	}
	return c.Fake.Swap(ctx, vm, old, next)
}

// logSink keeps what was logged.
type logSink struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (s *logSink) logger() *slog.Logger { return slog.New(slog.NewTextHandler(s, nil)) }

func (s *logSink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *logSink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}
