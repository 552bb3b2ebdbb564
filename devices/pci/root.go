package pci

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"github.com/pollux-ha/pollux/devices"
)

const (
	// ConfigPort and ConfigPorts are the port range of configuration mechanism #1 (PCI §3.2.2.3.2): the address register at
	// 0xCF8, the data register at 0xCFC.
	ConfigPort  = 0xcf8
	ConfigPorts = 8

	// Slots is the number of devices on the bus, the host bridge in slot 0 included.
	Slots = 32

	dataOffset  = 4 // of 0xCFC from ConfigPort
	resetOffset = 1 // of 0xCF9
)

// Fields of the address register.
const (
	addressEnable   = 1 << 31
	addressReserved = 0x7f000003
)

// Config says how to build a Root.
type Config struct {
	// MMIO is the machine's memory-mapped bus, on which BARs are registered.
	MMIO *devices.Bus
	// WindowBase and WindowSize bound where BARs may answer: a range without RAM and without any other device.
	WindowBase, WindowSize uint64
	// ResetControl answers one-byte accesses to port 0xCF9, which lies inside of the address register's ports: chipsets have
	// their reset control register there. Nil: nothing does.
	ResetControl devices.Handler
	Logger       *slog.Logger
}

// Root is the PCI bus. It is the devices.Handler of the port range at ConfigPort, and a devices.Device.
type Root struct {
	cfg    Config
	bridge *Function

	mu      sync.Mutex
	frozen  bool
	address uint32 // the register at 0xCF8
	slots   [Slots]*Function
	mapped  map[target]uint64 // the BARs that answer, and where
	next    uint64            // the first address that Attach has not given out
}

// target is one BAR of one slot.
type target struct{ slot, bar int }

// NewRoot returns a bus with the host bridge on it.
func NewRoot(cfg Config) (*Root, error) {
	if cfg.WindowSize == 0 || cfg.WindowBase+cfg.WindowSize > 1<<32 || cfg.WindowBase+cfg.WindowSize < cfg.WindowBase {
		return nil, fmt.Errorf("PCI window %#x+%#x is not below 4 GiB", cfg.WindowBase, cfg.WindowSize)
	}
	r := &Root{
		cfg: cfg, frozen: true, mapped: map[target]uint64{}, next: cfg.WindowBase,
		// Class "host bridge"; the numbers are those of QEMU's generic bridge, for which no operating system has quirks.
		bridge: NewFunction("pci0 host bridge", Identity{Vendor: 0x1b36, Device: 0x0008, Class: 0x060000}),
	}
	r.slots[0] = r.bridge
	return r, nil
}

// Attach puts a function into a slot, and its BARs at free addresses of the window, where they answer at once: the guest
// finds the bus as a firmware leaves it. Functions are attached before the machine runs, in the same order on both hosts.
func (r *Root) Attach(slot int, f *Function) error {
	r.mu.Lock()
	if slot < 0 || slot >= Slots || r.slots[slot] != nil {
		r.mu.Unlock()
		return fmt.Errorf("attach %s: PCI slot %d does not exist or is taken", f.name, slot)
	}
	next := r.next
	for i, b := range f.bars {
		if b.size == 0 {
			continue
		}
		base := (next + uint64(b.size) - 1) &^ (uint64(b.size) - 1)
		if base+uint64(b.size) > r.cfg.WindowBase+r.cfg.WindowSize {
			r.mu.Unlock()
			return fmt.Errorf("attach %s: no room for BAR %d (%#x bytes) in the PCI window", f.name, i, b.size)
		}
		f.place(i, uint32(base))
		next = base + uint64(b.size)
	}
	r.next = next
	r.slots[slot] = f
	f.root = r
	r.mu.Unlock()
	r.remap()
	return nil
}

// Read is a guest's read of the ports at ConfigPort.
func (r *Root) Read(offset uint64, p []byte) {
	fill(p)
	n := uint64(len(p))
	switch {
	case offset == 0 && n == 4:
		r.mu.Lock()
		binary.LittleEndian.PutUint32(p, r.address)
		r.mu.Unlock()
	case offset == resetOffset && n == 1 && r.cfg.ResetControl != nil:
		r.cfg.ResetControl.Read(0, p)
	case offset >= dataOffset && offset+n <= ConfigPorts:
		if f, at := r.selected(); f != nil {
			f.Read(at+int(offset-dataOffset), p)
		}
	}
}

// Write is a guest's write to the ports at ConfigPort. Only a whole doubleword reaches the address register: smaller
// accesses are no configuration cycles (PCI §3.2.2.3.2).
func (r *Root) Write(offset uint64, p []byte) {
	n := uint64(len(p))
	switch {
	case offset == 0 && n == 4:
		r.mu.Lock()
		r.address = binary.LittleEndian.Uint32(p) &^ addressReserved
		r.mu.Unlock()
	case offset == resetOffset && n == 1 && r.cfg.ResetControl != nil:
		r.cfg.ResetControl.Write(0, p)
	case offset >= dataOffset && offset+n <= ConfigPorts:
		if f, at := r.selected(); f != nil {
			f.Write(at+int(offset-dataOffset), p)
		}
	}
}

// selected is the function and the doubleword that the address register names; nil: none.
func (r *Root) selected() (*Function, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.address
	bus, slot, function := a>>16&0xff, a>>11&0x1f, a>>8&7
	if a&addressEnable == 0 || bus != 0 || function != 0 {
		return nil, 0
	}
	return r.slots[slot], int(a & 0xfc)
}

// remap makes the BARs answer where the configuration spaces say. Of two that overlap, the one in the lower slot (and of
// those, the one with the lower index) answers; one outside the window does not answer.
func (r *Root) remap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := r.layout()
	for t, base := range r.mapped {
		if at, ok := wanted[t]; !ok || at != base {
			r.cfg.MMIO.Unregister(base)
			delete(r.mapped, t)
			if !ok {
				r.slots[t.slot].bars[t.bar].region.Moved(0, false)
			}
		}
	}
	for t, base := range wanted {
		if _, ok := r.mapped[t]; ok {
			continue
		}
		b := &r.slots[t.slot].bars[t.bar]
		if err := r.cfg.MMIO.Register(base, uint64(b.size), b.region); err != nil {
			// Only another device inside the window, a fault of the machine's builder, gets here.
			r.cfg.Logger.Error("PCI BAR does not answer", "device", r.slots[t.slot].name, "bar", t.bar, "error", err)
			b.region.Moved(0, false)
			continue
		}
		r.mapped[t] = base
		b.region.Moved(base, true)
	}
}

// layout decides where every BAR answers.
func (r *Root) layout() map[target]uint64 {
	wanted := map[target]uint64{}
	windowEnd := r.cfg.WindowBase + r.cfg.WindowSize
	for slot, f := range r.slots {
		for i := range barCount {
			if f == nil {
				break
			}
			base, ok := f.decodes(i)
			end := base + uint64(f.bars[i].size)
			if ok && base >= r.cfg.WindowBase && end <= windowEnd && !r.overlaps(wanted, base, end) {
				wanted[target{slot, i}] = base
			}
		}
	}
	return wanted
}

func (r *Root) overlaps(taken map[target]uint64, base, end uint64) bool {
	for t, other := range taken {
		if base < other+uint64(r.slots[t.slot].bars[t.bar].size) && other < end {
			return true
		}
	}
	return false
}
