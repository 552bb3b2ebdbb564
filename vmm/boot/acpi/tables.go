package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/devices"
)

// Config says what differs between machines.
type Config struct {
	Base uint64 // guest physical address of the block; the RSDP is at its very beginning. A multiple of 64.
	CPUs int    // 1 to MaxCPUs; CPU n has local APIC n
	// PCIBase and PCISize are the window for memory BARs below 4 GiB.
	PCIBase, PCISize uint32
}

// MaxCPUs is how many processors local APIC entries with eight-bit identifiers can name; 255 is the broadcast.
const MaxCPUs = 255

// Addresses that the architecture gives and KVM keeps.
const (
	localAPICAddress = 0xfee0_0000
	ioAPICAddress    = 0xfec0_0000
)

const (
	rsdpLength   = 36
	headerLength = 36
	facsLength   = 64
	fadtLength   = 276
)

// Build returns the tables. Addresses in them are absolute: the block works only at c.Base.
func Build(c Config) ([]byte, error) {
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return nil, fmt.Errorf("build ACPI tables: %d processors, 1 to %d are possible", c.CPUs, MaxCPUs)
	}
	if c.Base%64 != 0 || c.Base > 1<<32-1<<20 {
		return nil, fmt.Errorf("build ACPI tables at %#x: must be a multiple of 64, well below 4 GiB", c.Base)
	}
	if c.PCISize == 0 || c.PCIBase+(c.PCISize-1) < c.PCIBase {
		return nil, fmt.Errorf("build ACPI tables: PCI window at %#x of %#x bytes is empty or wraps", c.PCIBase, c.PCISize)
	}
	b := &block{base: c.Base, bytes: make([]byte, rsdpLength)}
	facsAt := b.add(64, facs())
	dsdtAt := b.add(16, table("DSDT", 2, dsdt(c)))
	fadtAt := b.add(16, table("FACP", 6, fadt(facsAt, dsdtAt)))
	madtAt := b.add(16, table("APIC", 5, madt(c.CPUs)))
	xsdtAt := b.add(16, table("XSDT", 1, xsdt(fadtAt, madtAt)))
	copy(b.bytes, rsdp(xsdtAt))
	return b.bytes, nil
}

// block is the tables so far, one after another.
type block struct {
	base  uint64
	bytes []byte
}

// add appends a table at the next multiple of align, and returns its guest physical address.
func (b *block) add(align int, t []byte) uint64 {
	for len(b.bytes)%align != 0 {
		b.bytes = append(b.bytes, 0)
	}
	at := b.base + uint64(len(b.bytes))
	b.bytes = append(b.bytes, t...)
	return at
}

// table puts a header (§5.2.6) in front of a table's content.
func table(signature string, revision uint8, content []byte) []byte {
	t := make([]byte, headerLength, headerLength+len(content))
	copy(t, signature)
	t[8] = revision
	copy(t[10:16], "POLLUX")
	copy(t[16:24], "POLLUXVM")
	binary.LittleEndian.PutUint32(t[24:], 1) // OEM revision
	copy(t[28:32], "PLLX")
	binary.LittleEndian.PutUint32(t[32:], 1) // creator's revision
	t = append(t, content...)
	binary.LittleEndian.PutUint32(t[4:], uint32(len(t)))
	t[9] = checksum(t)
	return t
}

// checksum is what makes the bytes of t, whose checksum field is still 0, add up to 0.
func checksum(t []byte) uint8 {
	var sum uint8
	for _, v := range t {
		sum += v
	}
	return -sum
}

// rsdp is the root pointer (§5.2.5.3), revision 2, without an RSDT.
func rsdp(xsdt uint64) []byte {
	t := make([]byte, rsdpLength)
	copy(t, "RSD PTR ")
	copy(t[9:15], "POLLUX")
	t[15] = 2
	t[8] = checksum(t[:20]) // of the part that revision 1 had
	binary.LittleEndian.PutUint32(t[20:], rsdpLength)
	binary.LittleEndian.PutUint64(t[24:], xsdt)
	t[32] = checksum(t)
	return t
}

// xsdt lists the tables (§5.2.8).
func xsdt(tables ...uint64) []byte {
	var t []byte
	for _, at := range tables {
		t = binary.LittleEndian.AppendUint64(t, at)
	}
	return t
}

// facs is the firmware control structure (§5.2.10). Nothing wakes this machine, so it is empty; it has no checksum.
func facs() []byte {
	t := make([]byte, facsLength)
	copy(t, "FACS")
	binary.LittleEndian.PutUint32(t[4:], facsLength)
	t[32] = 2 // version
	return t
}

// FADT flags (§5.2.9, table 5.10).
const (
	fadtWBINVD        = 1 << 0
	fadtC1            = 1 << 2  // HLT works on every processor
	fadtNoSleepButton = 1 << 5  // not as fixed hardware; and none in the DSDT
	fadtRTCNotFixed   = 1 << 6  // the alarm does not wake
	fadtTimer32       = 1 << 8  // the timer has 32 bits
	fadtResetRegister = 1 << 10 // there is one
)

// Boot architecture flags (§5.2.9.3).
const (
	bootLegacyDevices = 1 << 0 // there are devices on an ISA bus that the user sees
	bootNoVGA         = 1 << 2
	bootNoASPM        = 1 << 4
	// Left out: bit 1, there is a keyboard controller; bit 3, no MSI; bit 5, no real-time clock.
)

// fadt is the fixed hardware description (§5.2.9), revision 6.5, after its header.
func fadt(facs, dsdt uint64) []byte {
	t := make([]byte, fadtLength)
	le := binary.LittleEndian
	le.PutUint32(t[36:], uint32(facs))
	le.PutUint32(t[40:], uint32(dsdt))
	le.PutUint16(t[46:], devices.SCIIRQ)
	// No SMI_CMD: the machine is always in ACPI mode.
	le.PutUint32(t[56:], devices.ACPIPMBase+devices.ACPIPMEventOffset)
	le.PutUint32(t[64:], devices.ACPIPMBase+devices.ACPIPMControlOffset)
	le.PutUint32(t[76:], devices.ACPIPMBase+devices.ACPIPMTimerOffset)
	t[88] = devices.ACPIPMEventSize
	t[89] = devices.ACPIPMControlSize
	t[91] = devices.ACPIPMTimerSize
	le.PutUint16(t[96:], 0xffff) // C2 and
	le.PutUint16(t[98:], 0xffff) // C3 take longer than any that is supported
	t[108] = devices.RTCCenturyRegister
	le.PutUint16(t[109:], bootLegacyDevices|bootNoVGA|bootNoASPM)
	le.PutUint32(t[112:], fadtWBINVD|fadtC1|fadtNoSleepButton|fadtRTCNotFixed|fadtTimer32|fadtResetRegister)
	putPort(t[116:], devices.ResetPort, 1)
	t[128] = devices.ResetValue
	t[131] = 5 // minor version
	le.PutUint64(t[132:], facs)
	le.PutUint64(t[140:], dsdt)
	putPort(t[148:], devices.ACPIPMBase+devices.ACPIPMEventOffset, devices.ACPIPMEventSize)
	putPort(t[172:], devices.ACPIPMBase+devices.ACPIPMControlOffset, devices.ACPIPMControlSize)
	putPort(t[208:], devices.ACPIPMBase+devices.ACPIPMTimerOffset, devices.ACPIPMTimerSize)
	copy(t[268:], "POLLUX") // hypervisor vendor
	return t[headerLength:]
}

// putPort writes a generic address (§5.2.3.2): size bytes of I/O ports. The access size is left undefined where the
// register is wider than one access, as PM1's event block is.
func putPort(t []byte, port uint16, size uint8) {
	t[0] = 1 // I/O space
	t[1] = size * 8
	if size == 1 {
		t[3] = 1 // byte access
	}
	binary.LittleEndian.PutUint64(t[4:], uint64(port))
}

// Entry types of the MADT (§5.2.12).
const (
	madtLocalAPIC = 0
	madtIOAPIC    = 1
	madtOverride  = 2
	madtLocalNMI  = 4
)

const (
	madtPCAT    = 1 // there are two 8259s too
	madtEnabled = 1

	// Polarity and trigger mode of an interrupt.
	inti       = 0x0 // what its bus has
	intiActive = 0x1 // high
	intiLevel  = 0xc

	everyCPU = 0xff
)

// madt describes the interrupt controllers (§5.2.12), after its header. KVM's default routing sends interrupt n to pin n
// of the I/O APIC, the interval timer's 0 included (on a board it would be 2), so only the SCI needs a word: it is level
// triggered.
func madt(cpus int) []byte {
	le := binary.LittleEndian
	t := le.AppendUint32(nil, localAPICAddress)
	t = le.AppendUint32(t, madtPCAT)
	for n := range cpus {
		t = append(t, madtLocalAPIC, 8, uint8(n), uint8(n))
		t = le.AppendUint32(t, madtEnabled)
	}
	t = append(t, madtIOAPIC, 12, 0, 0)
	t = le.AppendUint32(t, ioAPICAddress)
	t = le.AppendUint32(t, 0) // its first interrupt
	t = override(t, devices.SCIIRQ, devices.SCIIRQ, intiActive|intiLevel)
	t = append(t, madtLocalNMI, 6, everyCPU)
	t = le.AppendUint16(t, inti)
	return append(t, 1) // LINT1
}

// override says where an ISA interrupt is on the I/O APIC, if not as usual (§5.2.12.5).
func override(t []byte, irq uint8, gsi uint32, flags uint16) []byte {
	t = append(t, madtOverride, 10, 0 /* ISA */, irq)
	t = binary.LittleEndian.AppendUint32(t, gsi)
	return binary.LittleEndian.AppendUint16(t, flags)
}
