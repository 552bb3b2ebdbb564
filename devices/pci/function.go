package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/pollux-ha/pollux/devices"
)

// Offsets in the type 0 configuration header (PCI §6.1).
const (
	regVendor       = 0x00
	regDevice       = 0x02
	regCommand      = 0x04
	regStatus       = 0x06
	regRevision     = 0x08
	regClass        = 0x09
	regBAR          = 0x10
	regSubVendor    = 0x2c
	regSubsystem    = 0x2e
	regCapabilities = 0x34
	regIntLine      = 0x3c
	firstCapability = 0x40

	spaceSize = 256
	barCount  = 6
)

// Bits of the command and status registers (PCI §6.2.2, §6.2.3).
const (
	commandMemory      = 1 << 1
	commandMaster      = 1 << 2
	commandParity      = 1 << 6
	commandSERR        = 1 << 8
	commandINTxDisable = 1 << 10
	commandWritable    = commandMemory | commandMaster | commandParity | commandSERR | commandINTxDisable

	statusCapabilities = 1 << 4
)

// Capability IDs (PCI appendix H).
const (
	CapVendor = 0x09
	CapMSIX   = 0x11
)

// Identity is what the read-only head of a configuration space says.
type Identity struct {
	Vendor, Device uint16
	Revision       uint8
	Class          uint32 // 24 bits: base class, sub-class, programming interface
	SubVendor      uint16
	Subsystem      uint16
}

// Region is the memory behind a BAR.
type Region interface {
	devices.Handler
	// Moved says where the region answers from now on; mapped false: nowhere. It is called while the bus is being rearranged and
	// must not touch configuration spaces.
	Moved(base uint64, mapped bool)
}

// Window answers accesses to a few bytes of configuration space that are not stored there (see Function.SetWindow).
type Window interface {
	ReadWindow(offset int, p []byte)
	WriteWindow(offset int, p []byte)
}

type bar struct {
	size   uint32 // 0: there is none
	region Region
}

// Function is one device's configuration space. It is set up (AddBAR, AddCapability, …) before it is attached to a Root,
// and from then on belongs to the guest.
type Function struct {
	name string
	root *Root // set once by Attach
	bars [barCount]bar
	msix *MSIX

	window       Window
	windowAt     int
	windowSize   int
	onBusMaster  func()
	nextCap      int
	lastCapField int // where the offset of the next capability goes

	// command mirrors the command register, so that the data path can look at it without a lock.
	command atomic.Uint32

	mu    sync.Mutex
	space [spaceSize]byte
	mask  [spaceSize]byte // the bits that the guest can write; constant once attached
}

// NewFunction returns a function with the given identity, no BARs and no capabilities. The name is for errors.
func NewFunction(name string, id Identity) *Function {
	f := &Function{name: name, nextCap: firstCapability, lastCapField: regCapabilities}
	le := binary.LittleEndian
	le.PutUint16(f.space[regVendor:], id.Vendor)
	le.PutUint16(f.space[regDevice:], id.Device)
	f.space[regRevision] = id.Revision
	f.space[regClass] = byte(id.Class)
	f.space[regClass+1] = byte(id.Class >> 8)
	f.space[regClass+2] = byte(id.Class >> 16)
	le.PutUint16(f.space[regSubVendor:], id.SubVendor)
	le.PutUint16(f.space[regSubsystem:], id.Subsystem)
	le.PutUint16(f.mask[regCommand:], commandWritable)
	f.mask[regIntLine] = 0xff // a scratch register for the guest's software (PCI §6.2.4)
	return f
}

// AddBAR gives the function a 32-bit, non-prefetchable memory BAR. The size is a power of two and at least a page, so that
// no two regions share one.
func (f *Function) AddBAR(index int, size uint32, r Region) error {
	if index < 0 || index >= barCount || f.bars[index].size != 0 {
		return fmt.Errorf("%s: BAR %d does not exist or is taken", f.name, index)
	}
	if size < 4096 || size&(size-1) != 0 {
		return fmt.Errorf("%s: BAR %d: size %#x is not a power of two of at least 4096", f.name, index, size)
	}
	f.bars[index] = bar{size: size, region: r}
	// The bits below the size read as zero whatever is written: that is how the guest finds the size (PCI §6.2.5.1).
	binary.LittleEndian.PutUint32(f.mask[regBAR+4*index:], ^(size - 1))
	return nil
}

// AddCapability appends a capability: its ID, then body after the two bytes of the header. The bits of mask, which is as
// long as body or nil, can be written by the guest. It returns the capability's offset in the configuration space.
func (f *Function) AddCapability(id uint8, body, mask []byte) (int, error) {
	at := f.nextCap
	if at+2+len(body) > spaceSize {
		return 0, fmt.Errorf("%s: no room for capability %#x", f.name, id)
	}
	f.space[f.lastCapField] = byte(at)
	f.space[regStatus] |= statusCapabilities
	f.space[at] = id
	copy(f.space[at+2:], body)
	copy(f.mask[at+2:at+2+len(body)], mask)
	f.lastCapField = at + 1
	f.nextCap = (at + 2 + len(body) + 3) &^ 3
	return at, nil
}

// SetWindow gives the size bytes at offset at of the configuration space to w.
func (f *Function) SetWindow(at, size int, w Window) {
	f.windowAt, f.windowSize, f.window = at, size, w
}

// OnBusMaster makes the function call do whenever the guest has switched bus mastering on: a device that found it off has
// work to catch up with.
func (f *Function) OnBusMaster(do func()) { f.onBusMaster = do }

// BusMaster reports whether the guest lets the function access memory and send interrupts.
func (f *Function) BusMaster() bool { return f.command.Load()&commandMaster != 0 }

// Read is a guest's read of the configuration space: len(p) is 1, 2 or 4, and it lies inside one doubleword.
func (f *Function) Read(offset int, p []byte) {
	if f.inWindow(offset, len(p)) {
		f.window.ReadWindow(offset-f.windowAt, p)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(p, f.space[offset:])
}

// Write is a guest's write to the configuration space, of the same shape as Read.
func (f *Function) Write(offset int, p []byte) {
	if f.inWindow(offset, len(p)) {
		f.window.WriteWindow(offset-f.windowAt, p)
		return
	}
	before := f.command.Load()
	moved := f.store(offset, p)
	if f.msix != nil {
		f.msix.configure()
	}
	if f.root != nil && moved {
		f.root.remap()
	}
	if before&commandMaster == 0 && f.BusMaster() && f.onBusMaster != nil {
		f.onBusMaster()
	}
}

// store writes what the mask allows, and reports whether BARs may answer elsewhere from now on.
func (f *Function) store(offset int, p []byte) (moved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, b := range p {
		at := offset + i
		if at >= spaceSize {
			break
		}
		m := f.mask[at]
		updated := f.space[at]&^m | b&m
		decodes := (at >= regBAR && at < regBAR+4*barCount) || at == regCommand
		moved = moved || (decodes && updated != f.space[at])
		f.space[at] = updated
	}
	f.command.Store(uint32(binary.LittleEndian.Uint16(f.space[regCommand:])))
	return moved
}

// Field reads n bytes (at most 4) at offset, little endian, as they are stored.
func (f *Function) Field(offset, n int) uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var v uint32
	for i := range n {
		v |= uint32(f.space[offset+i]) << (8 * i)
	}
	return v
}

func (f *Function) inWindow(offset, n int) bool {
	return f.window != nil && offset >= f.windowAt && offset+n <= f.windowAt+f.windowSize
}

// decodes is the address that BAR i answers at; ok false: it does not exist or memory decoding is off.
func (f *Function) decodes(i int) (base uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bars[i].size == 0 || f.command.Load()&commandMemory == 0 {
		return 0, false
	}
	return uint64(binary.LittleEndian.Uint32(f.space[regBAR+4*i:])), true
}

// place writes a BAR and switches memory decoding on, as a firmware does before the guest's kernel starts.
func (f *Function) place(i int, base uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	binary.LittleEndian.PutUint32(f.space[regBAR+4*i:], base)
	f.space[regCommand] |= commandMemory
	f.command.Store(uint32(binary.LittleEndian.Uint16(f.space[regCommand:])))
}
