package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

// Options says what goes into an initramfs.
type Options struct {
	// Modules is the directory of the kernel's modules, as in Kernel.Modules; empty if the kernel needs none.
	Modules string
	// ModuleNames are the modules to load at boot, in this order, with all that they need; nil means DefaultModules. Names
	// that Modules doesn't have are an error.
	ModuleNames []string
	// InitBinary is the static program that becomes /init; BuildInit makes it.
	InitBinary string
	// ExtraFiles are further files: path in the guest ("/bin/tool") to path here. Permissions are kept.
	ExtraFiles map[string]string
	// Out is the file to write. It appears whole or not at all.
	Out string
}

// DefaultModules are what a virtual machine of Pollux has devices for. Kernels that have them built in need none.
var DefaultModules = []string{"virtio_pci", "virtio_net", "virtio_blk", "virtio_rng", "button", "evdev", "pvpanic_mmio"}

// entry is one file, directory or device of an archive.
type entry struct {
	name string // without the leading slash, as the kernel wants it
	mode cpio.FileMode
	data []byte
}

// BuildInitramfs writes an initramfs, a newc archive (Documentation/driver-api/early-userspace/buffer-format.rst)
// compressed with zstd, and reads it back.
func BuildInitramfs(ctx context.Context, o Options) error {
	entries, err := o.entries(ctx)
	if err != nil {
		return fmt.Errorf("build the initramfs %s: %w", o.Out, err)
	}
	packed, err := pack(entries)
	if err != nil {
		return fmt.Errorf("build the initramfs %s: %w", o.Out, err)
	}
	if err := verify(packed, entries); err != nil {
		return fmt.Errorf("build the initramfs %s: what was written does not read back: %w", o.Out, err)
	}
	if err := writeFile(o.Out, packed, 0o644); err != nil {
		return fmt.Errorf("build the initramfs %s: %w", o.Out, err)
	}
	return nil
}

// entries collects everything, parents before what is in them.
func (o Options) entries(ctx context.Context) ([]entry, error) {
	a := archive{entries: make(map[string]entry)}
	// The first process gets its console before it has mounted anything.
	a.dir("dev", "proc", "sys", "run", "tmp")
	if err := a.file("init", o.InitBinary, 0o755); err != nil {
		return nil, err
	}
	if o.Modules != "" {
		if err := o.addModules(ctx, &a); err != nil {
			return nil, err
		}
	}
	for guest, host := range o.ExtraFiles {
		clean := strings.TrimPrefix(path.Clean("/"+guest), "/")
		if clean == "" || a.has(clean) {
			return nil, fmt.Errorf("extra file %q: the guest has that already", guest)
		}
		info, err := os.Stat(host)
		if err != nil {
			return nil, fmt.Errorf("extra file: %w", err)
		}
		if err := a.file(clean, host, info.Mode().Perm()); err != nil {
			return nil, fmt.Errorf("extra file %q: %w", guest, err)
		}
	}
	return a.sorted(), nil
}

// addModules puts the modules that are needed, modules.dep and the list to load into the archive.
func (o Options) addModules(ctx context.Context, a *archive) error {
	names := o.ModuleNames
	if names == nil {
		names = DefaultModules
	}
	set, err := findModules(o.Modules)
	if err != nil {
		return err
	}
	needed, err := set.closure(ctx, names)
	if err != nil {
		return err
	}
	var dep strings.Builder
	for _, m := range needed {
		a.data("lib/modules/"+m.name+".ko", m.content, 0o644)
		fmt.Fprintf(&dep, "%s.ko:", m.name)
		for _, n := range slices.Backward(m.all) {
			fmt.Fprintf(&dep, " %s.ko", n)
		}
		dep.WriteByte('\n')
	}
	a.data("lib/modules/modules.dep", []byte(dep.String()), 0o644)
	a.data("lib/modules/load", []byte(strings.Join(names, "\n")+"\n"), 0o644)
	return nil
}

// archive collects entries by name.
type archive struct{ entries map[string]entry }

func (a *archive) has(name string) bool { _, ok := a.entries[name]; return ok }

func (a *archive) dir(names ...string) {
	for _, n := range names {
		a.entries[n] = entry{name: n, mode: cpio.TypeDir | 0o755}
	}
}

// data adds a file and the directories above it.
func (a *archive) data(name string, content []byte, perm fs.FileMode) {
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if !a.has(d) {
			a.dir(d)
		}
	}
	a.entries[name] = entry{name: name, mode: cpio.TypeReg | cpio.FileMode(perm), data: content}
}

func (a *archive) file(name, host string, perm fs.FileMode) error {
	content, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	a.data(name, content, perm)
	return nil
}

// sorted orders by name, which puts directories before what is in them.
func (a *archive) sorted() []entry {
	all := make([]entry, 0, len(a.entries))
	for _, e := range a.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(x, y entry) int { return strings.Compare(x.name, y.name) })
	return all
}

// pack writes the archive. Nothing in it depends on when or where that happens.
func pack(entries []entry) ([]byte, error) {
	var packed bytes.Buffer
	// One goroutine and a window that any kernel accepts (lib/decompress_unzstd.c: 8 MiB at least).
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, fmt.Errorf("start compression: %w", err)
	}
	w := cpio.NewWriter(z)
	for _, e := range entries {
		links := 1
		if e.mode&cpio.TypeDir == cpio.TypeDir {
			links = 2
		}
		header := cpio.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Links: links, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("add %s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("add %s: %w", e.name, err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return nil, fmt.Errorf("finish the archive: %w", err)
	}
	return packed.Bytes(), nil
}

// verify reads an archive back and compares it with what should be in it.
func verify(packed []byte, entries []entry) error {
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("start decompression: %w", err)
	}
	defer z.Close()
	r := cpio.NewReader(z)
	for _, want := range entries {
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("at %s: %w", want.name, err)
		}
		if h.Name != want.name || h.Mode != want.mode || h.Size != int64(len(want.data)) {
			return fmt.Errorf("found %s (mode %o, %d bytes) in the place of %s (mode %o, %d bytes)", h.Name, h.Mode, h.Size, want.name, want.mode, len(want.data))
		}
		got, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("at %s: %w", want.name, err)
		}
		if !bytes.Equal(got, want.data) {
			return fmt.Errorf("the content of %s differs", want.name)
		}
	}
	if h, err := r.Next(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %+v, %w", h, err)
	}
	return nil
}

// writeFile writes a file so that it is there whole or not at all.
func writeFile(name string, content []byte, perm fs.FileMode) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(perm), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
