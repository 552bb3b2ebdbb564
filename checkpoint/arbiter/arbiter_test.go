package arbiter_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint/arbiter"
	"github.com/pollux-ha/pollux/checkpoint/arbiter/arbitertest"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/tlstest"
)

type swapper interface {
	Read(ctx context.Context, vm string) (role.Record, error)
	Swap(ctx context.Context, vm string, old, next role.Record) (role.Record, error)
}

func startWitness(t *testing.T, dir, listen string) *arbiter.Witness {
	t.Helper()
	w, err := arbiter.StartWitness(t.Context(), arbiter.WitnessConfig{Dir: dir, Listen: listen, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dial(t *testing.T, addr string) *arbiter.Client {
	t.Helper()
	c, err := arbiter.Dial(t.Context(), arbiter.Config{Endpoints: []string{addr}, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestSwap holds etcd and the fake to the same behaviour.
func TestSwap(t *testing.T) {
	w := startWitness(t, t.TempDir(), "127.0.0.1:0")
	for name, a := range map[string]swapper{"etcd": dial(t, w.Addr().String()), "fake": &arbitertest.Fake{}} {
		t.Run(name, func(t *testing.T) { testSwap(t, a) })
	}
}

func testSwap(t *testing.T, a swapper) {
	ctx := t.Context()
	none, err := a.Read(ctx, "db")
	if err != nil || !none.IsZero() {
		t.Fatalf("read of nothing: %v %v", none, err)
	}
	nodeA, nodeB := role.Member{Node: "a", Incarnation: 1}, role.Member{Node: "b", Incarnation: 1}
	one := role.Record{Revision: 1, Generation: 1, Active: nodeA}
	two := role.Record{Revision: 2, Generation: 1, Active: nodeA, Standby: nodeB}
	three := role.Record{Revision: 3, Generation: 2, Active: nodeB}
	for i, step := range []struct{ old, next, want role.Record }{
		{one, two, none},    // nothing stands: nothing to replace
		{none, one, one},    // the first record
		{none, one, one},    // again: it stands already
		{one, two, two},     // the next
		{one, three, two},   // from a stale record
		{none, three, two},  // from none
		{two, three, three}, // a takeover
		{two, one, three},   // never back
	} {
		got, err := a.Swap(ctx, "db", step.old, step.next)
		if err != nil || got != step.want {
			t.Fatalf("step %d: swap %v -> %v gave %v %v, want %v", i, step.old, step.next, got, err, step.want)
		}
	}
	got, err := a.Read(ctx, "db")
	if err != nil || got != three {
		t.Fatalf("read: %v %v, want %v", got, err, three)
	}
	if other, err := a.Read(ctx, "db2"); err != nil || !other.IsZero() {
		t.Fatalf("another VM's record: %v %v", other, err)
	}
}

func record(node string) role.Record {
	return role.Record{Revision: 1, Generation: 1, Active: role.Member{Node: role.Node(node), Incarnation: 1}}
}

// TestOneWinner: of many who swap the same revision, one wins.
func TestOneWinner(t *testing.T) {
	w := startWitness(t, t.TempDir(), "127.0.0.1:0")
	c := dial(t, w.Addr().String())
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for _, node := range []string{"a", "b", "c", "d", "e", "f"} {
		wg.Go(func() {
			got, err := c.Swap(t.Context(), "vm", role.Record{}, record(node))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			} else if got == record(node) {
				won++
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d winners", won)
	}
}

func TestWitnessSurvivesItsRestart(t *testing.T) {
	dir := t.TempDir()
	w := startWitness(t, dir, "127.0.0.1:0")
	addr := w.Addr().String()
	c := dial(t, addr)
	one, err := c.Swap(t.Context(), "vm", role.Record{}, record("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// While it is away, a read says so and a swap's outcome is unknown.
	if _, err := c.Read(t.Context(), "vm"); !errors.Is(err, arbiter.ErrUnanswered) {
		t.Errorf("read without an arbiter: %v", err)
	}
	if _, err := c.Swap(t.Context(), "vm", one, record("b")); !errors.Is(err, arbiter.ErrUnanswered) {
		t.Errorf("swap without an arbiter: %v", err)
	}
	startWitness(t, dir, addr)
	for start := time.Now(); ; {
		got, err := c.Read(t.Context(), "vm")
		if err == nil {
			if got != one {
				t.Errorf("after the restart: %v, want %v", got, one)
			}
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

func TestDialSaysWhoDoesNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts, and says nothing
	for _, addr := range []string{"127.0.0.1:1", l.Addr().String()} {
		_, err := arbiter.Dial(t.Context(), arbiter.Config{Endpoints: []string{addr}, Timeout: 50 * time.Millisecond})
		if !errors.Is(err, arbiter.ErrUnanswered) || !strings.Contains(err.Error(), addr) {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	if _, err := arbiter.Dial(t.Context(), arbiter.Config{}); err == nil {
		t.Error("no endpoints: no error")
	}
}

func TestWitnessErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, tt := range map[string]struct {
		cfg  arbiter.WitnessConfig
		want string
	}{
		"port in use":    {arbiter.WitnessConfig{Dir: t.TempDir(), Listen: l.Addr().String()}, "in use"},
		"no directory":   {arbiter.WitnessConfig{Listen: "127.0.0.1:0"}, "directory"},
		"bad directory":  {arbiter.WitnessConfig{Dir: "/dev/null/x", Listen: "127.0.0.1:0"}, "/dev/null"},
		"bad address":    {arbiter.WitnessConfig{Dir: t.TempDir(), Listen: "nonsense"}, "nonsense"},
		"half a TLS":     {arbiter.WitnessConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0", CertFile: "c"}, "belong together"},
		"no certificate": {arbiter.WitnessConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0", CertFile: "/no/c", KeyFile: "/no/k", CAFile: "/no/ca"}, "/no/c"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := arbiter.StartWitness(t.Context(), tt.cfg)
			if err == nil {
				_ = w.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v does not tell %q", err, tt.want)
			}
		})
	}
}

func TestWitnessOverTLS(t *testing.T) {
	pki, err := tlstest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.Issue("witness")
	if err != nil {
		t.Fatal(err)
	}
	client, err := pki.ClientTLS("node")
	if err != nil {
		t.Fatal(err)
	}
	w, err := arbiter.StartWitness(t.Context(), arbiter.WitnessConfig{
		Dir: filepath.Join(t.TempDir(), "new"), Listen: "127.0.0.1:0", CertFile: cert, KeyFile: key, CAFile: pki.CAFile, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := arbiter.Dial(t.Context(), arbiter.Config{Endpoints: []string{"https://" + w.Addr().String()}, TLS: client, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Swap(t.Context(), "vm", role.Record{}, record("a")); err != nil {
		t.Error(err)
	}
	without := &tls.Config{RootCAs: client.RootCAs}
	if _, err := arbiter.Dial(t.Context(), arbiter.Config{Endpoints: []string{"https://" + w.Addr().String()}, TLS: without, Timeout: 100 * time.Millisecond}); err == nil {
		t.Error("a client without a certificate was let in")
	}
}

// TestUserAndPassword: an etcd that asks who one is.
func TestUserAndPassword(t *testing.T) {
	addr := startWitness(t, t.TempDir(), "127.0.0.1:0").Addr().String()
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx := t.Context()
	_, err = admin.UserAdd(ctx, "root", "secret")
	if err == nil {
		_, err = admin.UserGrantRole(ctx, "root", "root")
	}
	if err == nil {
		_, err = admin.AuthEnable(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	try := func(user, password string) error {
		c, err := arbiter.Dial(ctx, arbiter.Config{
			Endpoints: []string{addr}, User: user, Password: password, Logger: quiet(),
			Timeout: 20 * time.Second, // etcd hashes passwords with bcrypt, which takes seconds under the race detector
		})
		if err != nil {
			return err
		}
		_, err = c.Swap(ctx, "vm", role.Record{}, record("a"))
		return errors.Join(err, c.Close())
	}
	if err := try("root", "secret"); err != nil {
		t.Error(err)
	}
	for _, wrong := range [][2]string{{"root", "guess"}, {"nobody", "secret"}, {"", ""}} {
		if err := try(wrong[0], wrong[1]); err == nil || errors.Is(err, arbiter.ErrUnanswered) || !strings.Contains(err.Error(), addr) {
			t.Errorf("user %q with password %q: %v", wrong[0], wrong[1], err)
		}
	}
}

// TestSeveralEndpoints: one member of the cluster is away.
func TestSeveralEndpoints(t *testing.T) {
	addr := startWitness(t, t.TempDir(), "127.0.0.1:0").Addr().String()
	c, err := arbiter.Dial(t.Context(), arbiter.Config{Endpoints: []string{"127.0.0.1:1", addr}, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 20 {
		if _, err := c.Read(t.Context(), "vm"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadNames(t *testing.T) {
	a := dial(t, startWitness(t, t.TempDir(), "127.0.0.1:0").Addr().String())
	for _, vm := range []string{"", "a/b", strings.Repeat("n", 300)} {
		if _, err := a.Read(t.Context(), vm); err == nil {
			t.Errorf("read of VM %q: no error", vm)
		}
		if _, err := a.Swap(t.Context(), vm, role.Record{}, record("a")); err == nil {
			t.Errorf("swap of VM %q: no error", vm)
		}
	}
	for _, r := range []role.Record{{}, {Generation: 1}, {Revision: 1, Generation: 1}} {
		if _, err := a.Swap(t.Context(), "vm", role.Record{}, r); err == nil {
			t.Errorf("swap to %+v: no error", r)
		}
	}
}

func TestFakeLosesReplies(t *testing.T) {
	var a arbitertest.Fake
	a.SetFault(func(bool) arbitertest.Fault { return arbitertest.LoseReply })
	if _, err := a.Swap(t.Context(), "vm", role.Record{}, record("a")); !errors.Is(err, arbiter.ErrUnanswered) {
		t.Fatal(err)
	}
	if got := a.Record("vm"); got != record("a") {
		t.Errorf("the lost reply's swap had no effect: %v", got)
	}
	a.SetFault(func(bool) arbitertest.Fault { return arbitertest.LoseRequest })
	if _, err := a.Swap(t.Context(), "vm", record("a"), record("b")); !errors.Is(err, arbiter.ErrUnanswered) {
		t.Fatal(err)
	}
	if got := a.Record("vm"); got != record("a") {
		t.Errorf("the lost request had an effect: %v", got)
	}
}
