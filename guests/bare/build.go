package bare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed src
var sources embed.FS

const (
	elfName   = "bare.elf"
	stampName = "bare.elf.stamp" // says which sources the ELF is from, and that it is whole
	modPath   = "github.com/pollux-ha/pollux"
)

// PrebuiltEnv names the environment variable with the path of a guest that was built elsewhere, for machines without a
// compiler, such as an emulated host that runs tests. Path and Ensure then give that file.
const PrebuiltEnv = "POLLUX_BARE_ELF"

// ErrNoCompiler is wrapped by Build's error when gcc is not installed.
var ErrNoCompiler = errors.New("gcc is missing (Debian: apt-get install gcc)")

// Path returns where Ensure puts the guest: build/guests/bare.elf of the Pollux source tree that the working directory is
// in, and the user's cache directory outside of one.
func Path() (string, error) {
	if prebuilt := os.Getenv(PrebuiltEnv); prebuilt != "" {
		return prebuilt, nil
	}
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, elfName), nil
}

// Ensure returns the path of the guest, built from this package's sources if it is missing or stale. Safe to call from
// several processes at once.
func Ensure(ctx context.Context) (string, error) {
	if prebuilt := os.Getenv(PrebuiltEnv); prebuilt != "" {
		if _, err := os.Stat(prebuilt); err != nil {
			return "", fmt.Errorf("bare guest named by %s: %w", PrebuiltEnv, err)
		}
		return prebuilt, nil
	}
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	return Build(ctx, dir)
}

// Build is Ensure for a directory of the caller's choice, which it makes: the guest is dir/bare.elf.
func Build(ctx context.Context, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build the bare guest: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", fmt.Errorf("build the bare guest: %w", err)
	}
	defer unlock()
	sum, err := sourceSum()
	if err != nil {
		return "", fmt.Errorf("build the bare guest: %w", err)
	}
	elf := filepath.Join(dir, elfName)
	if isFresh(dir, sum) {
		return elf, nil
	}
	if err := compile(ctx, elf); err != nil {
		return "", fmt.Errorf("build the bare guest %s: %w", elf, err)
	}
	if err := writeStamp(dir, sum); err != nil {
		return "", fmt.Errorf("build the bare guest %s: %w", elf, err)
	}
	return elf, nil
}

// lock keeps other processes, and other calls in this one, from building in dir until the returned function is called.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".bare.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing releases the lock; nothing was written
}

// buildDir returns build/guests below the directory whose go.mod is Pollux's, looking upwards from the working directory.
func buildDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the build directory: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module "+modPath+"\n") {
			return filepath.Join(dir, "build", "guests"), nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory for the bare guest: %w", err)
	}
	return filepath.Join(cache, "pollux", "guests"), nil
}

// eachSource calls f for every file below src, in lexical order.
func eachSource(f func(name string, content []byte) error) error {
	return fs.WalkDir(sources, "src", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := sources.ReadFile(p)
		if err != nil {
			return err
		}
		return f(path.Base(p), content)
	})
}

func sourceSum() (string, error) {
	h := sha256.New()
	err := eachSource(func(name string, content []byte) error {
		fmt.Fprintf(h, "%s %d\n", name, len(content))
		h.Write(content)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// stamp returns what the stamp file says of a whole ELF made from sources with this sum.
func stamp(dir, sum string) ([]byte, error) {
	elf, err := os.ReadFile(filepath.Join(dir, elfName))
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "sources %s\nelf %x\n", sum, sha256.Sum256(elf)), nil
}

func isFresh(dir, sum string) bool {
	want, err := stamp(dir, sum)
	if err != nil {
		return false
	}
	have, err := os.ReadFile(filepath.Join(dir, stampName))
	return err == nil && bytes.Equal(have, want)
}

func writeStamp(dir, sum string) error {
	s, err := stamp(dir, sum)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, stampName), s, 0o644)
}

// compile writes the sources to a temporary directory, runs gcc there with the flags of src/gcc.flags, and moves the result
// to elf, which thus never exists in part.
func compile(ctx context.Context, elf string) error {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoCompiler, err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(elf), "bare-src-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := []string{"@gcc.flags", "-o", elfName}
	err = eachSource(func(name string, content []byte) error {
		if ext := path.Ext(name); ext == ".c" || ext == ".S" {
			args = append(args, name)
		}
		return os.WriteFile(filepath.Join(tmp, name), content, 0o644)
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, gcc, args...)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w\n%s", err, bytes.TrimSpace(out))
	}
	return os.Rename(filepath.Join(tmp, elfName), elf)
}
