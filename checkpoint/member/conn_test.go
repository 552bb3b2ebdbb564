package member

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/standby"
	"github.com/pollux-ha/pollux/checkpoint/tlstest"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// loopback is a link to oneself: what far sends, near receives.
func loopback(t *testing.T) (near, far *checkpoint.Link) {
	t.Helper()
	pki, err := tlstest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.Issue("a")
	if err != nil {
		t.Fatal(err)
	}
	creds, err := checkpoint.LoadCredentials(cert, key, pki.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled := make(chan error, 1)
	go func() {
		var err error
		far, err = checkpoint.Dial(context.Background(), l.Addr().String(), "a", creds)
		dialled <- err
	}()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, nearErr := checkpoint.Accept(context.Background(), raw, "", creds)
	if err := <-dialled; err != nil || nearErr != nil {
		t.Fatal(err, nearErr)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// reading is a member of which only the reader of one connection runs: the test is the loop.
type reading struct {
	*Member
	c    *conn
	done chan error
}

func startReading(t *testing.T, near *checkpoint.Link) *reading {
	t.Helper()
	r := &reading{Member: &Member{log: testLogger(), ctx: context.Background(), mail: newMailbox()}, done: make(chan error, 1)}
	r.c = newConn(near, nil, &wire.Hello{Node: "a", Incarnation: 1})
	r.Member.conn = r.c
	return r
}

// run begins to read and returns the first message for the loop.
func (r *reading) run() message {
	go func() { r.done <- r.Member.read(r.c) }()
	<-r.mail.ready
	return r.mail.take(nil)[0]
}

// TestReaderEndsWithConnection: frames that had arrived before the connection was dropped must not be offered to the loop, which
// would answer into nowhere, and for the second one would wait for ever.
func TestReaderEndsWithConnection(t *testing.T) {
	near, far := loopback(t)
	r := startReading(t, near)
	status := role.Status{
		From: role.Member{Node: "a", Incarnation: 1}, To: role.Member{Node: "b", Incarnation: 2}, Phase: role.PhaseFree,
	}
	w := far.Begin()
	for range 5 {
		if err := w.Role(status.Append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := far.End(nil, true); err != nil {
		t.Fatal(err)
	}
	first := r.run()
	r.Member.conn = nil // as the loop does in the middle of a batch
	r.c.close()
	if err := <-r.done; err == nil {
		t.Error("reading ended without an error")
	}
	for _, m := range append(r.mail.take(nil), first) {
		done := make(chan struct{})
		go func() { r.handle(&m); close(done) }()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("the loop waits for a reader that has ended")
		}
	}
}

// TestDroppedConnectionKeepsCheckpoint: a checkpoint that was accepted stays takeable when the connection is dropped before the reader
// has applied it, whatever came behind it.
func TestDroppedConnectionKeepsCheckpoint(t *testing.T) {
	near, far := loopback(t)
	r := startReading(t, near)
	machine, err := newFakeMachine("fake", fakeMemory, nil)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := standby.New(stateless{machine}, checkpoint.NewStats(), testLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { receiver.Close(); machine.memory.Close() })
	receiver.Begin(1)
	r.receiver.Store(receiver)

	w := far.Begin()
	w.Session = 1
	for n := uint64(1); n <= 2; n++ {
		if err := w.EpochBegin(n, wire.EpochBegin{Kind: wire.Checkpoint, State: 1}); err != nil {
			t.Fatal(err)
		}
		if err := w.State(n, []byte{byte(n)}); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			if err := w.EpochEnd(n, 0, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := far.End(nil, true); err != nil {
		t.Fatal(err)
	}
	if first := r.run(); first.event.Kind != role.EventCompleted || first.event.Epoch != 1 {
		t.Fatalf("the loop got %v", first.event)
	}
	r.ack(1, 1)
	if r.c.accepted != 1 {
		t.Fatal("not accepted")
	}
	r.c.close() // before the reader is told
	if err := <-r.done; err != nil {
		t.Logf("the reader ended: %v", err)
	}
	if err := receiver.TakeOver(1); err != nil {
		t.Error(err)
	}
}

// stateless takes any state.
type stateless struct{ *fakeMachine }

func (stateless) LoadState([]byte) error { return nil }
