package checkpoint_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/tlstest"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPKI(t *testing.T) *tlstest.PKI {
	t.Helper()
	p, err := tlstest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func credentials(t *testing.T, p *tlstest.PKI, name string) *checkpoint.Credentials {
	t.Helper()
	cert, key, err := p.Issue(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.LoadCredentials(cert, key, p.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type ends struct {
	client, server       *checkpoint.Link
	clientErr, serverErr error
}

// connect makes a link over loopback, with the names that each end asks of the other.
func connect(t *testing.T, client, server *checkpoint.Credentials, clientWants, serverWants string) ends {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var e ends
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			e.serverErr = err
			return
		}
		e.server, e.serverErr = checkpoint.Accept(context.Background(), conn, serverWants, server)
	}()
	e.client, e.clientErr = checkpoint.Dial(t.Context(), l.Addr().String(), clientWants, client)
	<-done
	t.Cleanup(func() {
		for _, l := range []*checkpoint.Link{e.client, e.server} {
			if l != nil {
				_ = l.Close()
			}
		}
	})
	return e
}

func TestLinkCarriesFrames(t *testing.T) {
	p := newPKI(t)
	e := connect(t, credentials(t, p, "a"), credentials(t, p, "b"), "b", "a")
	if e.clientErr != nil || e.serverErr != nil {
		t.Fatal(e.clientErr, e.serverErr)
	}
	message := bytes.Repeat([]byte("role"), 100)
	for range 100 {
		w := e.client.Begin()
		err := w.Heartbeat(wire.Heartbeat{Sequence: 5})
		if err == nil {
			err = w.Role(message)
		}
		if err := e.client.End(err, true); err != nil {
			t.Fatal(err)
		}
		for _, want := range []wire.Type{wire.TypeHeartbeat, wire.TypeRole} {
			h, err := e.server.Reader().Next()
			if err != nil || h.Type != want {
				t.Fatalf("%v %v, want %v", h.Type, err, want)
			}
			got := make([]byte, h.Length)
			if err := e.server.Reader().Payload(got); err != nil {
				t.Fatal(err)
			}
			if want == wire.TypeRole && !bytes.Equal(got, message) {
				t.Fatal("another message arrived")
			}
		}
	}
	if e.server.Received() == 0 || e.client.Sent() == 0 {
		t.Error("nothing was counted")
	}
	_ = e.client.Close()
	if _, err := e.server.Reader().Next(); err == nil {
		t.Error("the end was not noticed")
	}
	if err := e.client.End(e.client.Begin().Heartbeat(wire.Heartbeat{}), true); err == nil {
		t.Error("a closed link takes frames")
	}
	if err := e.client.Close(); err != nil {
		t.Error(err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	ours, theirs := newPKI(t), newPKI(t)
	a, b := credentials(t, ours, "a"), credentials(t, ours, "b")
	stranger := credentials(t, theirs, "a")
	for name, tt := range map[string]struct {
		client, server           *checkpoint.Credentials
		clientWants, serverWants string
	}{
		"another CA dials":    {stranger, b, "b", ""},
		"another CA listens":  {a, stranger, "a", ""},
		"wrong name listens":  {a, b, "c", ""},
		"wrong name dials":    {a, b, "b", "c"},
		"right CA, wrong two": {a, b, "a", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			e := connect(t, tt.client, tt.server, tt.clientWants, tt.serverWants)
			// In TLS 1.3 the dialling end may learn of its refusal only by reading.
			if e.clientErr == nil {
				_ = e.client.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, e.clientErr = e.client.Reader().Next()
			}
			if e.clientErr == nil || (e.serverErr == nil && e.server != nil && tt.clientWants == "b") {
				t.Errorf("let in: client %v, server %v", e.clientErr, e.serverErr)
			}
		})
	}
}

func TestLoadCredentialsSaysWhatIsWrong(t *testing.T) {
	ours, theirs := newPKI(t), newPKI(t)
	cert, key, err := ours.Issue("a")
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := ours.Issue("b")
	if err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ cert, key, ca, want string }{
		"nothing":       {"", "", "", "missing"},
		"no file":       {"/none/cert", key, ours.CAFile, "/none/cert"},
		"other key":     {cert, otherKey, ours.CAFile, otherKey},
		"no CA file":    {cert, key, "/none/ca", "/none/ca"},
		"junk for a CA": {cert, key, junk, "no PEM certificate"},
		"another CA":    {cert, key, theirs.CAFile, "is not one that peers"},
	} {
		if _, err := checkpoint.LoadCredentials(tt.cert, tt.key, tt.ca); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v does not tell %q", name, err, tt.want)
		}
	}
}

func TestDialNobody(t *testing.T) {
	c := credentials(t, newPKI(t), "a")
	if _, err := checkpoint.Dial(t.Context(), "127.0.0.1:1", "b", c); err == nil || !strings.Contains(err.Error(), "connect to the peer") {
		t.Errorf("got %v", err)
	}
}
