package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/testtier"
)

// A snapshot onto a file system that is full is refused in words, leaves nothing behind, and the machine goes on; the same
// snapshot to a place with room is good.
func TestSnapshotOntoFullDisk(t *testing.T) {
	testtier.Machine(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small file system (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	socket, console := filepath.Join(dir, "control"), filepath.Join(dir, "console")
	ended := make(chan int, 1)
	guest := bareGuest(t)
	go func() {
		status, _, _ := pollux("--log-level=error", "run", "--kernel", guest, "--memory=64M",
			"--append", "mode=dirty ws=1000 rate=5000 pattern=random", "--serial=file:"+console, "--control", socket)
		ended <- status
	}()
	await(t, "the guest to be ready", func() bool { return strings.Contains(content(console), "ready") })

	refused(t, exitFailure, []string{"no space left", small}, "snapshot", "--control", socket, filepath.Join(small, "snapshot"))
	if left, err := os.ReadDir(small); err != nil || len(left) != 0 {
		t.Errorf("the failed snapshot left %v (%v)", left, err)
	}
	status, stdout, stderr := pollux("status", "--control", socket)
	var s struct{ State string }
	if err := json.Unmarshal([]byte(stdout), &s); err != nil || status != exitOK || s.State != "running" {
		t.Errorf("after the failed snapshot: exit status %d, state %q, %v, %s", status, s.State, err, stderr)
	}
	lines := strings.Count(content(console), "tick=")
	await(t, "the guest to go on", func() bool { return strings.Count(content(console), "tick=") > lines })

	good := filepath.Join(dir, "snapshot")
	for _, args := range [][]string{{"snapshot", "--control", socket, good}, {"quit", "--control", socket}} {
		if status, _, stderr := pollux(args...); status != exitOK {
			t.Errorf("pollux %v: %s", args, stderr)
		}
	}
	if got := <-ended; got != exitStopped {
		t.Errorf("the machine's exit status is %d, want %d", got, exitStopped)
	}
	again := filepath.Join(dir, "console2")
	go func() {
		status, _, _ := pollux("--log-level=error", "run", "--restore", good, "--serial=file:"+again, "--control", socket)
		ended <- status
	}()
	// The guest checks every page that it wrote, and would panic over a lost one.
	await(t, "the restored guest to go on", func() bool { return strings.Count(content(again), "tick=") >= 2 })
	if status, _, stderr := pollux("quit", "--control", socket); status != exitOK {
		t.Error(stderr)
	}
	if got := <-ended; got != exitStopped {
		t.Errorf("the restored machine's exit status is %d, want %d; it printed %s", got, exitStopped, content(again))
	}
}

func content(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 600 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited 30 s in vain for %s", what)
}
