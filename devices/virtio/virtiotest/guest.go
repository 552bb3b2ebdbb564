package virtiotest

import (
	"encoding/binary"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/pci"
)

const (
	// MemorySize is the RAM of a Guest, all below the hole.
	MemorySize = guestmem.MinSize

	// WindowBase and WindowSize are the Guest's PCI window.
	WindowBase = 0xc0000000
	WindowSize = 0x20000000

	firstFree = 1 << 20 // where Alloc begins
	patience  = 10 * time.Second
)

// Guest is a machine without CPUs: memory, a PCI bus, and what interrupts arrived. Its methods are for one goroutine, the
// test's, except SignalMSI.
type Guest struct {
	Memory *guestmem.Memory
	MMIO   *devices.Bus
	Ports  *devices.Bus
	Root   *pci.Root

	t    testing.TB
	next uint64

	mu      sync.Mutex
	arrived map[uint32]int // interrupt messages by their data
	wake    chan struct{}
}

// NewGuest returns a guest that is taken down when the test ends.
func NewGuest(t testing.TB) *Guest {
	t.Helper()
	memory, err := guestmem.New(MemorySize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := memory.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &Guest{
		Memory: memory, MMIO: devices.NewBus(), Ports: devices.NewBus(), t: t, next: firstFree,
		arrived: map[uint32]int{}, wake: make(chan struct{}, 1),
	}
	g.Root, err = pci.NewRoot(pci.Config{
		MMIO: g.MMIO, WindowBase: WindowBase, WindowSize: WindowSize, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Ports.Register(pci.ConfigPort, pci.ConfigPorts, g.Root); err != nil {
		t.Fatal(err)
	}
	g.Root.Thaw()
	return g
}

// Attach puts a device's function into a slot.
func (g *Guest) Attach(slot int, f *pci.Function) {
	g.t.Helper()
	if err := g.Root.Attach(slot, f); err != nil {
		g.t.Fatal(err)
	}
}

// Inherit makes this guest's memory that of another one, as a takeover does.
func (g *Guest) Inherit(from *Guest) {
	for i, r := range from.Memory.Regions() {
		copy(g.Memory.Regions()[i].Bytes, r.Bytes)
	}
	g.next = from.next
}

// Alloc gives out n bytes of guest memory, zeroed, aligned to a power of two.
func (g *Guest) Alloc(n, align uint64) uint64 {
	g.t.Helper()
	at := (g.next + align - 1) &^ (align - 1)
	if at+n > MemorySize {
		g.t.Fatalf("the test's guest is out of memory: %d bytes wanted", n)
	}
	g.next = at + n
	clear(g.Bytes(at, n))
	return at
}

// Bytes is n bytes of guest memory.
func (g *Guest) Bytes(at, n uint64) []byte {
	g.t.Helper()
	b, err := g.Memory.Slice(at, n)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// SignalMSI implements devices.MSISender: it counts messages by their data.
func (g *Guest) SignalMSI(_ uint64, data uint32) {
	g.mu.Lock()
	g.arrived[data]++
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Interrupts is how many messages with this data have arrived.
func (g *Guest) Interrupts(data uint32) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.arrived[data]
}

// Await waits until done reports true, looking whenever an interrupt arrives and now and then anyway.
func (g *Guest) Await(what string, done func() bool) {
	g.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			g.t.Fatalf("%s does not happen within %v", what, patience)
		}
		select {
		case <-g.wake:
		case <-tick.C:
		}
	}
}

// ConfigRead reads n bytes of a function's configuration space through the ports.
func (g *Guest) ConfigRead(slot, offset, n int) uint32 {
	var p [4]byte
	g.selectConfig(slot, offset)
	g.Ports.Read(uint64(pci.ConfigPort+4+offset&3), p[:n])
	return binary.LittleEndian.Uint32(p[:])
}

// ConfigWrite writes n bytes of a function's configuration space through the ports.
func (g *Guest) ConfigWrite(slot, offset, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	g.selectConfig(slot, offset)
	g.Ports.Write(uint64(pci.ConfigPort+4+offset&3), p[:n])
}

func (g *Guest) selectConfig(slot, offset int) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], 1<<31|uint32(slot)<<11|uint32(offset&^3))
	g.Ports.Write(pci.ConfigPort, p[:])
}

// Read reads n bytes (up to 8) at a memory-mapped address.
func (g *Guest) Read(address uint64, n int) uint64 {
	g.t.Helper()
	var p [8]byte
	if !g.MMIO.Read(address, p[:n]) {
		g.t.Fatalf("nothing answers at %#x", address)
	}
	return binary.LittleEndian.Uint64(p[:])
}

// Write writes n bytes (up to 8) at a memory-mapped address.
func (g *Guest) Write(address uint64, n int, v uint64) {
	g.t.Helper()
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	if !g.MMIO.Write(address, p[:n]) {
		g.t.Fatalf("nothing answers at %#x", address)
	}
}
