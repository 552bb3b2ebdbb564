package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// image is an initramfs in the making: files by their absolute path in it.
//
// Device nodes are not needed: the kernel's built-in initramfs has /dev/console, and the node mounts a devtmpfs.
type image struct {
	files map[string]imageFile
}

type imageFile struct {
	source  string // a file of this machine; if empty, content counts
	content []byte
	mode    cpio.FileMode
}

func newImage() *image { return &image{files: make(map[string]imageFile)} }

func (m *image) addFile(name, source string, mode os.FileMode) {
	m.files[name] = imageFile{source: source, mode: cpio.FileMode(mode.Perm())}
}

func (m *image) addContent(name string, content []byte, mode os.FileMode) {
	m.files[name] = imageFile{content: content, mode: cpio.FileMode(mode.Perm())}
}

// write writes the archive (newc, uncompressed: unpacking is a copy, even in emulation) to a file.
func (m *image) write(target string) error {
	f, err := os.Create(target)
	if err != nil {
		return fmt.Errorf("lab: create initramfs: %w", err)
	}
	err = m.encode(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("lab: write initramfs %s: %w", target, errors.Join(err, os.Remove(target)))
	}
	return nil
}

func (m *image) encode(w io.Writer) error {
	archive := cpio.NewWriter(w)
	inode := int64(1) // distinct, so that no two entries look like links of one file
	header := func(name string, mode cpio.FileMode, size int64) error {
		inode++
		return archive.WriteHeader(&cpio.Header{Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: size, Links: 1, Inode: inode})
	}
	for _, dir := range m.directories() {
		if err := header(dir, cpio.TypeDir|0o755, 0); err != nil {
			return fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	for _, name := range sortedKeys(m.files) {
		if err := m.encodeFile(archive, header, name); err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
	}
	return archive.Close()
}

func (m *image) encodeFile(archive io.Writer, header func(string, cpio.FileMode, int64) error, name string) error {
	file := m.files[name]
	var content io.Reader = bytes.NewReader(file.content)
	size := int64(len(file.content))
	if file.source != "" {
		f, err := os.Open(file.source)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		content, size = f, st.Size()
	}
	if err := header(name, cpio.TypeReg|file.mode, size); err != nil {
		return err
	}
	_, err := io.CopyN(archive, content, size)
	return err
}

// directories lists every directory that the files need, parents first.
func (m *image) directories() []string {
	seen := make(map[string]struct{})
	for name := range m.files {
		for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
			seen[dir] = struct{}{}
		}
	}
	return sortedKeys(seen)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
