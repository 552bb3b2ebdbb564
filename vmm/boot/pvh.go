package boot

import (
	"fmt"
	"io"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// hvm_start_info, version 1, and what it points to (xen/include/public/arch-x86/hvm/start_info.h).
const (
	startInfoMagic   = 0x336e_c578
	startInfoVersion = 1
	startInfoSize    = 56
	moduleSize       = 32
	memmapEntrySize  = 24

	siModules       = 12
	siModuleList    = 16
	siCmdline       = 24
	siRSDP          = 32
	siMemmap        = 40
	siMemmapEntries = 48

	moduleListAt = startInfoAddress + 64
	memmapAt     = moduleListAt + moduleSize
)

// pvhCmdlineLimit is the longest command line for a PVH kernel, whose format gives none: a page with its NUL.
const pvhCmdlineLimit = pageSize - 1

// loadPVH loads an ELF kernel at its physical addresses and enters it in 32-bit mode.
func (l *loader) loadPVH(kernel *io.SectionReader) (Entry, error) {
	image, err := parseELF(kernel)
	if err != nil {
		return Entry{}, err
	}
	if !image.hasEntry {
		return Entry{}, fmt.Errorf("%w: an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)", ErrNotKernel)
	}
	end, err := l.placeSegments(kernel, image)
	if err != nil {
		return Entry{}, err
	}
	if err := l.placeCmdline(pvhCmdlineLimit); err != nil {
		return Entry{}, err
	}
	initrdAt, initrdSize, err := l.placeInitrd(end, guestmem.HoleStart)
	if err != nil {
		return Entry{}, err
	}
	if err := l.write("PVH start info", l.startInfo(initrdAt, initrdSize), startInfoAddress); err != nil {
		return Entry{}, err
	}
	e, err := newEntry(l.mem, Protected32, image.entry)
	e.RBX = startInfoAddress
	return e, err
}

// placeSegments loads the program and returns the address after its last byte.
func (l *loader) placeSegments(kernel *io.SectionReader, image elfImage) (uint64, error) {
	var end uint64
	inside := false
	for _, s := range image.segments {
		if s.address < kernelMinStart {
			return 0, fmt.Errorf("%w: it wants to be at %#x, the first MiB is not free", ErrNotKernel, s.address)
		}
		segmentEnd := s.address + s.memory // parseELF has checked that both are below 2^48
		if segmentEnd > lowMemory(l.mem) {
			if segmentEnd > guestmem.HoleStart {
				return 0, fmt.Errorf("%w: it wants to be at %#x to %#x, beyond the %d MiB that lie together", ErrNotKernel,
					s.address, segmentEnd, uint64(guestmem.HoleStart)>>20)
			}
			return 0, l.tooLittle("kernel", segmentEnd)
		}
		end = max(end, segmentEnd)
		inside = inside || image.entry >= s.address && image.entry < segmentEnd
	}
	if !inside {
		return 0, fmt.Errorf("%w: its entry %#x is in none of its %d segments", ErrNotKernel, image.entry, len(image.segments))
	}
	for _, s := range image.segments {
		if err := l.read("kernel", kernel, s.offset, s.address, s.file); err != nil {
			return 0, err
		}
		if err := l.zero(s.address+s.file, s.memory-s.file); err != nil {
			return 0, err
		}
	}
	return end, nil
}

// zero clears a segment's end that the file does not hold, a piece at a time: its length is the file's word for it, and
// only what lies inside RAM counts.
func (l *loader) zero(at, n uint64) error {
	const step = 1 << 20
	for n > 0 {
		part := min(n, step)
		p, err := l.mem.Slice(at, part)
		if err != nil {
			return fmt.Errorf("clear the kernel's data: %w", err)
		}
		clear(p)
		l.mem.MarkDirty(at, part)
		at, n = at+part, n-part
	}
	return nil
}

// startInfo is the structure, the module list and the memory map, as they lie from startInfoAddress on.
func (l *loader) startInfo(initrdAt, initrdSize uint64) []byte {
	ranges := MemoryMap(l.mem)
	b := make([]byte, memmapAt-startInfoAddress, memmapAt-startInfoAddress+len(ranges)*memmapEntrySize)
	le.PutUint32(b, startInfoMagic)
	le.PutUint32(b[4:], startInfoVersion)
	if initrdSize > 0 {
		le.PutUint32(b[siModules:], 1)
		le.PutUint64(b[siModuleList:], moduleListAt)
		module := b[moduleListAt-startInfoAddress:]
		le.PutUint64(module, initrdAt)
		le.PutUint64(module[8:], initrdSize)
	}
	le.PutUint64(b[siCmdline:], cmdlineAddress)
	le.PutUint64(b[siRSDP:], acpiAddress)
	le.PutUint64(b[siMemmap:], memmapAt)
	le.PutUint32(b[siMemmapEntries:], uint32(len(ranges)))
	for _, r := range ranges {
		b = le.AppendUint64(b, r.Base)
		b = le.AppendUint64(b, r.Size)
		b = le.AppendUint32(b, uint32(r.Type))
		b = le.AppendUint32(b, 0)
	}
	return b
}
