package vmm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// DescribeSnapshot reads from a snapshot file what a machine must be to restore it, for its Config.
func DescribeSnapshot(path string) (Description, error) {
	f, err := os.Open(path)
	if err != nil {
		return Description{}, fmt.Errorf("read snapshot: %w", err)
	}
	defer f.Close()
	r, err := newSnapshotReader(f)
	if err != nil {
		return Description{}, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	d, err := r.description()
	if err != nil {
		return Description{}, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return d, nil
}

// Restore loads a snapshot into a fresh machine with the same description; Run then continues where it was taken. The error
// wraps ErrSnapshot for a file that is not, or no longer, what Snapshot wrote, and ErrMismatch for one of another machine.
// After an error the machine is only good for Close.
func (m *Machine) Restore(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	defer f.Close()
	if err := m.restoreFrom(f); err != nil {
		return fmt.Errorf("restore snapshot %s: %w", path, err)
	}
	return nil
}

func (m *Machine) restoreFrom(f io.Reader) error {
	r, err := newSnapshotReader(f)
	if err != nil {
		return err
	}
	theirs, err := r.description()
	if err != nil {
		return err
	}
	own, err := ParseDescription(m.description)
	if err != nil {
		return err
	}
	if err := own.Matches(theirs); err != nil {
		return err
	}
	state, err := r.read(sectionState, maxState)
	if err != nil {
		return err
	}
	// Memory first: the file is known to be whole before the machine's state changes.
	if err := r.memory(m.memory); err != nil {
		return err
	}
	return m.LoadState(state)
}

// snapshotReader reads sections, and checks everything that it returns.
type snapshotReader struct {
	r   *bufio.Reader
	sum uint32 // of everything read
}

func newSnapshotReader(f io.Reader) (*snapshotReader, error) {
	r := &snapshotReader{r: bufio.NewReaderSize(f, 1<<20)}
	var h [snapshotHeaderSize]byte
	if err := r.fill(h[:]); err != nil {
		return nil, err
	}
	if string(h[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: the file is something else", ErrSnapshot)
	}
	if crc32.Checksum(h[:12], castagnoli) != binary.LittleEndian.Uint32(h[12:]) {
		return nil, fmt.Errorf("%w: its header is damaged", ErrSnapshot)
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v != snapshotVersion {
		return nil, fmt.Errorf("%w: format version %d, this Pollux reads %d", ErrSnapshot, v, snapshotVersion)
	}
	return r, nil
}

// fill reads all of p.
func (r *snapshotReader) fill(p []byte) error {
	_, err := io.ReadFull(r.r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the file is cut off", ErrSnapshot)
	}
	if err != nil {
		return err
	}
	r.sum = crc32.Update(r.sum, castagnoli, p)
	return nil
}

// sectionHeader is a section's header, checked by its own checksum.
type sectionHeader struct {
	kind   uint32
	length uint64
	sum    uint32
}

func (r *snapshotReader) header() (sectionHeader, error) {
	var h [sectionHeaderSize]byte
	if err := r.fill(h[:]); err != nil {
		return sectionHeader{}, err
	}
	if crc32.Checksum(h[:20], castagnoli) != binary.LittleEndian.Uint32(h[20:]) {
		return sectionHeader{}, fmt.Errorf("%w: a section's header is damaged", ErrSnapshot)
	}
	return sectionHeader{
		kind:   binary.LittleEndian.Uint32(h[0:]),
		length: binary.LittleEndian.Uint64(h[8:]),
		sum:    binary.LittleEndian.Uint32(h[16:]),
	}, nil
}

// payload reads a section's payload into p, which has its length.
func (r *snapshotReader) payload(h sectionHeader, p []byte) error {
	if err := r.fill(p); err != nil {
		return err
	}
	if crc32.Checksum(p, castagnoli) != h.sum {
		return fmt.Errorf("%w: section %d is damaged", ErrSnapshot, h.kind)
	}
	return nil
}

// read reads a whole section of a kind.
func (r *snapshotReader) read(kind uint32, limit uint64) ([]byte, error) {
	h, err := r.header()
	if err != nil {
		return nil, err
	}
	if h.kind != kind || h.length > limit {
		return nil, fmt.Errorf("%w: section %d of %d bytes where section %d is expected", ErrSnapshot, h.kind, h.length, kind)
	}
	p := make([]byte, h.length)
	return p, r.payload(h, p)
}

func (r *snapshotReader) description() (Description, error) {
	b, err := r.read(sectionDescription, maxDescription)
	if err != nil {
		return Description{}, err
	}
	d, err := ParseDescription(b)
	if err != nil {
		return Description{}, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	return d, nil
}

// memory reads the sections of pages into mem, and the end.
func (r *snapshotReader) memory(mem *guestmem.Memory) error {
	pages, next := uint64(0), uint64(0)
	for {
		before := r.sum
		h, err := r.header()
		if err != nil {
			return err
		}
		switch h.kind {
		case sectionPages:
			n, end, err := r.run(h, mem, next)
			if err != nil {
				return err
			}
			pages, next = pages+n, end
		case sectionEnd:
			return r.end(h, pages, before)
		default:
			return fmt.Errorf("%w: section %d among the pages", ErrSnapshot, h.kind)
		}
	}
}

// run reads one section of pages, which must lie at or after address floor; it returns their number and the address after
// them.
func (r *snapshotReader) run(h sectionHeader, mem *guestmem.Memory, floor uint64) (n, end uint64, err error) {
	size := h.length - pagesOverhead
	if h.length <= pagesOverhead || size%guestmem.PageSize != 0 || size > maxRunPages*guestmem.PageSize {
		return 0, 0, fmt.Errorf("%w: section of pages of %d bytes", ErrSnapshot, h.length)
	}
	var address [pagesOverhead]byte
	if err := r.fill(address[:]); err != nil {
		return 0, 0, err
	}
	at := binary.LittleEndian.Uint64(address[:])
	if at%guestmem.PageSize != 0 || at < floor {
		return 0, 0, fmt.Errorf("%w: pages at address %#x", ErrSnapshot, at)
	}
	p, err := mem.Slice(at, size)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if err := r.fill(p); err != nil {
		return 0, 0, err
	}
	if crc32.Update(crc32.Checksum(address[:], castagnoli), castagnoli, p) != h.sum {
		return 0, 0, fmt.Errorf("%w: the pages at address %#x are damaged", ErrSnapshot, at)
	}
	mem.MarkDirty(at, size)
	return size / guestmem.PageSize, at + size, nil
}

// end reads the last section and checks the whole file by it.
func (r *snapshotReader) end(h sectionHeader, pages uint64, sum uint32) error {
	if h.length != endSize {
		return fmt.Errorf("%w: end of %d bytes", ErrSnapshot, h.length)
	}
	var p [endSize]byte
	if err := r.payload(h, p[:]); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(p[0:]); n != pages {
		return fmt.Errorf("%w: %d pages, and %d were written", ErrSnapshot, pages, n)
	}
	if binary.LittleEndian.Uint32(p[8:]) != sum {
		return fmt.Errorf("%w: its checksum is wrong", ErrSnapshot)
	}
	if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", ErrSnapshot)
	}
	return nil
}
