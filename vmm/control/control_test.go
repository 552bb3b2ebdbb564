package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeMachine writes down what it is asked to do.
type fakeMachine struct {
	calls []string
	err   error
}

func (m *fakeMachine) called(what string) error {
	m.calls = append(m.calls, what)
	return m.err
}

func (m *fakeMachine) Name() string               { return "fake" }
func (m *fakeMachine) CPUs() int                  { return 3 }
func (m *fakeMachine) State() string              { return "paused" }
func (m *fakeMachine) Pause() error               { return m.called("pause") }
func (m *fakeMachine) Resume() error              { return m.called("resume") }
func (m *fakeMachine) Snapshot(path string) error { return m.called("snapshot " + path) }
func (m *fakeMachine) PressPowerButton()          { _ = m.called("button") }
func (m *fakeMachine) Stop(string)                { _ = m.called("quit") }

func serve(t *testing.T, m Machine, protection func() any) (client *Client, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	s, err := Listen(path, Config{
		Machine: m, MemoryBytes: 5 << 20, Protection: protection, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return NewClient(path), path
}

func TestRequestsReachTheMachine(t *testing.T) {
	m := &fakeMachine{}
	c, _ := serve(t, m, func() any { return map[string]int{"epoch": 7} })
	ctx := t.Context()
	for _, err := range []error{
		c.Pause(ctx), c.Resume(ctx), c.Snapshot(ctx, "/tmp/x"), c.PressPowerButton(ctx), c.Quit(ctx),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(m.calls, ", "); got != "pause, resume, snapshot /tmp/x, button, quit" {
		t.Errorf("the machine was asked to %s", got)
	}
	s, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "fake" || s.CPUs != 3 || s.State != "paused" || s.MemoryBytes != 5<<20 || s.PID != os.Getpid() ||
		string(s.Protection) != `{"epoch":7}` {
		t.Errorf("status %+v", s)
	}
}

func TestErrorsComeBack(t *testing.T) {
	m := &fakeMachine{err: fmt.Errorf("pause machine: %w", vmm.ErrOver)}
	c, _ := serve(t, m, nil)
	if err := c.Pause(t.Context()); err == nil || !strings.Contains(err.Error(), vmm.ErrOver.Error()) {
		t.Errorf("pause: %v", err)
	}
	if err := c.Snapshot(t.Context(), "relative"); err == nil || !strings.Contains(err.Error(), "not absolute") {
		t.Errorf("snapshot to a relative path: %v", err)
	}
	for _, request := range []struct{ method, what string }{
		{"POST", "status"}, {"GET", "pause"}, {"POST", "nonsense"}, {"POST", "snapshot"},
	} {
		if err := c.do(t.Context(), request.method, request.what, nil, nil); err == nil {
			t.Errorf("%s %s was accepted", request.method, request.what)
		}
	}
	if err := c.do(t.Context(), "POST", "snapshot", map[string]string{"pth": "/x"}, nil); err == nil {
		t.Error("a snapshot request with an unknown field was accepted")
	}
}

func TestSocketThatIsTaken(t *testing.T) {
	_, path := serve(t, &fakeMachine{}, nil)
	_, err := Listen(path, Config{Machine: &fakeMachine{}, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "another machine") {
		t.Errorf("a second server: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
}

func TestSocketLeftByTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(context.Background()); !errors.Is(err, ErrNoMachine) {
		t.Errorf("status of a dead machine: %v", err)
	}
	s, err := Listen(path, Config{Machine: &fakeMachine{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := NewClient(path).Status(context.Background()); !errors.Is(err, ErrNoMachine) {
		t.Errorf("status after Close: %v", err)
	}
}

func TestNotASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, Config{Machine: &fakeMachine{}, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Fatal("a file was taken for a socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}
