package register

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startServer(t *testing.T) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func dial(t *testing.T, network string, address string, options ClientOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), network, address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// attempts keeps what a client records.
type attempts struct{ ops []Operation }

func (a *attempts) Begin(uint64, time.Time) {}
func (a *attempts) Record(op Operation)     { a.ops = append(a.ops, op) }

func TestOperations(t *testing.T) {
	s := startServer(t)
	steps := []struct {
		r      Request
		status Status
		value  uint64
	}{
		{Request{Op: Read, Register: 3}, OK, 0},
		{Request{Op: Write, Register: 3, Value: 7}, OK, 7},
		{Request{Op: Read, Register: 3}, OK, 7},
		{Request{Op: CompareAndSwap, Register: 3, Expect: 6, Value: 8}, Mismatch, 7},
		{Request{Op: CompareAndSwap, Register: 3, Expect: 7, Value: 8}, OK, 8},
		{Request{Op: Read, Register: 4}, OK, 0},
		{Request{Op: Write, Register: 255, Value: 1}, OK, 1},
		{Request{Op: Write, Register: 256, Value: 1}, BadRequest, 0},
		{Request{Op: 9, Register: 3}, BadRequest, 8},
	}
	// One after the other over changing networks: the registers and the counter are shared.
	clients := []*Client{dial(t, "tcp", s.Addr().String(), ClientOptions{}), dial(t, "udp", s.Addr().String(), ClientOptions{Timeout: time.Minute})}
	for i, step := range steps {
		a, err := clients[i%2].Do(t.Context(), step.r)
		if err != nil {
			t.Fatal(err)
		}
		if a.Status != step.status || a.Value != step.value || a.Sequence != uint64(i+1) || a.Boot != s.Boot() {
			t.Errorf("step %d: %+v gave %+v", i, step.r, a)
		}
	}
	if s.Sequence() != uint64(len(steps)) {
		t.Errorf("sequence is %d after %d answers", s.Sequence(), len(steps))
	}
}

func TestPipelinedRequests(t *testing.T) {
	s := startServer(t)
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const n = 500
	var all []byte
	for i := range n {
		all = AppendRequest(all, Request{Op: Write, Register: 1, ID: uint64(i), Value: uint64(i)})
	}
	go conn.Write(all) //nolint:errcheck // seen by the reads below
	var b [AnswerSize]byte
	for i := range n {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			t.Fatal(err)
		}
		if a, err := ParseAnswer(b[:]); err != nil || a.ID != uint64(i) || a.Sequence != uint64(i+1) {
			t.Fatalf("answer %d is %+v, %v", i, a, err)
		}
	}
}

func TestMalformedInput(t *testing.T) {
	s := startServer(t)
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, RequestSize)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a malformed request was answered")
	}
	udp, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	good := AppendRequest(nil, Request{Op: Read, ID: 5})
	for _, p := range [][]byte{{}, good[:20], append(good, 0), make([]byte, 2000), good} {
		if _, err := udp.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	var b [100]byte
	n, err := udp.Read(b[:])
	if err != nil {
		t.Fatal(err)
	}
	// Sequence 1: nothing malformed was counted.
	if a, err := ParseAnswer(b[:n]); err != nil || a.ID != 5 || a.Sequence != 1 {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestUDPRetriesWithFreshIDs(t *testing.T) {
	// A server that ignores the first two datagrams, answers the third with a stale answer first, and then well.
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var b [100]byte
		var first Request
		for i := range 3 {
			n, peer, err := pc.ReadFrom(b[:])
			if err != nil {
				return
			}
			q, err := ParseRequest(b[:n])
			if err != nil {
				return
			}
			if i == 0 {
				first = q
			}
			if i == 2 {
				pc.WriteTo(AppendAnswer(nil, Answer{Op: first.Op, Register: first.Register, Client: first.Client, ID: first.ID, Value: 1, Sequence: 1}), peer) //nolint:errcheck // the client's retry shows it
				pc.WriteTo(AppendAnswer(nil, Answer{Op: q.Op, Register: q.Register, Client: q.Client, ID: q.ID, Value: 2, Sequence: 2}), peer)                 //nolint:errcheck // the client's retry shows it
			}
		}
	}()
	defer func() { pc.Close(); <-done }()
	var rec attempts
	c := dial(t, "udp", pc.LocalAddr().String(), ClientOptions{Timeout: 50 * time.Millisecond, Recorder: &rec})
	a, err := c.Write(t.Context(), 9, 77)
	if err != nil {
		t.Fatal(err)
	}
	if a.Value != 2 {
		t.Errorf("took the stale answer: %+v", a)
	}
	if len(rec.ops) != 3 || rec.ops[0].Known || rec.ops[1].Known || !rec.ops[2].Known {
		t.Fatalf("recorded %+v", rec.ops)
	}
	for i, op := range rec.ops {
		if op.Request.ID != uint64(i+1) || !op.UDP || op.Return.Before(op.Call) || op.Request.Value != 77 {
			t.Errorf("attempt %d is %+v", i, op)
		}
	}
}

func TestUDPPortUnreachable(t *testing.T) {
	var rec attempts
	c := dial(t, "udp", "127.0.0.1:1", ClientOptions{Timeout: 20 * time.Millisecond, Recorder: &rec})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Read(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if len(rec.ops) < 2 || len(rec.ops) > 8 {
		t.Errorf("%d attempts in 100 ms with 20 ms each", len(rec.ops))
	}
	for _, op := range rec.ops {
		if op.Known || op.Reset {
			t.Errorf("attempt is %+v", op)
		}
	}
}

func TestTCPClientWithoutAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var rec attempts
	c := dial(t, "tcp", l.Addr().String(), ClientOptions{Timeout: 30 * time.Millisecond, Recorder: &rec})
	_, err = c.Read(t.Context(), 0)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if _, again := c.Read(t.Context(), 0); again == nil {
		t.Error("a client goes on after an answer may have been cut in half")
	}
	if len(rec.ops) != 1 || rec.ops[0].Known || rec.ops[0].Reset {
		t.Errorf("recorded %+v", rec.ops)
	}
}

func TestTCPReset(t *testing.T) {
	s := startServer(t)
	var rec attempts
	c := dial(t, "tcp", s.Addr().String(), ClientOptions{Recorder: &rec})
	if _, err := c.Read(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), 0); err == nil {
		t.Error("no error from a closed server")
	}
	if len(rec.ops) != 2 || !rec.ops[1].Reset {
		t.Errorf("recorded %+v", rec.ops)
	}
}

func TestCancel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dial(t, "tcp", l.Addr().String(), ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := c.Read(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestBadAddress(t *testing.T) {
	s := startServer(t)
	if _, err := Listen(s.Addr().String(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("two servers on one port")
	}
	if _, err := Dial(t.Context(), "unix", "/tmp/x", ClientOptions{}); err == nil {
		t.Error("a client over a Unix socket")
	}
}
