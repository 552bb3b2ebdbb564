package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/testtier"
)

// buildNode builds the nodes' binary; the build cache makes all but the first time cheap.
func buildNode(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "labnode")
	cmd := exec.Command("go", "build", "-o", path, "./labnode")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the node binary: %v\n%s", err, out)
	}
	return path
}

func testKernel(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/gokrazy/kernel.amd64").Output()
	if err != nil {
		t.Fatalf("find the kernel module: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "vmlinuz")
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// up brings a small lab up and removes it at the end of the test. Failing nodes of the emulator are met by one repetition.
func up(t *testing.T, cfg Config) (context.Context, *Lab) {
	t.Helper()
	testtier.Lab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	cfg.Dir, cfg.Binary, cfg.Kernel, cfg.Logger = t.TempDir(), buildNode(t), testKernel(t), testLogger(t)
	var l *Lab
	err := RepeatOnce(ctx, cfg.Logger, func(ctx context.Context, _ int) (err error) {
		l, err = Up(ctx, cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		for _, what := range append(Nodes(), switchNamespace) {
			if name := namespaceName(l.id(), what); namespaceExists(name) {
				t.Errorf("network namespace %s is left after Down", name)
			}
		}
	})
	return ctx, l
}

func TestEmulatedNode(t *testing.T) {
	ctx, l := up(t, Config{Backend: Emulated, Nodes: []string{HostA, Client}})
	t.Run("agent on an emulated node", func(t *testing.T) { agentWorks(ctx, t, l, HostA) })
	t.Run("agent on a namespace node", func(t *testing.T) { agentWorks(ctx, t, l, Client) })
	t.Run("has a KVM of its own", func(t *testing.T) {
		var out bytes.Buffer
		if err := l.Get(ctx, HostA, "/etc/pollux/node.json", &out); err != nil || !strings.Contains(out.String(), `"emulated":true`) {
			t.Errorf("configuration %q, %v", out.String(), err)
		}
		if err := l.Exec(ctx, HostA, Command{Args: []string{"labnode", "kvm"}}, nil, nil, nil); err == nil {
			t.Error("a command that doesn't exist succeeded")
		}
	})
	t.Run("up again changes nothing", func(t *testing.T) {
		before := state(t, l)
		if _, err := Up(ctx, Config{Dir: l.dir, Logger: l.log}); err != nil {
			t.Fatal(err)
		}
		if after := state(t, l); after.Nodes[HostA].Process != before.Nodes[HostA].Process {
			t.Errorf("the node was %v and is %v", before.Nodes[HostA].Process, after.Nodes[HostA].Process)
		}
	})
	t.Run("power loss is no death", func(t *testing.T) {
		guarded, stop, err := l.Guard(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if err := l.Kill(HostA); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if guarded.Err() != nil {
			t.Errorf("the guard fired: %v", context.Cause(guarded))
		}
		if died := l.autopsy(HostA); died != nil {
			t.Errorf("a node that the lab killed counts as dead by itself: %v", died)
		}
		if err := l.Kill(HostA); err == nil {
			t.Error("a second power loss succeeded")
		}
	})
	t.Run("power comes back, then the kernel panics", func(t *testing.T) {
		if err := l.Start(ctx, HostA); err != nil {
			t.Fatal(err)
		}
		died := dieBy(ctx, t, l, func() {
			// Its connection goes with the node.
			_ = l.Exec(ctx, HostA, Command{Args: []string{"pollux", "write", "/proc/sysrq-trigger", "c"}}, nil, nil, nil)
		})
		if died.Cause != CauseOops && died.Cause != CausePanic || !strings.Contains(died.Console, "sysrq") {
			t.Errorf("got %v with the console\n%s", died, died.Console)
		}
		if err := l.Explain(io.ErrUnexpectedEOF); !errors.As(err, &died) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Explain gives %v", err)
		}
	})
	t.Run("a node that stands still hangs", func(t *testing.T) {
		if err := l.Start(ctx, HostA); err != nil {
			t.Fatal(err)
		}
		l.hangAfter = 3 * time.Second
		died := dieBy(ctx, t, l, func() {
			if err := unix.Kill(state(t, l).Nodes[HostA].Process.PID, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		})
		if died.Cause != CauseHang {
			t.Errorf("got %v", died)
		}
	})
}

// dieBy makes a node die and returns what the guard says.
func dieBy(ctx context.Context, t *testing.T, l *Lab, kill func()) *NodeDied {
	t.Helper()
	guarded, stop, err := l.Guard(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	kill()
	select {
	case <-guarded.Done():
	case <-time.After(time.Minute):
		t.Fatal("the guard noticed nothing")
	}
	var died *NodeDied
	if !errors.As(context.Cause(guarded), &died) {
		t.Fatalf("the guard's cause is %v", context.Cause(guarded))
	}
	t.Log(died)
	return died
}

func state(t *testing.T, l *Lab) *State {
	t.Helper()
	s, err := readState(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agentWorks tries everything that an agent does.
func agentWorks(ctx context.Context, t *testing.T, l *Lab, node string) {
	t.Run("exec copies streams", func(t *testing.T) {
		in := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
		var out bytes.Buffer
		if err := l.Exec(ctx, node, Command{Args: []string{"pollux", "echo"}}, bytes.NewReader(in), &out, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(in, out.Bytes()) {
			t.Errorf("%d bytes in, %d other bytes out", len(in), out.Len())
		}
	})
	t.Run("exec reports the status", func(t *testing.T) {
		err := l.Exec(ctx, node, Command{Args: []string{"pollux", "exit", "7"}}, nil, nil, nil)
		var status *ExitError
		if !errors.As(err, &status) || status.Code != 7 {
			t.Errorf("got %v, want exit status 7", err)
		}
	})
	t.Run("signals arrive", func(t *testing.T) {
		s, err := l.Begin(ctx, node, Command{Args: []string{"pollux", "sleep", "1m"}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var status *ExitError
		if err := s.Wait(); !errors.As(err, &status) || status.Signal != unix.SIGTERM {
			t.Errorf("got %v, want the end by SIGTERM", err)
		}
	})
	t.Run("a command goes with its connection", func(t *testing.T) {
		s, err := l.Begin(ctx, node, Command{Args: []string{"pollux", "sleep", "1m", "deaf"}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		gone := func() bool {
			err := l.Get(ctx, node, "/proc/"+strconv.Itoa(s.PID())+"/stat", io.Discard)
			return err != nil && strings.Contains(err.Error(), "no such file")
		}
		for deadline := time.Now().Add(10 * time.Second); !gone(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the command is still there")
			}
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		if err := l.Exec(ctx, node, Command{Args: []string{"pollux", "orphan"}}, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("files come and go", func(t *testing.T) {
		source := filepath.Join(t.TempDir(), "f")
		content := bytes.Repeat([]byte{1, 2, 3, 0, 255}, 100_000)
		if err := os.WriteFile(source, content, 0o640); err != nil {
			t.Fatal(err)
		}
		target := WorkDir + "/dir/f"
		if err := l.Put(ctx, node, source, target); err != nil {
			t.Fatal(err)
		}
		var back bytes.Buffer
		if err := l.Get(ctx, node, target, &back); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content, back.Bytes()) {
			t.Error("the file came back changed")
		}
		if err := l.Get(ctx, node, WorkDir+"/missing", io.Discard); err == nil {
			t.Error("a missing file came")
		}
	})
	t.Run("connections start inside", func(t *testing.T) {
		addr, err := agentAddr(node)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.DialNode(ctx, node, "tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if ans, err := ask(conn, request{Op: opWatch}); err != nil || ans.Uptime <= 0 {
			t.Errorf("the agent through itself: %+v, %v", ans, err)
		}
		if _, err := l.DialNode(ctx, node, "unix", WorkDir+"/missing"); err == nil {
			t.Error("a missing socket answered")
		}
	})
}

// TestDownAfterCrash takes away a lab whose state is lost.
func TestDownAfterCrash(t *testing.T) {
	ctx, l := up(t, Config{Backend: Emulated, Nodes: []string{Client, Witness}})
	process := state(t, l).Nodes[Client].Process
	if err := os.Remove(filepath.Join(l.dir, stateFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Status(ctx); !errors.Is(err, errNoState) {
		t.Errorf("status without a state: %v", err)
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if process.Alive() {
		t.Error("the node's process is alive after Down")
	}
}

func TestClientReachesHost(t *testing.T) {
	ctx, l := up(t, Config{Backend: Emulated, Nodes: []string{Client, Witness}})
	addr, err := agentAddr(Witness)
	if err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	if conn, err = l.DialFrom(ctx, Client, "tcp", addr.String()); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := l.Kill(Witness); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if conn, err := l.DialFrom(short, Client, "tcp", addr.String()); err == nil {
		conn.Close()
		t.Error("a node without power answers")
	}
}
