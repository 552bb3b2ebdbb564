package aml

import (
	"encoding/binary"
	"fmt"
)

// Resource is one descriptor of a resource template (ACPI 6.5 §6.4).
type Resource []byte

// ResourceTemplate is the buffer that _CRS gives: the descriptors and an end tag. Its checksum is 0, "treat as correct".
func ResourceTemplate(resources ...Resource) Term {
	var b []byte
	for _, r := range resources {
		b = append(b, r...)
	}
	return Buffer(append(b, 0x79, 0))
}

// Ports is a fixed range of I/O ports, decoded with 16 bits (§6.4.2.5).
func Ports(base uint16, size uint8) Resource {
	r := Resource{0x47, 0x01}
	r = binary.LittleEndian.AppendUint16(r, base) // minimum
	r = binary.LittleEndian.AppendUint16(r, base) // maximum
	return append(r, 1 /* alignment */, size)
}

// IRQ is an edge-triggered, active-high, exclusive ISA interrupt, 0 to 15 (§6.4.2.1).
func IRQ(n int) Resource {
	if n < 0 || n > 15 {
		panic(fmt.Sprintf("aml: ISA interrupt %d", n))
	}
	// The two-byte form says edge, active high, exclusive by leaving the flags out.
	return binary.LittleEndian.AppendUint16(Resource{0x22}, 1<<n)
}

// Types of address space (§6.4.3.5).
const (
	spaceMemory = 0
	spaceIO     = 1
	spaceBus    = 2
)

const (
	// A window that is passed on to the bus below, at fixed addresses: bit 0 clear (producer), 2 and 3 set (minimum and
	// maximum are fixed).
	windowFlags = 0x0c
	// Read-write memory that is not cached.
	memoryFlags = 0x01
	// Both ISA and non-ISA ports.
	ioFlags = 0x03
)

// BusNumbers is the range of PCI buses behind a host bridge.
func BusNumbers(first, last uint16) Resource { return wordSpace(spaceBus, 0, first, last) }

// PortWindow is a range of I/O ports that a host bridge passes on.
func PortWindow(first, last uint16) Resource { return wordSpace(spaceIO, ioFlags, first, last) }

// MemoryWindow is a range of addresses below 4 GiB that a host bridge passes on.
func MemoryWindow(first, last uint32) Resource {
	r := Resource{0x87, 23, 0, spaceMemory, windowFlags, memoryFlags}
	for _, v := range []uint32{0 /* granularity */, first, last, 0 /* translation */, last - first + 1} {
		r = binary.LittleEndian.AppendUint32(r, v)
	}
	return r
}

// wordSpace is a word address space descriptor (§6.4.3.5.3).
func wordSpace(kind, flags uint8, first, last uint16) Resource {
	if last < first || last-first == 0xffff {
		panic(fmt.Sprintf("aml: window %#x-%#x", first, last))
	}
	r := Resource{0x88, 13, 0, kind, windowFlags, flags}
	for _, v := range []uint16{0 /* granularity */, first, last, 0 /* translation */, last - first + 1} {
		r = binary.LittleEndian.AppendUint16(r, v)
	}
	return r
}
