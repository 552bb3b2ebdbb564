package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Mode is the processor mode in which a kernel is entered.
type Mode int

// The modes.
const (
	// Protected32: 32-bit protected mode without paging.
	Protected32 Mode = iota + 1
	// Long64: 64-bit mode with the first 4 GiB identity mapped.
	Long64
)

func (m Mode) String() string {
	switch m {
	case Protected32:
		return "32-bit protected mode"
	case Long64:
		return "64-bit mode"
	}
	return fmt.Sprintf("mode %d", int(m))
}

// Segment is a segment register with its hidden part.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes
	Type     uint8  // the descriptor's type field, with the accessed or busy bit
	System   bool   // a TSS, rather than code or data
	Big      bool   // D/B: 32-bit
	Long     bool   // L: 64-bit code
	Granular bool   // G: the descriptor's limit counts pages
}

// Entry is the state in which the first processor begins. What it does not name is as after reset; every segment is
// present, with privilege level 0. The other processors wait for their start-up interrupt.
type Entry struct {
	Mode Mode

	RIP, RSP uint64
	RBX, RSI uint64 // one of them points to what the boot protocol passes; the other general registers are 0
	RFLAGS   uint64

	CR0, CR3, CR4, EFER uint64

	Code Segment // CS
	Data Segment // DS, ES, FS, GS, SS
	Task Segment // TR; LDTR is null

	GDTBase  uint64
	GDTLimit uint16 // the IDT is empty, limit 0
}

// Control bits (Intel SDM volume 3 §2.5, §2.2.1).
const (
	cr0PE = 1 << 0
	cr0ET = 1 << 4
	cr0PG = 1 << 31

	cr4PAE = 1 << 5

	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsReserved = 1 << 1 // always 1; interrupts are off
)

// Selectors. Linux's boot protocol fixes those of code and data (__BOOT_CS, __BOOT_DS).
const (
	codeSelector = 0x10
	dataSelector = 0x18
	taskSelector = 0x20
	gdtEntries   = 6 // null, unused, code, data, and the 16 bytes of a 64-bit TSS
)

// Descriptor types.
const (
	typeCode    = 0xb // execute, read, accessed
	typeData    = 0x3 // read, write, accessed
	typeBusyTSS = 0xb
)

const taskLimit = 0x67

// newEntry writes the descriptor table, and for 64-bit mode the page tables, and returns the state that uses them.
func newEntry(mem *guestmem.Memory, mode Mode, rip uint64) (Entry, error) {
	e := Entry{
		Mode:     mode,
		RIP:      rip,
		RFLAGS:   rflagsReserved,
		CR0:      cr0PE | cr0ET,
		Code:     Segment{Selector: codeSelector, Limit: 0xffff_ffff, Type: typeCode, Big: true, Granular: true},
		Data:     Segment{Selector: dataSelector, Limit: 0xffff_ffff, Type: typeData, Big: true, Granular: true},
		Task:     Segment{Selector: taskSelector, Base: tssAddress, Limit: taskLimit, Type: typeBusyTSS, System: true},
		GDTBase:  gdtAddress,
		GDTLimit: gdtEntries*8 - 1,
	}
	if mode == Long64 {
		e.Code.Big, e.Code.Long = false, true
		e.RSP = stackTop
		e.CR0 |= cr0PG
		e.CR3 = pageTableAddress
		e.CR4 = cr4PAE
		e.EFER = eferLME | eferLMA
		if err := writePageTables(mem); err != nil {
			return Entry{}, err
		}
	}
	var gdt [gdtEntries * 8]byte
	for _, s := range []Segment{e.Code, e.Data, e.Task} {
		binary.LittleEndian.PutUint64(gdt[s.Selector:], s.descriptor())
	}
	if err := mem.WriteAt(gdt[:], gdtAddress); err != nil {
		return Entry{}, fmt.Errorf("write the descriptor table: %w", err)
	}
	return e, nil
}

// descriptor is the segment as it stands in a descriptor table (Intel SDM volume 3 §3.4.5). Bases here fit 32 bits.
func (s Segment) descriptor() uint64 {
	limit := uint64(s.Limit)
	if s.Granular {
		limit >>= guestmem.PageShift
	}
	d := limit&0xffff | (s.Base&0xff_ffff)<<16 | uint64(s.Type)<<40 | limit>>16&0xf<<48 | s.Base>>24&0xff<<56
	d |= 1 << 47 // present
	if !s.System {
		d |= 1 << 44
	}
	if s.Long {
		d |= 1 << 53
	}
	if s.Big {
		d |= 1 << 54
	}
	if s.Granular {
		d |= 1 << 55
	}
	return d
}

// Page table entries (Intel SDM volume 3 §4.5).
const (
	pagePresent  = 1 << 0
	pageWritable = 1 << 1
	pageLarge    = 1 << 7

	largePageSize   = 2 << 20
	entriesPerTable = 512
)

// writePageTables maps the first 4 GiB to themselves with 2 MiB pages, which every 64-bit processor has. The boot
// protocol asks for the kernel, the zero page and the command line; all of them are below 3 GiB.
func writePageTables(mem *guestmem.Memory) error {
	const directories = 4
	t := make([]byte, (2+directories)*pageSize)
	put := func(table, entry int, v uint64) {
		binary.LittleEndian.PutUint64(t[table*pageSize+entry*8:], v)
	}
	put(0, 0, pageTableAddress+pageSize|pagePresent|pageWritable)
	for d := range directories {
		put(1, d, uint64(pageTableAddress+(2+d)*pageSize)|pagePresent|pageWritable)
		for i := range entriesPerTable {
			at := uint64(d*entriesPerTable+i) * largePageSize
			put(2+d, i, at|pagePresent|pageWritable|pageLarge)
		}
	}
	if err := mem.WriteAt(t, pageTableAddress); err != nil {
		return fmt.Errorf("write the page tables: %w", err)
	}
	return nil
}
