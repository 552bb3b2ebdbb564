package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

const mib = 1 << 20

func TestMemoryMap(t *testing.T) {
	for _, c := range []struct {
		size uint64
		want []Range
	}{
		{512 * mib, []Range{
			{0, 0xa_0000, RangeRAM},
			{0xe_0000, 0x2_0000, RangeReserved},
			{0x10_0000, 511 * mib, RangeRAM},
			{0xfffb_c000, 0x4_4000, RangeReserved},
		}},
		{8 << 30, []Range{
			{0, 0xa_0000, RangeRAM},
			{0xe_0000, 0x2_0000, RangeReserved},
			{0x10_0000, 3071 * mib, RangeRAM},
			{0xfffb_c000, 0x4_4000, RangeReserved},
			{4 << 30, 5 << 30, RangeRAM},
		}},
	} {
		if diff := cmp.Diff(c.want, MemoryMap(newMemory(t, c.size))); diff != "" {
			t.Errorf("%d MiB (-want +got):\n%s", c.size>>20, diff)
		}
	}
}

func TestLoadLinux(t *testing.T) {
	mem := newMemory(t, 512*mib)
	initrd := bytes.Repeat([]byte("disk"), 5000)
	l := &loader{mem: mem, cmdline: "console=ttyS0", initrd: section(initrd)}
	e, err := l.load(section(bzImage(64 << 10)))
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode != Long64 || e.RIP != 0x100_0200 || e.RSI != zeroPageAddress || e.RBX != 0 {
		t.Errorf("entry %+v", e)
	}
	if e.CR0 != 0x8000_0011 || e.CR4 != 0x20 || e.EFER != 0x500 || !e.Code.Long || e.Code.Big {
		t.Errorf("not in 64-bit mode: %+v", e)
	}
	if got := read(t, mem, 0x100_0000, 64<<10); !bytes.Equal(got, bytes.Repeat([]byte{0x90}, 64<<10)) {
		t.Error("the kernel is not where it belongs")
	}
	zero := read(t, mem, zeroPageAddress, zeroPageSize)
	at, size := uint64(le.Uint32(zero[0x218:])), uint64(le.Uint32(zero[0x21c:]))
	if at%pageSize != 0 || at+roundUp(size, pageSize) != 512*mib || size != uint64(len(initrd)) {
		t.Fatalf("initial RAM disk at %#x with %d bytes", at, size)
	}
	if !bytes.Equal(read(t, mem, at, size), initrd) {
		t.Error("the initial RAM disk is damaged")
	}
	cmdline := read(t, mem, uint64(le.Uint32(zero[0x228:])), 14)
	if string(cmdline) != "console=ttyS0\x00" {
		t.Errorf("command line %q", cmdline)
	}
	if zero[0x210] != 0xff || le.Uint64(zero[0x70:]) != acpiAddress || string(zero[0x202:0x206]) != "HdrS" {
		t.Errorf("loader %#x, RSDP %#x, magic %q", zero[0x210], le.Uint64(zero[0x70:]), zero[0x202:0x206])
	}
	if zero[0x1e8] != 4 || le.Uint64(zero[0x2d0+2*20:]) != highMemory || le.Uint32(zero[0x2d0+2*20+16:]) != 1 {
		t.Errorf("memory map of %d entries: % x", zero[0x1e8], zero[0x2d0:0x2d0+4*20])
	}
}

// TestPageTables walks the tables as the processor does.
func TestPageTables(t *testing.T) {
	mem := newMemory(t, 64*mib)
	e, err := newEntry(mem, Long64, 0)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(table, index uint64) uint64 {
		v := le.Uint64(read(t, mem, table&^0xfff+index*8, 8))
		if v&3 != 3 {
			t.Fatalf("entry %d of table %#x is %#x", index, table, v)
		}
		return v
	}
	for _, address := range []uint64{0, 0x7123, 0x100_0200, 0xbfff_ffff, 0xfee0_0030, 0xffff_ffff} {
		pd := entry(entry(entry(e.CR3, address>>39), address>>30&511), address>>21&511)
		if pd&(1<<7) == 0 || pd&^0x1f_ffff|address&0x1f_ffff != address {
			t.Errorf("%#x is mapped by %#x", address, pd)
		}
	}
}

func TestDescriptors(t *testing.T) {
	mem := newMemory(t, 64*mib)
	e, err := newEntry(mem, Protected32, 0x10_0000)
	if err != nil {
		t.Fatal(err)
	}
	if e.CR0 != 0x11 || e.CR3 != 0 || e.CR4 != 0 || e.EFER != 0 || e.RFLAGS != 2 {
		t.Errorf("not in 32-bit mode without paging: %+v", e)
	}
	for selector, want := range map[uint16]uint64{
		0:               0,
		e.Code.Selector: 0x00cf9b000000ffff,
		e.Data.Selector: 0x00cf93000000ffff,
		e.Task.Selector: 0x00008b0011000067,
	} {
		if got := le.Uint64(read(t, mem, e.GDTBase+uint64(selector), 8)); got != want {
			t.Errorf("descriptor %#x is %#x, want %#x", selector, got, want)
		}
	}
	if e, err = newEntry(mem, Long64, 0x10_0000); err != nil {
		t.Fatal(err)
	}
	if got := e.Code.descriptor(); got != 0x00af9b000000ffff {
		t.Errorf("64-bit code descriptor is %#x", got)
	}
}

func TestLoadPVH(t *testing.T) {
	for _, c := range []struct {
		name    string
		options elfOptions
	}{
		{"ELF64", elfOptions{}},
		{"ELF64 with a wide note", elfOptions{wide: true}},
		{"ELF32", elfOptions{narrow: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := newMemory(t, 16*mib)
			if err := mem.WriteAt([]byte{1}, 0x10_1234); err != nil { // left over in what has to be cleared
				t.Fatal(err)
			}
			l := &loader{mem: mem, cmdline: "mode=idle", initrd: section([]byte("disk"))}
			e, err := l.load(section(pvhELF(c.options)))
			if err != nil {
				t.Fatal(err)
			}
			if e.Mode != Protected32 || e.RIP != 0x10_0010 || e.RBX != startInfoAddress {
				t.Errorf("entry %+v", e)
			}
			want := append(bytes.Repeat([]byte{0xcc}, 0x1000), make([]byte, 0x1000)...)
			if !bytes.Equal(read(t, mem, 0x10_0000, 0x2000), want) {
				t.Error("the segment is not where it belongs, followed by zeroes")
			}
			info := read(t, mem, startInfoAddress, startInfoSize)
			if le.Uint32(info) != 0x336ec578 || le.Uint32(info[4:]) != 1 || le.Uint64(info[32:]) != acpiAddress {
				t.Errorf("start info % x", info)
			}
			if cmdline := read(t, mem, le.Uint64(info[24:]), 10); string(cmdline) != "mode=idle\x00" {
				t.Errorf("command line %q", cmdline)
			}
			module := read(t, mem, le.Uint64(info[16:]), 32)
			if le.Uint32(info[12:]) != 1 || string(read(t, mem, le.Uint64(module), le.Uint64(module[8:]))) != "disk" {
				t.Errorf("%d modules: % x", le.Uint32(info[12:]), module)
			}
			memmap := read(t, mem, le.Uint64(info[40:]), 24*uint64(le.Uint32(info[48:])))
			if len(memmap) != 4*24 || le.Uint64(memmap[2*24:]) != highMemory || le.Uint64(memmap[2*24+8:]) != 15*mib {
				t.Errorf("memory map % x", memmap)
			}
		})
	}
}

func TestLoadMarksDirty(t *testing.T) {
	mem := newMemory(t, 64*mib)
	l := &loader{mem: mem, cmdline: "x", initrd: section([]byte("disk"))}
	if _, err := l.load(section(bzImage(64 << 10))); err != nil {
		t.Fatal(err)
	}
	dirty := guestmem.NewBitmap(mem.Frames())
	mem.CollectDirty(dirty)
	for gfn := range mem.Frames() {
		at := gfn << guestmem.PageShift
		written := !bytes.Equal(read(t, mem, at, pageSize), make([]byte, pageSize))
		if written && !dirty.Has(gfn) {
			t.Errorf("the page at %#x was written and is not marked", at)
		}
	}
}

// TestLoadRefuses changes one thing at a time in a kernel that loads.
func TestLoadRefuses(t *testing.T) {
	linux := func(edit func(b []byte) []byte) []byte { return edit(bzImage(4096)) }
	set := func(at int, v ...byte) []byte { return linux(func(b []byte) []byte { copy(b[at:], v); return b }) }
	elf := func(edit func(b []byte)) []byte { b := pvhELF(elfOptions{}); edit(b); return b }
	for _, c := range []struct {
		name   string
		kernel []byte
		want   error
		text   string
	}{
		{"empty", nil, ErrNotKernel, "empty"},
		{"text", []byte("#!/bin/sh\necho no kernel\n"), ErrNotKernel, "neither"},
		{"gzip", []byte{0x1f, 0x8b, 8, 0}, ErrNotKernel, "gzip"},
		{"header cut", bzImage(4096)[:0x250], ErrNotKernel, "ends in its setup header"},
		{"payload cut", bzImage(4096)[:4000], ErrNotKernel, "cut short"},
		{"no boot flag", set(bootFlagAt, 0), ErrNotKernel, "boot flag"},
		{"old protocol", set(versionAt, 0x0b, 0x02), ErrNotKernel, "protocol 2.11"},
		{"short header", set(setupJumpAt, 0x10), ErrNotKernel, "header ends"},
		{"long header", set(setupJumpAt, 0xff), ErrNotKernel, "header ends"},
		{"zImage", set(loadFlagsAt, 0), ErrNotKernel, "zImage"},
		{"32-bit kernel", set(xloadFlagsAt, 0), ErrNotKernel, "64-bit entry"},
		{"no payload", set(sysSizeAt, 0, 0, 0, 0), ErrNotKernel, "no 64-bit entry"},
		{"payload beyond the file", set(sysSizeAt, 0xff, 0xff, 0xff, 0xff), ErrNotKernel, "cut short"},
		{"needs less than it is", set(initSizeAt, 1, 0, 0, 0), ErrNotKernel, "needs 1 bytes"},
		{"load address low", set(prefAddressAt, 0, 0, 0, 0), ErrNotKernel, "load address 0x0"},
		{"load address high", set(prefAddressAt, 0, 0, 0, 0, 0, 0, 0, 0x80), ErrNotKernel, "load address"},
		{"load address odd", set(prefAddressAt, 1), ErrNotKernel, "load address"},
		{"alignment", set(kernelAlignmentAt, 3), ErrNotKernel, "alignment"},
		{"needs much", set(initSizeAt, 0, 0, 0, 0x10), ErrTooLittleMemory, "needs 272 MiB, the guest has 64 MiB"},
		{"short command line", set(cmdlineSizeAt, 3, 0, 0, 0), nil, "takes at most 3"},
		{"disk limit", set(initrdAddrMaxAt, 0, 0, 0, 1), nil, "room for 0 MiB"},

		{"ELF cut", pvhELF(elfOptions{})[:40], ErrNotKernel, "cut short"},
		{"ELF identification cut", pvhELF(elfOptions{})[:10], ErrNotKernel, "cut short"},
		{"ELF class", elf(func(b []byte) { b[4] = 9 }), ErrNotKernel, "class 9"},
		{"ELF big endian", elf(func(b []byte) { b[5] = 2 }), ErrNotKernel, "big-endian"},
		{"ELF machine", elf(func(b []byte) { b[18] = 183 }), ErrNotKernel, "machine 183"},
		{"ELF object", elf(func(b []byte) { b[16] = 1 }), ErrNotKernel, "type 1"},
		{"ELF header size", elf(func(b []byte) { b[elf64.phentsize] = 1 }), ErrNotKernel, "program headers of 1 bytes"},
		{"ELF no headers", elf(func(b []byte) { b[elf64.phnum] = 0 }), ErrNotKernel, "0 program headers"},
		{"ELF many headers", elf(func(b []byte) { b[elf64.phnum] = 200 }), ErrNotKernel, "200 program headers"},
		{"ELF headers beyond", elf(func(b []byte) { b[elf64.phoff+7] = 0x80 }), ErrNotKernel, "cut short"},
		{"ELF notes beyond", elf(func(b []byte) { b[64+elf64.pOffset+3] = 0x80 }), ErrNotKernel, "cut short"},
		{"ELF many notes", elf(func(b []byte) { b[64+elf64.pFilesz+3] = 0x80 }), ErrNotKernel, "bytes of notes"},
		{"ELF note damaged", elf(func(b []byte) { b[176+3] = 0xff }), ErrNotKernel, "a note of"},
		{"ELF entry size", elf(func(b []byte) { b[200] = 3 }), ErrNotKernel, "entry of 3 bytes"},
		{"ELF nothing to load", elf(func(b []byte) { b[64+56] = 7 }), ErrNotKernel, "nothing to load"},
		{"ELF segment beyond", elf(func(b []byte) { b[120+elf64.pOffset+2] = 1 }), ErrNotKernel, "cut short"},
		{"ELF file bigger than memory", elf(func(b []byte) { b[120+elf64.pMemsz+1] = 1 }), ErrNotKernel, "segment at"},
		{"ELF huge", elf(func(b []byte) { b[120+elf64.pMemsz+7] = 0xff }), ErrNotKernel, "segment at"},
		{"ELF big", elf(func(b []byte) { b[120+elf64.pMemsz+3] = 0x10 }), ErrTooLittleMemory, "guest has 64 MiB"},
		{"ELF in the hole", elf(func(b []byte) { b[120+elf64.pPaddr+4] = 1 }), ErrNotKernel, "3072 MiB"},
		{"ELF low", pvhELF(elfOptions{address: 0x8000}), ErrNotKernel, "first MiB"},
		{"ELF entry outside", pvhELF(elfOptions{entry: 0x20_0000}), ErrNotKernel, "in none of its 1 segments"},
		{"ELF entry high", pvhELF(elfOptions{wide: true, entry: 1 << 33}), ErrNotKernel, "beyond 4 GiB"},
		{"ELF without note", pvhELF(elfOptions{noNote: true}), ErrNotKernel, "without a PVH entry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &loader{mem: newMemory(t, 64*mib), cmdline: "console=ttyS0", initrd: section(make([]byte, 5000))}
			_, err := l.load(section(c.kernel))
			switch {
			case err == nil:
				t.Fatal("was loaded")
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("error %q does not wrap %q", err, c.want)
			case !strings.Contains(err.Error(), c.text):
				t.Errorf("error %q does not say %q", err, c.text)
			}
		})
	}
}

func TestLoadFiles(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(kernel, bzImage(4096), 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.Truncate(mustCreate(t, big), 60*mib); err != nil {
		t.Fatal(err)
	}
	mem := newMemory(t, 64*mib)
	if _, err := Load(mem, Config{Kernel: kernel, CPUs: 2}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, mem, acpiAddress, 8); string(got) != "RSD PTR " {
		t.Errorf("no ACPI tables: %q", got)
	}
	for _, c := range []struct {
		name   string
		config Config
		want   error
		text   string
	}{
		{"no file", Config{Kernel: filepath.Join(dir, "none"), CPUs: 1}, fs.ErrNotExist, "open kernel"},
		{"directory", Config{Kernel: dir, CPUs: 1}, nil, "not a regular file"},
		{"no disk", Config{Kernel: kernel, Initrd: filepath.Join(dir, "none"), CPUs: 1}, fs.ErrNotExist, "initial RAM disk"},
		{"no CPU", Config{Kernel: kernel}, nil, "0 processors"},
		{"big disk", Config{Kernel: kernel, Initrd: big, CPUs: 1}, ErrTooLittleMemory, "needs 80 MiB, the guest has 64 MiB"},
		{"NUL", Config{Kernel: kernel, Cmdline: "a\x00b", CPUs: 1}, nil, "NUL"},
		{"long command line", Config{Kernel: kernel, Cmdline: strings.Repeat("x", 2048), CPUs: 1}, nil, "at most 2047"},
	} {
		_, err := Load(mem, c.config)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.text)
		}
	}
}

func mustCreate(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// FuzzLoad loads any file. Whatever loads must lie in RAM, which newEntry's and loader's writes check, and begin there.
func FuzzLoad(f *testing.F) {
	f.Add(bzImage(4096))
	f.Add(pvhELF(elfOptions{}))
	f.Add(pvhELF(elfOptions{narrow: true, wide: true}))
	f.Add([]byte(elfMagic))
	mem := newMemory(f, 32*mib)
	f.Fuzz(func(t *testing.T, kernel []byte) {
		l := &loader{mem: mem, cmdline: "console=ttyS0", initrd: section([]byte("disk"))}
		e, err := l.load(section(kernel))
		if err != nil {
			return
		}
		if e.RIP < kernelMinStart || e.RIP >= mem.Size() {
			t.Errorf("entry at %#x", e.RIP)
		}
	})
}
