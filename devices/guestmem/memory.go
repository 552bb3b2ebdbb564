package guestmem

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// PageShift and PageSize describe the page that dirty logging and checkpoints count in.
	PageShift = 12
	PageSize  = 1 << PageShift

	// HoleStart and HoleEnd bound the range that holds no RAM: PCI BARs, IOAPIC, local APIC, firmware. RAM that would lie there
	// goes on at HoleEnd. Both are multiples of 64 pages, so that a region's dirty log is a whole number of bitmap words.
	HoleStart = 3 << 30
	HoleEnd   = 4 << 30

	// MinSize is the least memory that a machine can have: low memory for the boot structures, and something above 1 MiB.
	MinSize = 4 << 20
	// MaxSize bounds a machine's memory: 1 TiB, what 40 physical address bits hold, which every x86-64 CPU has.
	MaxSize = 1 << 40

	sizeStep = 64 * PageSize
)

// ErrBounds is wrapped by every error for a range that is not whole inside of guest RAM.
var ErrBounds = errors.New("not in guest memory")

// Region is a contiguous piece of guest RAM.
type Region struct {
	Base  uint64 // guest physical address of its first byte
	Bytes []byte // the host's mapping of it
}

// Memory is all of a guest's RAM. Its methods may be called from any goroutine; what is inside the slices that it hands out is
// shared with running vCPUs, and may change while it is read.
type Memory struct {
	size    uint64
	regions []Region

	// dirty has one bit per guest frame, summary one bit per word of dirty, so that harvesting costs what is dirty, not
	// what there is.
	dirty   []atomic.Uint64
	summary []atomic.Uint64
}

// New maps size bytes of zeroed guest RAM. The size is a multiple of 256 KiB from MinSize to MaxSize. Pages are taken from
// the host when they are first touched.
func New(size uint64) (*Memory, error) {
	if size < MinSize || size > MaxSize || size%sizeStep != 0 {
		return nil, fmt.Errorf("guest memory of %d bytes: must be a multiple of %d KiB, at least %d MiB and at most %d GiB",
			size, sizeStep>>10, MinSize>>20, uint64(MaxSize)>>30)
	}
	m := &Memory{size: size}
	if err := m.addRegion(0, min(size, HoleStart)); err != nil {
		return nil, err
	}
	if size > HoleStart {
		if err := m.addRegion(HoleEnd, size-HoleStart); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	words := m.Frames() / 64
	m.dirty = make([]atomic.Uint64, words)
	m.summary = make([]atomic.Uint64, (words+63)/64)
	return m, nil
}

func (m *Memory) addRegion(base, size uint64) error {
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map %d MiB of guest memory at %#x: %w", size>>20, base, err)
	}
	// Huge pages make the guest and the checkpoint's copy faster. A kernel without them refuses the advice, and all still works.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	// A core dump of the VMM must not carry the guest's secrets.
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	m.regions = append(m.regions, Region{Base: base, Bytes: b})
	return nil
}

// Close unmaps the memory. No slice of it may be used after.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range m.regions {
		if err := unix.Munmap(r.Bytes); err != nil {
			errs = append(errs, fmt.Errorf("unmap guest memory at %#x: %w", r.Base, err))
		}
	}
	m.regions = nil
	return errors.Join(errs...)
}

// Size is the number of bytes of RAM.
func (m *Memory) Size() uint64 { return m.size }

// Regions are the pieces of RAM, in the order of their addresses. The caller must not change the slice.
func (m *Memory) Regions() []Region { return m.regions }

// Frames is one more than the highest guest frame number of RAM: the number of bits in a Bitmap for this memory. Frames in
// the hole count and stay clear.
func (m *Memory) Frames() uint64 { return Frames(m.size) }

// Frames is Memory.Frames for a memory of size bytes.
func Frames(size uint64) uint64 {
	if size > HoleStart {
		size += HoleEnd - HoleStart
	}
	return size >> PageShift
}

// Slice is the n bytes of RAM at guest physical address gpa. They must lie whole inside one region: a range over the hole's
// edge is refused. Whoever writes into the slice calls MarkDirty after.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		size := uint64(len(r.Bytes))
		if gpa >= r.Base && gpa-r.Base <= size && n <= size-(gpa-r.Base) {
			off := gpa - r.Base
			return r.Bytes[off : off+n : off+n], nil
		}
	}
	return nil, boundsError(gpa, n)
}

// ReadAt fills p from guest physical address gpa; all of it or an error.
func (m *Memory) ReadAt(p []byte, gpa uint64) error {
	s, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, s)
	return nil
}

// WriteAt copies p to guest physical address gpa and marks it dirty; all of it or an error.
func (m *Memory) WriteAt(p []byte, gpa uint64) error {
	s, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(s, p)
	m.MarkDirty(gpa, uint64(len(p)))
	return nil
}

// MarkDirty records that the VMM wrote the n bytes at gpa. A range outside of RAM is ignored: it can't have been written.
func (m *Memory) MarkDirty(gpa, n uint64) {
	if n == 0 || n > MaxSize || gpa > 2*MaxSize {
		return
	}
	frames := m.Frames()
	for gfn := gpa >> PageShift; gfn <= (gpa+n-1)>>PageShift && gfn < frames; gfn++ {
		word := gfn / 64
		if bit := uint64(1) << (gfn % 64); m.dirty[word].Load()&bit == 0 {
			m.dirty[word].Or(bit)
		}
		// The summary bit is set after the dirty bit, and CollectDirty clears in the other order, so none is lost.
		if bit := uint64(1) << (word % 64); m.summary[word/64].Load()&bit == 0 {
			m.summary[word/64].Or(bit)
		}
	}
}

// CollectDirty adds to dst the pages that MarkDirty recorded since the last call, and forgets them. A nil dst only forgets.
func (m *Memory) CollectDirty(dst *Bitmap) {
	for i := range m.summary {
		if m.summary[i].Load() == 0 {
			continue
		}
		for set := m.summary[i].Swap(0); set != 0; set &= set - 1 {
			word := uint64(i)*64 + uint64(bits.TrailingZeros64(set))
			marks := m.dirty[word].Swap(0)
			if dst != nil {
				dst.words[word] |= marks
			}
		}
	}
}

func boundsError(gpa, n uint64) error {
	return fmt.Errorf("%d bytes at guest address %#x: %w", n, gpa, ErrBounds)
}
