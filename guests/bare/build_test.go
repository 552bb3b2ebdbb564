package bare_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
)

func TestBuildWithoutCompilerSaysSo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := bare.Build(t.Context(), t.TempDir()); !errors.Is(err, bare.ErrNoCompiler) {
		t.Fatalf("error %v, want ErrNoCompiler", err)
	}
}

func TestPathIsInTheBuildDirectory(t *testing.T) {
	t.Setenv(bare.PrebuiltEnv, "")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := bare.Path()
	if want := filepath.Join(root, "build/guests/bare.elf"); err != nil || got != want {
		t.Fatalf("path %s (%v), want %s", got, err, want)
	}
	t.Setenv("XDG_CACHE_HOME", "/elsewhere")
	t.Chdir(t.TempDir())
	got, err = bare.Path()
	if want := "/elsewhere/pollux/guests/bare.elf"; err != nil || got != want {
		t.Fatalf("outside of a source tree: path %s (%v), want %s", got, err, want)
	}
}

func TestPrebuilt(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "bare.elf")
	t.Setenv(bare.PrebuiltEnv, missing)
	if _, err := bare.Ensure(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that it does not exist", err)
	}
	if err := os.WriteFile(missing, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := bare.Ensure(t.Context()); err != nil || got != missing {
		t.Errorf("%s (%v), want %s", got, err, missing)
	}
}

func TestBuild(t *testing.T) {
	testtier.Lab(t)
	dir := filepath.Join(t.TempDir(), "made", "on", "demand")
	path, err := bare.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	checkNote(t, path)

	// Fresh: it isn't built again, so no compiler is needed.
	t.Run("fresh", func(t *testing.T) {
		t.Setenv("PATH", "")
		if _, err := bare.Build(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	})
	// Damaged: it is, and comes out the same.
	if err := os.WriteFile(path, first[:len(first)/2], 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(first, again) {
		t.Fatalf("rebuilding gave another file (%v)", err)
	}
}

// checkNote expects the note that makes the file bootable by PVH, with an entry inside of the code that is loaded.
func checkNote(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		note := make([]byte, p.Filesz)
		if _, err := p.ReadAt(note, 0); err != nil {
			t.Fatal(err)
		}
		const xenNotePhys32Entry = 18
		order := f.ByteOrder
		if len(note) != 24 || order.Uint32(note[8:]) != xenNotePhys32Entry || string(note[12:16]) != "Xen\x00" {
			t.Fatalf("note % x is not Xen's", note)
		}
		entry := order.Uint64(note[16:])
		if text := f.Progs[0]; entry < text.Paddr || entry >= text.Paddr+text.Filesz {
			t.Fatalf("entry %#x lies outside of the code at %#x", entry, text.Paddr)
		}
		return
	}
	t.Fatal("no note segment")
}
