package boot

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// section is a file's content.
func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func newMemory(t testing.TB, size uint64) *guestmem.Memory {
	t.Helper()
	mem, err := guestmem.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	})
	return mem
}

func read(t testing.TB, mem *guestmem.Memory, at, n uint64) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := mem.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

// bzImage is a file in the layout of a Linux kernel, with a payload of 0x90 bytes after its entry.
func bzImage(payload int) []byte {
	const setupSects = 2
	b := make([]byte, (setupSects+1)*sectorSize+payload)
	put16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
	put32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	b[setupSectsAt] = setupSects
	put32(sysSizeAt, uint32(payload/paragraph))
	put16(bootFlagAt, bootFlag)
	b[setupJumpAt-1], b[setupJumpAt] = 0xeb, 0x6a // the header ends at 0x26C
	copy(b[setupMagicAt:], setupMagic)
	put16(versionAt, 0x020f)
	b[loadFlagsAt] = loadedHigh
	put32(initrdAddrMaxAt, 0x7fff_ffff)
	put32(kernelAlignmentAt, 0x20_0000)
	b[relocatableAt] = 1
	put16(xloadFlagsAt, 0x7f)
	put32(cmdlineSizeAt, 2047)
	binary.LittleEndian.PutUint64(b[prefAddressAt:], 0x100_0000)
	put32(initSizeAt, 4<<20)
	for i := (setupSects + 1) * sectorSize; i < len(b); i++ {
		b[i] = 0x90
	}
	return b
}

// elfOptions vary pvhELF.
type elfOptions struct {
	narrow  bool   // ELF32
	entry   uint64 // the note's value
	wide    bool   // the note has eight bytes
	address uint64
	memory  uint64
	noNote  bool
}

// pvhELF is an executable with one segment of 0xCC bytes and a PVH note.
func pvhELF(o elfOptions) []byte {
	f := elf64
	class := byte(elfClass64)
	if o.narrow {
		f, class = elf32, elfClass32
	}
	if o.address == 0 {
		o.address = 0x10_0000
	}
	if o.entry == 0 {
		o.entry = o.address + 0x10
	}
	const text = 0x1000
	if o.memory == 0 {
		o.memory = 2 * text
	}
	word := func(b []byte, at int, v uint64) {
		if f.wide {
			binary.LittleEndian.PutUint64(b[at:], v)
		} else {
			binary.LittleEndian.PutUint32(b[at:], uint32(v))
		}
	}
	note := binary.LittleEndian.AppendUint32(nil, 4)
	note = binary.LittleEndian.AppendUint32(note, 4)
	note = append(note, 1, 0, 0, 0, 'G', 'N', 'U', 0, 9, 9, 9, 9) // another one first
	size := uint32(4)
	if o.wide {
		size = 8
	}
	note = binary.LittleEndian.AppendUint32(note, 4)
	note = binary.LittleEndian.AppendUint32(note, size)
	note = binary.LittleEndian.AppendUint32(note, notePhys32Entry)
	note = append(note, noteNameXen...)
	note = binary.LittleEndian.AppendUint64(note, o.entry)[:len(note)+int(size)]
	if o.noNote {
		note[20+8]++
	}

	header := make([]byte, f.headerSize)
	copy(header, elfMagic)
	header[4], header[5], header[6] = class, elfLittle, 1
	binary.LittleEndian.PutUint16(header[16:], elfExecutable)
	binary.LittleEndian.PutUint16(header[18:], elfMachineX86)
	word(header, f.phoff, uint64(f.headerSize))
	binary.LittleEndian.PutUint16(header[f.phentsize:], uint16(f.programSize))
	binary.LittleEndian.PutUint16(header[f.phnum:], 2)
	noteAt := uint64(f.headerSize) + 2*uint64(f.programSize)
	program := func(kind uint32, offset, address, file, memory uint64) []byte {
		p := make([]byte, f.programSize)
		binary.LittleEndian.PutUint32(p, kind)
		word(p, f.pOffset, offset)
		word(p, f.pPaddr, address)
		word(p, f.pFilesz, file)
		word(p, f.pMemsz, memory)
		return p
	}
	b := append(bytes.Clone(header), program(elfNote, noteAt, 0, uint64(len(note)), uint64(len(note)))...)
	b = append(b, program(elfLoad, noteAt+uint64(len(note)), o.address, text, o.memory)...)
	b = append(b, note...)
	return append(b, bytes.Repeat([]byte{0xcc}, text)...)
}
