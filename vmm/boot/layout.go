package boot

import (
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Where things are in the guest's low memory, before the kernel makes it its own. The first page stays free: it is the
// interrupt table and the BIOS data area, where kernels look for an EBDA and find none.
const (
	gdtAddress       = 0x1000
	tssAddress       = 0x1100 // only its descriptor's existence matters; no task switch happens
	startInfoAddress = 0x6000 // PVH
	startInfoEnd     = 0x7000
	zeroPageAddress  = 0x7000 // bzImage
	pageTableAddress = 0x9000 // PML4, PDPT, and four page directories: 4 GiB identity mapped
	pageTableEnd     = 0xf000
	cmdlineAddress   = 0x1_0000
	cmdlineEnd       = 0x2_0000
	stackTop         = 0x9_0000 // a little stack for a kernel that pushes before it has its own

	lowMemoryEnd   = 0xa_0000 // where video memory begins on a PC
	acpiAddress    = 0xe_0000 // kernels search 0xE0000 to 0xFFFFF for the RSDP
	acpiEnd        = 0x10_0000
	highMemory     = 0x10_0000
	pciWindowBase  = guestmem.HoleStart
	pciWindowSize  = 0x2000_0000
	firmwareBase   = 0xfffb_c000 // what KVM needs to itself on Intel, up to 4 GiB
	firmwareEnd    = 0x1_0000_0000
	pageSize       = guestmem.PageSize
	kernelMinStart = highMemory
)

// RangeType is what a range of the memory map is for, by the numbers of ACPI's address range types (ACPI 6.5 §15), which
// both boot protocols use.
type RangeType uint32

// The types that a map here has.
const (
	RangeRAM      RangeType = 1
	RangeReserved RangeType = 2
)

// Range is one entry of the memory map: [Base, Base+Size).
type Range struct {
	Base, Size uint64
	Type       RangeType
}

// MemoryMap is what the guest is told about its physical address space. What is in no range is free for devices.
func MemoryMap(mem *guestmem.Memory) []Range {
	var ranges []Range
	add := func(base, end uint64, kind RangeType) {
		if end > base {
			ranges = append(ranges, Range{base, end - base, kind})
		}
	}
	for i, r := range mem.Regions() {
		base, end := r.Base, r.Base+uint64(len(r.Bytes))
		if i == 0 {
			add(0, lowMemoryEnd, RangeRAM)
			add(acpiAddress, acpiEnd, RangeReserved)
			add(highMemory, end, RangeRAM)
			add(firmwareBase, firmwareEnd, RangeReserved)
			continue
		}
		add(base, end, RangeRAM)
	}
	return ranges
}

// lowMemory is the end of the RAM that begins at address 0: kernels and disks go below it.
func lowMemory(mem *guestmem.Memory) uint64 { return uint64(len(mem.Regions()[0].Bytes)) }
