package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm/boot/acpi"
)

// ErrNotKernel is wrapped by the error for a file that is no kernel of a kind that can be booted.
var ErrNotKernel = errors.New("not a kernel")

// ErrTooLittleMemory is wrapped by the error for a kernel or a disk that the guest's memory does not hold.
var ErrTooLittleMemory = errors.New("too little memory")

// Config says what to boot.
type Config struct {
	Kernel  string // a file: bzImage or PVH ELF
	Initrd  string // a file; empty for none
	Cmdline string
	CPUs    int
}

// Load reads the kernel and the initial RAM disk into the memory of a fresh machine, writes what the boot protocol and
// ACPI want beside them, and returns the state in which the first processor begins.
//
// Errors name the file; they wrap ErrNotKernel, ErrTooLittleMemory or what the file system says.
func Load(mem *guestmem.Memory, c Config) (Entry, error) {
	kernel, err := open(c.Kernel)
	if err != nil {
		return Entry{}, fmt.Errorf("open kernel: %w", err)
	}
	defer kernel.Close()
	var initrd file
	if c.Initrd != "" {
		if initrd, err = open(c.Initrd); err != nil {
			return Entry{}, fmt.Errorf("open initial RAM disk: %w", err)
		}
		defer initrd.Close()
	}
	if err := writeACPI(mem, c.CPUs); err != nil {
		return Entry{}, err
	}
	l := &loader{mem: mem, cmdline: c.Cmdline, initrd: initrd.SectionReader}
	e, err := l.load(kernel.SectionReader)
	if err != nil {
		return Entry{}, fmt.Errorf("load kernel %s: %w", c.Kernel, err)
	}
	return e, nil
}

// file is an open file and its content as long as it was when it was opened.
type file struct {
	io.Closer
	*io.SectionReader
}

func open(path string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		return file{}, errors.Join(err, f.Close())
	}
	return file{f, io.NewSectionReader(f, 0, info.Size())}, nil
}

// loader is one boot: the parts that both protocols share.
type loader struct {
	mem     *guestmem.Memory
	cmdline string
	initrd  *io.SectionReader // nil for none
}

// load finds out what the kernel is.
func (l *loader) load(kernel *io.SectionReader) (Entry, error) {
	var head [sniffSize]byte
	n, err := kernel.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Entry{}, fmt.Errorf("read: %w", err)
	}
	switch h := head[:n]; {
	case n == 0:
		return Entry{}, fmt.Errorf("%w: the file is empty", ErrNotKernel)
	case bytes.HasPrefix(h, []byte(elfMagic)):
		return l.loadPVH(kernel)
	case n == sniffSize && string(h[setupMagicAt:]) == setupMagic:
		return l.loadLinux(kernel)
	case bytes.HasPrefix(h, []byte{0x1f, 0x8b}):
		return Entry{}, fmt.Errorf("%w: the file is compressed with gzip, unpack it first", ErrNotKernel)
	}
	return Entry{}, fmt.Errorf("%w: neither a bzImage (%q at offset %#x) nor an ELF file", ErrNotKernel, setupMagic, setupMagicAt)
}

const sniffSize = setupMagicAt + len(setupMagic)

// placeCmdline writes the command line, NUL terminated; limit is its greatest length without the NUL.
func (l *loader) placeCmdline(limit uint64) error {
	if n := uint64(len(l.cmdline)); n > limit {
		return fmt.Errorf("kernel command line of %d bytes: this kernel takes at most %d", n, limit)
	}
	if bytes.IndexByte([]byte(l.cmdline), 0) >= 0 {
		return errors.New("kernel command line: it contains a NUL byte")
	}
	return l.write("command line", append([]byte(l.cmdline), 0), cmdlineAddress)
}

// placeInitrd reads the initial RAM disk into the highest place below limit and low memory's end, above floor. It
// returns its address and its size; 0 and 0 if there is none.
func (l *loader) placeInitrd(floor, limit uint64) (at, size uint64, err error) {
	if l.initrd == nil || l.initrd.Size() == 0 {
		return 0, 0, nil
	}
	size = uint64(l.initrd.Size())
	top := min(limit, lowMemory(l.mem)) &^ (pageSize - 1)
	floor = roundUp(floor, pageSize)
	if floor > top || roundUp(size, pageSize) > top-floor {
		if limit < lowMemory(l.mem) || floor+size > guestmem.HoleStart {
			return 0, 0, fmt.Errorf("initial RAM disk of %d MiB: there is room for %d MiB between the kernel's end and %#x",
				megabytes(size), (max(top, floor)-floor)>>20, top)
		}
		return 0, 0, l.tooLittle("kernel and initial RAM disk", floor+roundUp(size, pageSize))
	}
	at = top - roundUp(size, pageSize)
	if err := l.read("initial RAM disk", l.initrd, 0, at, size); err != nil {
		return 0, 0, err
	}
	return at, size, nil
}

func (l *loader) tooLittle(what string, need uint64) error {
	return fmt.Errorf("%w: the %s needs %d MiB, the guest has %d MiB", ErrTooLittleMemory, what, megabytes(need), l.mem.Size()>>20)
}

// read copies n bytes of a file, from offset on, into guest memory.
func (l *loader) read(what string, from io.ReaderAt, offset int64, at, n uint64) error {
	if n == 0 {
		return nil
	}
	p, err := l.mem.Slice(at, n)
	if err != nil {
		return fmt.Errorf("place %s: %w", what, err)
	}
	defer l.mem.MarkDirty(at, n)
	if got, err := from.ReadAt(p, offset); uint64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s: %d of %d bytes: %w", what, got, n, err)
	}
	return nil
}

func (l *loader) write(what string, p []byte, at uint64) error {
	if err := l.mem.WriteAt(p, at); err != nil {
		return fmt.Errorf("place %s: %w", what, err)
	}
	return nil
}

func writeACPI(mem *guestmem.Memory, cpus int) error {
	tables, err := acpi.Build(acpi.Config{Base: acpiAddress, CPUs: cpus, PCIBase: pciWindowBase, PCISize: pciWindowSize})
	if err != nil {
		return err
	}
	if len(tables) > acpiEnd-acpiAddress {
		return fmt.Errorf("ACPI tables of %d bytes: there is room for %d", len(tables), acpiEnd-acpiAddress)
	}
	if err := mem.WriteAt(tables, acpiAddress); err != nil {
		return fmt.Errorf("place ACPI tables: %w", err)
	}
	return nil
}

// megabytes is n bytes in MiB, rounded up.
func megabytes(n uint64) uint64 { return roundUp(n, 1<<20) >> 20 }

// roundUp rounds n, which is far below 2^64, up to a power of two.
func roundUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

var le = binary.LittleEndian
