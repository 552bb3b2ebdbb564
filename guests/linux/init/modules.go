//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The builder puts these files into the initramfs if it put modules in.
const (
	// moduleDir holds the modules and modules.dep, in depmod's format: "file: the files that it needs".
	moduleDir = "/lib/modules"
	// loadList names the modules to load at boot, one a line.
	loadList = moduleDir + "/load"
)

// loadAll loads the modules that the builder asked for. A kernel with everything built in has none.
func loadAll() error {
	b, err := os.ReadFile(loadList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range strings.Fields(string(b)) {
		errs = append(errs, loadModule(name))
	}
	return errors.Join(errs...)
}

// loadModule loads a module and what it needs. One that is loaded already is fine.
func loadModule(name string) error {
	b, err := os.ReadFile(path.Join(moduleDir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	files, err := dependencies(string(b), name)
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	for _, file := range files {
		if err := insert(path.Join(moduleDir, file)); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// dependencies finds a module in modules.dep and returns the files to load, in order, its own last. depmod writes what is
// needed last first.
func dependencies(dep, name string) ([]string, error) {
	for line := range strings.Lines(dep) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || moduleName(file) != moduleName(name) {
			continue
		}
		words := strings.Fields(needs)
		files := make([]string, 0, len(words)+1)
		for i := len(words) - 1; i >= 0; i-- {
			files = append(files, words[i])
		}
		return append(files, file), nil
	}
	return nil, errors.New("it is not in this initramfs, and perhaps built into the kernel")
}

// moduleName is the kernel's name for a module: without directory and ending, and with underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("insert %s: %w", file, err)
	}
	return nil
}
