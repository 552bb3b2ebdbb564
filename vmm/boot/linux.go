package boot

import (
	"fmt"
	"io"
)

// The setup header of a bzImage (boot.rst, "The Real-Mode Kernel Header"), by offset in the file.
const (
	setupSectsAt      = 0x1f1
	sysSizeAt         = 0x1f4
	bootFlagAt        = 0x1fe
	setupJumpAt       = 0x201 // the header ends here plus 1 plus this byte
	setupMagicAt      = 0x202
	versionAt         = 0x206
	loadFlagsAt       = 0x211
	relocatableAt     = 0x234
	xloadFlagsAt      = 0x236
	cmdlineSizeAt     = 0x238
	initrdAddrMaxAt   = 0x22c
	kernelAlignmentAt = 0x230
	prefAddressAt     = 0x258
	initSizeAt        = 0x260
	setupHeaderMinEnd = 0x264 // the end of the last field that is used here
	setupHeaderMaxEnd = 0x290 // the end of its place in the zero page

	setupMagic = "HdrS"
	bootFlag   = 0xaa55

	// minVersion brought xloadflags, which say that the kernel has a 64-bit entry.
	minVersion  = 0x020c
	rsdpVersion = 0x020e // has acpi_rsdp_addr

	loadedHigh   = 1 << 0 // loadflags: a bzImage, not a zImage
	xloadKernel  = 1 << 0 // XLF_KERNEL_64
	entryOffset  = 0x200  // of the 64-bit entry in the protected-mode kernel
	sectorSize   = 512
	paragraph    = 16
	defaultSetup = 4 // sectors, if the header says 0
)

// Fields of the zero page outside of the setup header (zero-page.rst).
const (
	zeroPageSize    = 4096
	zpACPIRSDP      = 0x070
	zpRamdiskHigh   = 0x0c0 // ext_ramdisk_image, ext_ramdisk_size
	zpE820Entries   = 0x1e8
	zpSetupHeader   = 0x1f1
	zpVideoMode     = 0x1fa
	zpLoaderType    = 0x210
	zpRamdisk       = 0x218 // ramdisk_image, ramdisk_size
	zpCmdline       = 0x228
	zpE820Table     = 0x2d0
	zpE820Size      = 20
	zpE820Max       = 128
	loaderUndefined = 0xff // type_of_loader: no identifier assigned
	videoNormal     = 0xffff
)

// setupHeader is what a bzImage says about itself.
type setupHeader struct {
	raw           []byte // the bytes from setupSectsAt to the header's end
	version       uint16
	payloadAt     int64  // in the file
	payloadSize   uint64 // of the protected-mode kernel
	prefAddress   uint64
	initSize      uint64 // what the kernel needs from its load address on, until it reads the memory map
	cmdlineSize   uint64
	initrdAddrMax uint64 // the last address that the disk may occupy
}

// parseSetupHeader reads and checks the header of a file whose magic is there.
func parseSetupHeader(kernel *io.SectionReader) (setupHeader, error) {
	var b [setupHeaderMaxEnd]byte
	if kernel.Size() < setupHeaderMaxEnd {
		return setupHeader{}, fmt.Errorf("%w: the file ends in its setup header", ErrNotKernel)
	}
	if _, err := kernel.ReadAt(b[:], 0); err != nil {
		return setupHeader{}, fmt.Errorf("read setup header: %w", err)
	}
	h := setupHeader{version: le.Uint16(b[versionAt:])}
	end := setupMagicAt + int(b[setupJumpAt])
	switch {
	case le.Uint16(b[bootFlagAt:]) != bootFlag:
		return h, fmt.Errorf("%w: no boot flag at offset %#x", ErrNotKernel, bootFlagAt)
	case h.version < minVersion:
		return h, fmt.Errorf("%w: boot protocol %d.%d, at least %d.%d (Linux 3.8) is needed", ErrNotKernel,
			h.version>>8, h.version&0xff, minVersion>>8, minVersion&0xff)
	case end < setupHeaderMinEnd || end > setupHeaderMaxEnd:
		return h, fmt.Errorf("%w: setup header ends at %#x, must be from %#x to %#x", ErrNotKernel,
			end, setupHeaderMinEnd, setupHeaderMaxEnd)
	case b[loadFlagsAt]&loadedHigh == 0:
		return h, fmt.Errorf("%w: a zImage, which loads below 1 MiB", ErrNotKernel)
	case le.Uint16(b[xloadFlagsAt:])&xloadKernel == 0:
		return h, fmt.Errorf("%w: no 64-bit entry (a 32-bit kernel?)", ErrNotKernel)
	}
	h.raw = append(h.raw, b[setupSectsAt:end]...)
	setup := int64(b[setupSectsAt])
	if setup == 0 {
		setup = defaultSetup
	}
	h.payloadAt = (setup + 1) * sectorSize
	h.payloadSize = uint64(le.Uint32(b[sysSizeAt:])) * paragraph
	h.prefAddress = le.Uint64(b[prefAddressAt:])
	h.initSize = uint64(le.Uint32(b[initSizeAt:]))
	h.cmdlineSize = uint64(le.Uint32(b[cmdlineSizeAt:]))
	h.initrdAddrMax = uint64(le.Uint32(b[initrdAddrMaxAt:]))
	return h, h.check(kernel.Size(), le.Uint32(b[kernelAlignmentAt:]), b[relocatableAt] != 0)
}

// check looks at the sizes and addresses.
func (h *setupHeader) check(fileSize int64, alignment uint32, relocatable bool) error {
	switch {
	case h.payloadSize <= entryOffset:
		return fmt.Errorf("%w: a kernel of %d bytes has no 64-bit entry", ErrNotKernel, h.payloadSize)
	case h.payloadAt > fileSize || h.payloadSize > uint64(fileSize-h.payloadAt):
		return fmt.Errorf("%w: the file is cut short: %d bytes, its header says %d", ErrNotKernel,
			fileSize, h.payloadAt+int64(h.payloadSize))
	case h.initSize < h.payloadSize:
		return fmt.Errorf("%w: it says that it needs %d bytes and is %d bytes long", ErrNotKernel, h.initSize, h.payloadSize)
	case h.prefAddress < kernelMinStart || h.prefAddress%pageSize != 0 || h.prefAddress >= firmwareEnd:
		return fmt.Errorf("%w: load address %#x", ErrNotKernel, h.prefAddress)
	case relocatable && (alignment == 0 || alignment&(alignment-1) != 0 || h.prefAddress%uint64(alignment) != 0):
		return fmt.Errorf("%w: load address %#x with alignment %#x", ErrNotKernel, h.prefAddress, alignment)
	}
	return nil
}

// loadLinux loads a bzImage where it prefers to be and enters it in 64-bit mode (boot.rst, "64-bit Boot Protocol"). That
// address is also the lowest at which a relocatable kernel works, so there is no use in trying another one.
func (l *loader) loadLinux(kernel *io.SectionReader) (Entry, error) {
	h, err := parseSetupHeader(kernel)
	if err != nil {
		return Entry{}, err
	}
	kernelEnd := h.prefAddress + h.initSize
	if kernelEnd > lowMemory(l.mem) {
		return Entry{}, l.tooLittle("kernel", kernelEnd)
	}
	if err := l.read("kernel", kernel, h.payloadAt, h.prefAddress, h.payloadSize); err != nil {
		return Entry{}, err
	}
	if err := l.placeCmdline(min(h.cmdlineSize, cmdlineEnd-cmdlineAddress-1)); err != nil {
		return Entry{}, err
	}
	initrdAt, initrdSize, err := l.placeInitrd(kernelEnd, h.initrdAddrMax+1)
	if err != nil {
		return Entry{}, err
	}
	if err := l.write("zero page", l.zeroPage(h, initrdAt, initrdSize), zeroPageAddress); err != nil {
		return Entry{}, err
	}
	e, err := newEntry(l.mem, Long64, h.prefAddress+entryOffset)
	e.RSI = zeroPageAddress
	return e, err
}

// zeroPage is struct boot_params: the kernel's setup header with the loader's fields filled in, and the memory map. All
// else is 0; there is no BIOS to ask and no screen.
func (l *loader) zeroPage(h setupHeader, initrdAt, initrdSize uint64) []byte {
	p := make([]byte, zeroPageSize)
	copy(p[zpSetupHeader:], h.raw)
	p[zpLoaderType] = loaderUndefined
	le.PutUint16(p[zpVideoMode:], videoNormal)
	le.PutUint32(p[zpCmdline:], cmdlineAddress)
	le.PutUint32(p[zpRamdisk:], uint32(initrdAt))
	le.PutUint32(p[zpRamdisk+4:], uint32(initrdSize))
	le.PutUint32(p[zpRamdiskHigh:], uint32(initrdAt>>32))
	le.PutUint32(p[zpRamdiskHigh+4:], uint32(initrdSize>>32))
	if h.version >= rsdpVersion {
		le.PutUint64(p[zpACPIRSDP:], acpiAddress) // older kernels search for it, in the same place
	}
	ranges := MemoryMap(l.mem) // five at most; the page has room for zpE820Max
	p[zpE820Entries] = uint8(len(ranges))
	for i, r := range ranges[:min(len(ranges), zpE820Max)] {
		entry := p[zpE820Table+i*zpE820Size:]
		le.PutUint64(entry, r.Base)
		le.PutUint64(entry[8:], r.Size)
		le.PutUint32(entry[16:], uint32(r.Type))
	}
	return p
}
