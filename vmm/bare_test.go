package vmm_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
	"github.com/pollux-ha/pollux/vmm"
)

// console collects what a guest prints; it serves one machine after the other.
type console struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *console) Put(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	return len(p)
}

func (c *console) OnSpace(func()) {}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// busyGuest is a bare guest that writes memory, and reads and writes a disk, and checks both; and what a twin would have of
// it.
type busyGuest struct {
	t       *testing.T
	disk    *virtio.File
	console console
	cfg     vmm.Config

	twin  *guestmem.Memory // memory as of the last epoch
	dirty *guestmem.Bitmap
	state []byte

	machine *vmm.Machine
	exit    chan vmm.Exit
}

func newBusyGuest(t *testing.T) *busyGuest {
	t.Helper()
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &busyGuest{t: t}
	if g.disk, err = virtio.OpenFile(path, false); err != nil {
		t.Fatal(err)
	}
	g.cfg = vmm.Config{
		Name: "busy", MemoryBytes: 64 << 20, CPUs: 1, Kernel: elf, Serial: &g.console,
		Cmdline: "mode=dirty+block pattern=random order=scattered ws=2000 rate=50000 blocks=400 depth=16 rounds=100000 blockrate=5000",
		Disks:   []vmm.Disk{{Backend: g.disk, ID: "disk"}},
		Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if g.twin, err = guestmem.New(g.cfg.MemoryBytes); err != nil {
		t.Fatal(err)
	}
	g.dirty = guestmem.NewBitmap(g.twin.Frames())
	g.build()
	t.Cleanup(func() {
		g.end()
		if err := errors.Join(g.disk.Close(), g.twin.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *busyGuest) build() {
	g.t.Helper()
	var err error
	if g.machine, err = vmm.New(g.cfg); err != nil {
		g.t.Fatal(err)
	}
}

// start runs the machine with the dirty log on.
func (g *busyGuest) start() {
	g.t.Helper()
	g.must(g.machine.StartDirtyLog())
	for i, r := range g.machine.Memory().Regions() {
		copy(g.twin.Regions()[i].Bytes, r.Bytes)
	}
	exit := make(chan vmm.Exit, 1)
	machine := g.machine
	go func() {
		e, err := machine.Run(context.Background())
		if err != nil {
			g.t.Error(err)
		}
		exit <- e
	}()
	g.exit = exit
}

// end stops the machine, which must not have ended by itself, and closes it.
func (g *busyGuest) end() {
	g.t.Helper()
	if g.exit != nil {
		g.machine.Stop("test")
		if e := <-g.exit; e.Reason != vmm.ExitStopped {
			g.t.Errorf("the guest ended: %v; it said:\n%s", e, g.console.String())
		}
		g.exit = nil
	}
	if err := g.machine.Close(); err != nil {
		g.t.Error(err)
	}
}

// epoch freezes the machine and brings the twin up to date. With hold it stays frozen.
func (g *busyGuest) epoch(hold bool) {
	g.t.Helper()
	g.must(g.machine.Freeze())
	g.dirty.Clear()
	g.must(g.machine.CollectDirty(g.dirty))
	memory := g.machine.Memory()
	for first, n := g.dirty.NextRun(0); n > 0; first, n = g.dirty.NextRun(first + n) {
		p, err := memory.Slice(first<<guestmem.PageShift, n<<guestmem.PageShift)
		g.must(err)
		g.must(g.twin.WriteAt(p, first<<guestmem.PageShift))
	}
	var err error
	g.state, err = g.machine.SaveState(g.state[:0])
	g.must(err)
	if !hold {
		g.must(g.machine.Thaw())
	}
}

func (g *busyGuest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatalf("%v; the guest said:\n%s", err, g.console.String())
	}
}

// compare checks that the twin has the memory of the frozen machine: no write of a vCPU or a device has escaped.
func (g *busyGuest) compare() {
	g.t.Helper()
	for i, r := range g.machine.Memory().Regions() {
		copied := g.twin.Regions()[i].Bytes
		for at := 0; at < len(r.Bytes); at += guestmem.PageSize {
			if string(r.Bytes[at:at+guestmem.PageSize]) != string(copied[at:at+guestmem.PageSize]) {
				g.t.Errorf("page %#x differs on the twin", r.Base+uint64(at))
			}
		}
	}
}

// takeOver replaces the machine by one made of what the twin has.
func (g *busyGuest) takeOver() {
	g.t.Helper()
	g.end()
	g.build()
	for i, r := range g.machine.Memory().Regions() {
		copy(r.Bytes, g.twin.Regions()[i].Bytes)
	}
	g.must(g.machine.LoadState(g.state))
	g.start()
}

// A guest that is busy with memory and disk goes from machine to machine, each made of the epochs of the one before. It
// checks everything that it wrote.
func TestBusyGuestMovesOn(t *testing.T) {
	g := newBusyGuest(t)
	g.must(g.machine.Boot())
	g.start()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(g.console.String(), "ready"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the guest is not ready; it said:\n%s", g.console.String())
		}
	}
	for range 4 {
		for range 40 {
			time.Sleep(10 * time.Millisecond)
			g.epoch(false)
		}
		g.epoch(true)
		g.compare()
		g.takeOver()
	}
	time.Sleep(1500 * time.Millisecond) // for a line of progress
	t.Logf("the guest said:\n%s", g.console.String())
}
