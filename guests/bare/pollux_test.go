package bare_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/guests/register"
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

func newMachine(t testing.TB, commandLine string, plug ...func(*vmm.Config)) *machine {
	t.Helper()
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{console: console{t: t, lines: make(chan string, 1024)}, exit: make(chan vmm.Exit, 1)}
	cfg := vmm.Config{
		Name: "bare", MemoryBytes: 64 << 20, CPUs: 1, Kernel: elf, Cmdline: commandLine, Serial: m,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range plug {
		f(&cfg)
	}
	m.Machine, err = vmm.New(cfg)
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

// memoryWire is a wire to a machine in this process, as a network backend without any hold. The header in front of every
// frame stays zero: the guest takes no offloads.
type memoryWire struct {
	toGuest, fromGuest chan []byte
	closed             chan struct{}
	close              func()
}

func newMemoryWire() *memoryWire {
	w := &memoryWire{
		toGuest: make(chan []byte, 256), fromGuest: make(chan []byte, 4096), closed: make(chan struct{}),
	}
	w.close = sync.OnceFunc(func() { close(w.closed) })
	return w
}

func (w *memoryWire) send(frame []byte) error {
	w.toGuest <- append(make([]byte, virtio.NetHeaderSize), frame...)
	return nil
}

func (w *memoryWire) receive(until time.Time) ([]byte, error) {
	select {
	case frame := <-w.fromGuest:
		return frame[virtio.NetHeaderSize:], nil
	case <-time.After(time.Until(until)):
		return nil, os.ErrDeadlineExceeded
	}
}

// Send and the methods that follow implement virtio.NetBackend.
func (w *memoryWire) Send(parts [][]byte) bool {
	select {
	case w.fromGuest <- slices.Concat(parts...):
	default: // no test lets this many frames pile up; a network would drop them too
	}
	return true
}

func (w *memoryWire) OnSpace(func()) {}

func (w *memoryWire) Receive(p []byte) (int, error) {
	select {
	case frame := <-w.toGuest:
		return copy(p, frame), nil
	case <-w.closed:
		return 0, net.ErrClosed
	}
}

func (w *memoryWire) SetOffloads(csum, tso4, tso6, ecn bool) error {
	if csum || tso4 || tso6 || ecn {
		return errors.New("the guest took an offload that it does not know")
	}
	return nil
}

func (w *memoryWire) Close() error {
	w.close()
	return nil
}

// withNet gives the machine a network device on a new wire.
func withNet(t testing.TB) (cable, func(*vmm.Config)) {
	w := newMemoryWire()
	return cable{t, w}, func(cfg *vmm.Config) {
		cfg.Nets = append(cfg.Nets, vmm.Net{Backend: w, MAC: [6]byte(guestMAC)})
	}
}

// withDisk gives the machine a disk on an existing file.
func withDisk(t testing.TB, path string) func(*vmm.Config) {
	t.Helper()
	f, err := virtio.OpenFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(cfg *vmm.Config) { cfg.Disks = append(cfg.Disks, vmm.Disk{Backend: f, ID: "test"}) }
}

// freezeOften freezes and thaws the machine, about every millisecond, until the function that it returns is called.
func (m *machine) freezeOften() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	stop = sync.OnceFunc(func() { close(quit); <-done })
	m.t.Cleanup(stop)
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(time.Millisecond):
			}
			if err := errors.Join(m.Freeze(), m.Thaw()); err != nil {
				m.t.Error(err)
				return
			}
		}
	}()
	return stop
}

func TestPolluxServes(t *testing.T) {
	for _, options := range []string{"", " irq=poll"} {
		t.Run("options"+options, func(t *testing.T) {
			c, plug := withNet(t)
			m := newMachine(t, "mode=serve+dirty rate=500"+addressOptions+options, plug)
			if err := m.Boot(); err != nil {
				t.Fatal(err)
			}
			m.run()
			stop := m.freezeOften()
			testServer(t, &m.console, c)
			stop()
		})
	}
}

func TestPolluxServesOnAfterRestore(t *testing.T) {
	const options = "mode=serve+dirty rate=0 ws=2000 order=scattered" + addressOptions
	c, plug := withNet(t)
	m := newMachine(t, options, plug)
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	m.run()
	m.line("ready")
	before := c.ask(register.Request{Op: register.Write, Register: 9, Value: 99})
	file := filepath.Join(t.TempDir(), "snapshot")
	if err := m.Snapshot(file); err != nil {
		t.Fatal(err)
	}
	m.stop()

	c, plug = withNet(t)
	n := newMachine(t, options, plug)
	if err := n.Restore(file); err != nil {
		t.Fatal(err)
	}
	n.run()
	after := c.ask(register.Request{Op: register.Read, Register: 9})
	if after.Value != 99 || after.Boot != before.Boot || after.Sequence != before.Sequence+1 {
		t.Errorf("answers before and after: %+v, %+v", before, after)
	}
	testBurst(t, c)
}

func TestPolluxDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, "mode=block+dirty blocks=1000 depth=16 rounds=3", withDisk(t, file))
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	m.run()
	stop := m.freezeOften()
	m.line("done")
	stop()
	m.expectExit(vmm.ExitPowerOff)
	if last := m.last(); last["blocks_written"] != 3000 || last["blocks_verified"] != 3000 {
		t.Errorf("last line %v, want 3000 blocks written and verified", last)
	}
}

// BenchmarkPolluxAnswer measures a request and its answer with nothing between client and guest but the device.
func BenchmarkPolluxAnswer(b *testing.B) {
	for _, options := range []string{"irq=msix", "irq=poll"} {
		b.Run(options, func(b *testing.B) {
			c, plug := withNet(b)
			m := newMachine(b, "mode=serve "+options+addressOptions, plug)
			if err := m.Boot(); err != nil {
				b.Fatal(err)
			}
			m.run()
			m.line("ready")
			for b.Loop() {
				c.ask(register.Request{Op: register.Write, Register: 1, Value: 2})
			}
		})
	}
}
