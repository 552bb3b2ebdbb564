package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/arbiter"
	"github.com/pollux-ha/pollux/node"
)

const (
	jobEnv       = "POLLUX_E2E_JOB"       // what to be, as JSON; not set: the tests
	namespaceEnv = "POLLUX_E2E_NAMESPACE" // set once the binary is in a namespace of its own
)

// job is what one process of the pair does.
type job struct {
	Kind string // witness, primary, standby
	Dir  string // witness: its data

	Node, Listen, Dial, Arbiter string
	Cert, Key, CA               string
	Spec                        node.Spec
	Serial, Control             string
	Interval, Heartbeat         time.Duration
	Misses                      int
}

func TestMain(m *testing.M) {
	if text := os.Getenv(jobEnv); text != "" {
		if err := work(text); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
		return
	}
	if os.Geteuid() == 0 && os.Getenv(namespaceEnv) == "" {
		if err := enterNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// enterNamespace starts this binary anew in a network namespace of its own: a process that has threads already can't move as a whole.
func enterNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(self, os.Args, append(os.Environ(), namespaceEnv+"=1"))
}

// work is the life of one of the pair's processes.
func work(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if j.Kind == "witness" {
		w, err := arbiter.StartWitness(ctx, arbiter.WitnessConfig{Dir: j.Dir, Listen: j.Listen, Logger: log})
		if err != nil {
			return err
		}
		_ = w.Wait(ctx)
		return w.Close()
	}
	creds, err := checkpoint.LoadCredentials(j.Cert, j.Key, j.CA)
	if err != nil {
		return err
	}
	o := node.Options{Spec: j.Spec, Serial: j.Serial, Control: j.Control, Logger: log}
	p := node.Pair{
		Node: j.Node, Listen: j.Listen, Dial: j.Dial, Arbiter: []string{j.Arbiter}, Credentials: creds,
		Interval: j.Interval, Heartbeat: j.Heartbeat, Misses: j.Misses,
	}
	if j.Kind == "standby" {
		_, err = node.StandBy(ctx, o, p)
		return err
	}
	_, err = node.RunProtected(ctx, o, p)
	return err
}
