package bare_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
	"github.com/pollux-ha/pollux/vmm"
)

// machine is the bare guest in Pollux's own VMM.
type machine struct {
	console
	*vmm.Machine
	partial string // the console line under construction; the serial device calls Put from one vCPU's thread
	stop    context.CancelFunc
	exit    chan vmm.Exit
}

// Put and OnSpace make the console a serial port's sink.
func (m *machine) Put(p []byte) int {
	text := m.partial + string(p)
	for {
		line, rest, whole := strings.Cut(text, "\n")
		if !whole {
			break
		}
		select {
		case m.lines <- strings.TrimSuffix(line, "\r"):
		default: // nobody reads: drop it rather than stop the guest
		}
		text = rest
	}
	m.partial = text
	return len(p)
}

func (*machine) OnSpace(func()) {}

func newMachine(t *testing.T, commandLine string) *machine {
	t.Helper()
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{console: console{t: t, lines: make(chan string, 1024)}, exit: make(chan vmm.Exit, 1)}
	m.Machine, err = vmm.New(vmm.Config{
		Name: "bare", MemoryBytes: 64 << 20, CPUs: 1, Kernel: elf, Cmdline: commandLine, Serial: m,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// run starts the vCPUs; they end with the test or with halt.
func (m *machine) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.stop = func() { cancel(); <-done }
	m.t.Cleanup(m.stop)
	go func() {
		defer close(done)
		exit, err := m.Run(ctx)
		if err != nil {
			m.t.Errorf("run: %v", err)
		}
		m.exit <- exit
		close(m.lines)
	}()
}

func (m *machine) expectExit(want vmm.ExitReason) {
	m.t.Helper()
	select {
	case got := <-m.exit:
		if got.Reason != want {
			m.t.Errorf("exit %v, want %v", got, want)
		}
	case <-time.After(patience):
		m.t.Fatalf("no %v within %v", want, patience)
	}
}

func TestPolluxRunsIt(t *testing.T) {
	m := newMachine(t, "mode=dirty+compute pattern=random ws=1000 rate=20000 count=2")
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m.run()
	m.line("ready")
	t.Logf("ready after %v", time.Since(start))
	m.line("done")
	m.expectExit(vmm.ExitPowerOff)
	t.Log(m.seen[len(m.seen)-2])
	if last := m.last(); last["dirtied"] < 30000 || last["computed"] == 0 {
		t.Errorf("last line %v, want 40000 pages dirtied and some computation", last)
	}
}

func TestPolluxSeesItsPanic(t *testing.T) {
	m := newMachine(t, "mode=dirty ws=100 rate=0 lose=5000")
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	m.run()
	m.line("panic: memory: page 99 ")
	m.expectExit(vmm.ExitPanic)
}

// TestPolluxFreezesAndRestoresIt stops the guest at many points, and then moves it to another machine by a snapshot.
func TestPolluxFreezesAndRestoresIt(t *testing.T) {
	const options = "mode=dirty pattern=random order=scattered ws=2000 rate=0 checkrate=0"
	m := newMachine(t, options)
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	m.run()
	m.line("ready")
	for range 200 {
		if err := m.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := m.Thaw(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	m.line("tick=")
	file := filepath.Join(t.TempDir(), "snapshot")
	if err := m.Snapshot(file); err != nil {
		t.Fatal(err)
	}
	m.stop()

	n := newMachine(t, options)
	if err := n.Restore(file); err != nil {
		t.Fatal(err)
	}
	n.run()
	restored := counters(t, n.line("tick="))
	if restored["tick"] < 2 {
		t.Errorf("first line after the restore: %v; it starts over", restored)
	}
	// Every page is checked before it is overwritten, so after one more round all of them have been.
	for counters(t, n.line("tick="))["dirtied"] < restored["dirtied"]+2000 {
	}
}
