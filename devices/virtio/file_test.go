package virtio_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/devices/virtio"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, pattern(0, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := virtio.OpenFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := virtio.OpenFile(path, false); err == nil {
		t.Error("a disk was opened twice for writing")
	}
	bufs := [][]byte{make([]byte, 512), make([]byte, 1024), make([]byte, 512)}
	if err := f.ReadVec(bufs, 4096); err != nil || !bytes.Equal(bytes.Join(bufs, nil), pattern(0, 1<<20)[4096:4096+2048]) {
		t.Errorf("read: %v", err)
	}
	for _, b := range bufs {
		copy(b, bytes.Repeat([]byte{0xee}, len(b)))
	}
	many := make([][]byte, 1500) // more than one system call takes
	for i := range many {
		many[i] = bytes.Repeat([]byte{byte(i)}, 512)
	}
	err = errors.Join(f.WriteVec(bufs, 8192), f.WriteVec(many[:1500], 65536), f.Flush(),
		f.WriteZeroes(4096, 4096, false), f.WriteZeroes(16384, 4096, true), f.Discard(32768, 4096))
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(0, 1<<20)
	copy(want[8192:], bytes.Join(bufs, nil))
	copy(want[65536:], bytes.Join(many, nil))
	clear(want[4096:8192])
	clear(want[16384:20480])
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(got[32768:36864], want[32768:36864]) // discarded: may be anything
	if !bytes.Equal(got, want) {
		t.Error("the file's contents differ")
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadVec(bufs, 65536); err == nil {
		t.Error("a read beyond the end of a file that was cut gave no error")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	odd, empty := filepath.Join(dir, "odd"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(odd, make([]byte, 700), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{odd, empty, dir, "/dev/null", filepath.Join(dir, "missing")} {
		if f, err := virtio.OpenFile(path, true); err == nil {
			t.Errorf("%s was opened as a disk of %d bytes", path, f.Size())
		}
	}
}
