package boot

import (
	"fmt"
	"io"
)

// ELF, as far as a kernel needs it (System V ABI, chapters 4 and 5). The standard library's debug/elf reads much more,
// and does not promise to withstand files that were made to break it.
const (
	elfMagic       = "\x7fELF"
	elfClass32     = 1
	elfClass64     = 2
	elfLittle      = 1
	elfExecutable  = 2
	elfShared      = 3 // a kernel that is linked as position independent
	elfMachine386  = 3
	elfMachineX86  = 62
	elfLoad        = 1
	elfNote        = 4
	elfMaxSegments = 64
	elfMaxNotes    = 1 << 20 // bytes

	noteNameXen     = "Xen\x00"
	notePhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	noteHeaderSize  = 12
)

// maxAddress bounds every address and size in the file, so that sums do not wrap.
const maxAddress = 1 << 48

// elfSegment is a part of the program: file bytes from offset on, at address, followed by zeroes up to memory bytes.
type elfSegment struct {
	offset       int64
	address      uint64
	file, memory uint64
}

type elfImage struct {
	segments []elfSegment
	entry    uint64 // by the PVH note
	hasEntry bool
}

// elfLayout is where the fields are: different in 32-bit and 64-bit files.
type elfLayout struct {
	wide                             bool
	headerSize                       int64
	phoff, phentsize, phnum          int
	programSize                      int
	pOffset, pPaddr, pFilesz, pMemsz int
}

var (
	elf32 = elfLayout{headerSize: 52, phoff: 28, phentsize: 42, phnum: 44, programSize: 32, pOffset: 4, pPaddr: 12, pFilesz: 16, pMemsz: 20}
	elf64 = elfLayout{
		wide: true, headerSize: 64, phoff: 32, phentsize: 54, phnum: 56,
		programSize: 56, pOffset: 8, pPaddr: 24, pFilesz: 32, pMemsz: 40,
	}
)

// word reads an address or a size.
func (f elfLayout) word(b []byte, at int) uint64 {
	if f.wide {
		return le.Uint64(b[at:])
	}
	return uint64(le.Uint32(b[at:]))
}

// parseELF reads the program headers and the notes of a file whose magic is there.
func parseELF(kernel *io.SectionReader) (elfImage, error) {
	format, header, err := readELFHeader(kernel)
	if err != nil {
		return elfImage{}, err
	}
	count := int(le.Uint16(header[format.phnum:]))
	offset := format.word(header, format.phoff)
	switch {
	case int(le.Uint16(header[format.phentsize:])) != format.programSize:
		return elfImage{}, fmt.Errorf("%w: program headers of %d bytes", ErrNotKernel, le.Uint16(header[format.phentsize:]))
	case count == 0 || count > elfMaxSegments:
		return elfImage{}, fmt.Errorf("%w: %d program headers, 1 to %d are possible", ErrNotKernel, count, elfMaxSegments)
	}
	table, err := readRange(kernel, offset, uint64(count*format.programSize))
	if err != nil {
		return elfImage{}, fmt.Errorf("read program headers: %w", err)
	}
	var image elfImage
	for ; len(table) > 0; table = table[format.programSize:] {
		if err := image.addProgram(kernel, format, table); err != nil {
			return elfImage{}, err
		}
	}
	if len(image.segments) == 0 {
		return elfImage{}, fmt.Errorf("%w: an ELF file with nothing to load", ErrNotKernel)
	}
	return image, nil
}

func readELFHeader(kernel *io.SectionReader) (elfLayout, []byte, error) {
	ident, err := readRange(kernel, 0, 16)
	if err != nil {
		return elfLayout{}, nil, fmt.Errorf("read ELF header: %w", err)
	}
	format := elf64
	switch {
	case ident[5] != elfLittle:
		return elfLayout{}, nil, fmt.Errorf("%w: a big-endian ELF file", ErrNotKernel)
	case ident[4] == elfClass32:
		format = elf32
	case ident[4] != elfClass64:
		return elfLayout{}, nil, fmt.Errorf("%w: ELF class %d", ErrNotKernel, ident[4])
	}
	header, err := readRange(kernel, 0, uint64(format.headerSize))
	if err != nil {
		return elfLayout{}, nil, fmt.Errorf("read ELF header: %w", err)
	}
	kind, machine := le.Uint16(header[16:]), le.Uint16(header[18:])
	switch {
	case machine != elfMachineX86 && machine != elfMachine386:
		return elfLayout{}, nil, fmt.Errorf("%w: an ELF file for machine %d, not x86", ErrNotKernel, machine)
	case kind != elfExecutable && kind != elfShared:
		return elfLayout{}, nil, fmt.Errorf("%w: an ELF file of type %d, not executable", ErrNotKernel, kind)
	}
	return format, header, nil
}

// addProgram takes what one program header says.
func (e *elfImage) addProgram(kernel *io.SectionReader, format elfLayout, header []byte) error {
	kind := le.Uint32(header)
	offset := format.word(header, format.pOffset)
	address := format.word(header, format.pPaddr)
	file := format.word(header, format.pFilesz)
	memory := format.word(header, format.pMemsz)
	switch kind {
	case elfLoad:
		if memory == 0 {
			return nil
		}
		if offset > maxAddress || address > maxAddress || memory > maxAddress || file > memory {
			return fmt.Errorf("%w: segment at %#x with %#x of %#x bytes from offset %#x", ErrNotKernel, address, file, memory, offset)
		}
		if size := uint64(kernel.Size()); offset > size || file > size-offset {
			return fmt.Errorf("%w: the file is cut short: segment of %d bytes at offset %d of %d", ErrNotKernel, file, offset, size)
		}
		e.segments = append(e.segments, elfSegment{int64(offset), address, file, memory})
	case elfNote:
		if file > elfMaxNotes {
			return fmt.Errorf("%w: %d bytes of notes", ErrNotKernel, file)
		}
		notes, err := readRange(kernel, offset, file)
		if err != nil {
			return fmt.Errorf("read notes: %w", err)
		}
		return e.addNotes(notes)
	}
	return nil
}

// addNotes looks for the PVH entry. Notes are aligned to four bytes; a section of eight-byte aligned ones (GNU
// properties) has its own program header, whose odd-looking notes are none of ours.
func (e *elfImage) addNotes(b []byte) error {
	for len(b) >= noteHeaderSize {
		nameSize, descSize, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[noteHeaderSize:]
		nameEnd := roundUp(nameSize, 4)
		if nameEnd > uint64(len(b)) || descSize > uint64(len(b))-nameEnd {
			return fmt.Errorf("%w: a note of %d and %d bytes where %d are left", ErrNotKernel, nameSize, descSize, len(b))
		}
		if kind == notePhys32Entry && string(b[:nameSize]) == noteNameXen {
			return e.setEntry(b[nameEnd : nameEnd+descSize])
		}
		b = b[min(nameEnd+roundUp(descSize, 4), uint64(len(b))):]
	}
	return nil
}

// setEntry takes the note's value, which is an address of four or eight bytes, of which 32-bit code can use four.
func (e *elfImage) setEntry(desc []byte) error {
	switch len(desc) {
	case 4:
		e.entry = uint64(le.Uint32(desc))
	case 8:
		e.entry = le.Uint64(desc)
	default:
		return fmt.Errorf("%w: a PVH entry of %d bytes", ErrNotKernel, len(desc))
	}
	if e.entry > 0xffff_ffff {
		return fmt.Errorf("%w: PVH entry %#x is beyond 4 GiB", ErrNotKernel, e.entry)
	}
	e.hasEntry = true
	return nil
}

// readRange reads n bytes, of which the caller has made sure that they are not too many to hold.
func readRange(r *io.SectionReader, offset, n uint64) ([]byte, error) {
	size := uint64(r.Size())
	if offset > size || n > size-offset {
		return nil, fmt.Errorf("%w: the file is cut short: %d bytes at offset %d of %d", ErrNotKernel, n, offset, size)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, int64(offset)); err != nil {
		return nil, err
	}
	return b, nil
}
