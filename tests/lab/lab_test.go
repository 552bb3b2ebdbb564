package lab

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/testtier"
)

// buildNode builds the nodes' binary once per test run.
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

// upEmulated brings up a small lab with one emulated host and removes it at the end of the test.
func upEmulated(t *testing.T) (context.Context, *Lab) {
	t.Helper()
	testtier.Lab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	cfg := Config{
		Dir: t.TempDir(), Backend: Emulated, Binary: buildNode(t), Kernel: testKernel(t), Nodes: []string{HostA, Client},
		Nice: 5, Logger: testLogger(t),
	}
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

func TestEmulatedNode(t *testing.T) {
	ctx, l := upEmulated(t)

	t.Run("exec streams and reports the status", func(t *testing.T) {
		var out bytes.Buffer
		err := l.Exec(ctx, HostA, Command{Args: []string{"pollux", "no-such"}}, strings.NewReader("x"), &out, &out)
		var exit *ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("got %v and %q, want an ExitError", err, out.String())
		}
		t.Log(out.String())
	})
	t.Run("kvm works inside", func(t *testing.T) {
		var out bytes.Buffer
		if err := l.Get(ctx, HostA, "/etc/pollux/node.json", &out); err != nil {
			t.Fatal(err)
		}
		t.Log(out.String())
	})
	status, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", status)
}
