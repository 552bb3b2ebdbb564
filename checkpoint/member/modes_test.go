package member

import (
	"crypto/tls"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// TestWithoutArbiter: protection works, but the twin takes over only when an operator says so.
func TestWithoutArbiter(t *testing.T) {
	p := newPair(t, func(a, b *Config, _, _ *fakeHost) { a.Arbiter, b.Arbiter = nil, nil })
	p.awaitProtected()
	p.awaitFrames(200)
	p.a.stop()
	p.await("b to ask for an operator", func() bool { return p.b.noticed(role.NoticeAwaitOperator) })
	time.Sleep(200 * time.Millisecond)
	if got := p.b.phase(); got.Active() {
		t.Fatalf("b is %v without being told", got)
	}
	p.b.Force()
	p.await("b to run", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(200)
	p.world.check()
}

func TestUnsafeTakeover(t *testing.T) {
	p := newPair(t, func(a, b *Config, _, _ *fakeHost) {
		a.Arbiter, b.Arbiter = nil, nil
		a.UnsafeTakeover, b.UnsafeTakeover = true, true
	})
	p.awaitProtected()
	p.awaitFrames(200)
	p.a.stop()
	p.await("b to run", func() bool { return p.b.phase() == role.PhaseSolo })
	p.awaitFrames(200)
	p.world.check()
}

// TestFullBufferPausesTheGuest: with neither twin nor arbiter output can only wait. At the buffer's bound the guest is paused; nothing
// is dropped, and it goes on when the arbiter is back.
func TestFullBufferPausesTheGuest(t *testing.T) {
	p := newPair(t, func(_, _ *Config, ha, _ *fakeHost) { ha.capacity = 192 << 10 })
	p.awaitProtected()
	p.arbiter.SetFault(func(bool) arbitertest.Fault { return arbitertest.LoseRequest })
	p.b.stop()
	m := p.a.host.newest()
	frozen := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.frozen > 0
	}
	p.await("the guest to be paused", func() bool { return p.a.phase() == role.PhaseUnpairing && frozen() })
	p.arbiter.SetFault(nil)
	p.await("the guest to go on", func() bool { return p.a.phase() == role.PhaseSolo && !frozen() })
	p.awaitFrames(3000)
	p.world.check()
}

// TestOtherVersionIsRefused: a peer of another version is told so, by a frame of ours that it can at least log.
func TestOtherVersionIsRefused(t *testing.T) {
	p := newPair(t)
	creds := p.config("c", p.a.host).Credentials
	conn, err := tls.Dial("tcp", p.b.Addr().String(), creds.ClientTLS("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	header := make([]byte, wire.HeaderSize)
	binary.LittleEndian.PutUint32(header, 'P'|'L'<<8|'X'<<16|'W'<<24)
	binary.LittleEndian.PutUint16(header[4:], wire.Version+8)
	if _, err := conn.Write(header); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	in := wire.NewReader(conn)
	for _, want := range []wire.Type{wire.TypeHello, wire.TypeRefuse} {
		h, err := in.Next()
		if err != nil || h.Type != want {
			t.Fatalf("%v %v, want %v", h.Type, err, want)
		}
		b := make([]byte, h.Length)
		if err := in.Payload(b); err != nil {
			t.Fatal(err)
		}
		if text := wire.ParseText(b); want == wire.TypeRefuse && !strings.Contains(text, "version 9") {
			t.Errorf("the reason is %q", text)
		}
	}
}

// TestSilentStrangers: connections that say nothing, or nonsense, neither disturb the pair nor pile up.
func TestSilentStrangers(t *testing.T) {
	p := newPair(t)
	p.awaitProtected()
	creds := p.config("c", p.a.host).Credentials
	for i := range 3 * greetings {
		conn, err := tls.Dial("tcp", p.b.Addr().String(), creds.ClientTLS("b"))
		if err != nil {
			continue // more than are let in at one time
		}
		defer conn.Close()
		if i%2 == 0 {
			_, _ = conn.Write([]byte(strings.Repeat("nonsense", 100)))
		}
	}
	p.awaitFrames(500)
	if p.a.phase() != role.PhaseProtected {
		t.Errorf("a is %v", p.a.phase())
	}
	p.world.check()
}
