package linux

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxModule bounds a module when it is unpacked; the largest ones of distributions have a few MiB.
const maxModule = 64 << 20

// moduleSet knows where the modules of a kernel are, by the names that the kernel uses.
type moduleSet struct {
	dir   string
	files map[string]string
}

// module is one that goes into an archive.
type module struct {
	name    string
	content []byte   // not compressed
	all     []string // every module that it needs, directly or not, in the order in which to load them
}

// suffixes are how module files end.
var suffixes = []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"}

// findModules looks through a directory such as /lib/modules/6.1.0-56-cloud-amd64.
func findModules(dir string) (moduleSet, error) {
	s := moduleSet{dir: dir, files: make(map[string]string)}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, suffix := range suffixes {
			if base, ok := strings.CutSuffix(d.Name(), suffix); ok && d.Type().IsRegular() {
				s.files[moduleName(base)] = file
			}
		}
		return nil
	})
	if err != nil {
		return moduleSet{}, fmt.Errorf("look for kernel modules: %w", err)
	}
	if len(s.files) == 0 {
		return moduleSet{}, fmt.Errorf("no kernel modules (*.ko, perhaps compressed) in %s", dir)
	}
	return s, nil
}

// moduleName is the kernel's spelling.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// closure reads the named modules and all that they need. What a module needs is written in itself (the line "depends" of
// its section .modinfo), so modules.dep, which only exists once a kernel was installed, isn't asked.
func (s moduleSet) closure(ctx context.Context, names []string) ([]module, error) {
	l := loader{set: s, ctx: ctx, done: make(map[string]*module)}
	for _, name := range names {
		if _, err := l.load(moduleName(name), nil); err != nil {
			return nil, err
		}
	}
	return l.order, nil
}

// loader reads modules depth first.
type loader struct {
	set   moduleSet
	ctx   context.Context // of the one call of closure that this lives for
	done  map[string]*module
	order []module
}

func (l *loader) load(name string, path []string) (*module, error) {
	if m := l.done[name]; m != nil {
		return m, nil
	}
	if slices.Contains(path, name) {
		return nil, fmt.Errorf("kernel modules need each other: %s", strings.Join(append(path, name), " → "))
	}
	file, ok := l.set.files[name]
	if !ok {
		return nil, fmt.Errorf("no module %s in %s%s", name, l.set.dir, neededBy(path))
	}
	content, err := readModule(l.ctx, file)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	depends, err := dependsOf(content)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	m := module{name: name, content: content}
	for _, d := range depends {
		needed, err := l.load(moduleName(d), append(path, name))
		if err != nil {
			return nil, err
		}
		for _, n := range append(slices.Clone(needed.all), needed.name) {
			if !slices.Contains(m.all, n) {
				m.all = append(m.all, n)
			}
		}
	}
	l.order = append(l.order, m)
	l.done[name] = &m
	return &m, nil
}

func neededBy(path []string) string {
	if len(path) == 0 {
		return ""
	}
	return ", which " + path[len(path)-1] + " needs"
}

// readModule reads a module and unpacks it: the guest's init can't.
func readModule(ctx context.Context, file string) ([]byte, error) {
	packed, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch filepath.Ext(file) {
	case ".ko":
		return packed, nil
	case ".gz":
		if r, err = gzip.NewReader(bytes.NewReader(packed)); err != nil {
			return nil, err
		}
	case ".zst":
		z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	case ".xz":
		if packed, err = unxz(ctx, packed); err != nil {
			return nil, err
		}
		r = bytes.NewReader(packed)
	}
	content, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(content) > maxModule {
		err = fmt.Errorf("it is larger than %d bytes", maxModule)
	}
	return content, err
}

// unxz asks the program xz, which is on every Debian: Go has no such decoder.
func unxz(ctx context.Context, packed []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(packed)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("unpack it with xz: %w", withOutput(err))
	}
	return out, nil
}

// dependsOf reads which modules a module needs directly.
func dependsOf(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if depends, ok := strings.CutPrefix(string(line), "depends="); ok && depends != "" {
			return strings.Split(depends, ","), nil
		}
	}
	return nil, nil
}

// withOutput adds what a program said to its error.
func withOutput(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}
