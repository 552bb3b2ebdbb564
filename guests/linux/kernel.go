package linux

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Kernel is a Linux kernel that boots as a guest.
type Kernel struct {
	Name    string // "gokrazy" or "debian"
	Version string // of the Go module, or of the Debian package
	Image   string // path of the bzImage
	Modules string // directory of its modules, for Options.Modules; empty if all that a guest needs is built in
	SHA256  string // of the image
}

// The kernel of the Go module github.com/gokrazy/kernel.amd64, Linux 7.1. The version is that in go.mod, so that the tool
// that updates one shows the other in the same place.
const (
	gokrazyModule  = "github.com/gokrazy/kernel.amd64"
	gokrazyVersion = "v0.0.0-20260705070735-de680abf072b"
	gokrazySHA256  = "276e5c6eefee7d955d3b6808d214b535561ce426789e3b4f53bd899474612525"
)

// Find returns the kernel called name, "gokrazy" or "debian"; see Gokrazy and Debian.
func Find(ctx context.Context, name, cache string) (Kernel, error) {
	switch name {
	case "gokrazy":
		return Gokrazy(ctx, cache)
	case "debian":
		return Debian(ctx, cache)
	}
	return Kernel{}, fmt.Errorf("no kernel %q: there are gokrazy and debian", name)
}

// Gokrazy returns the pinned kernel of the Go module proxy, with everything that a guest needs built in. It is copied into
// a directory below cache, and taken from there, without Go or a network, the next time.
func Gokrazy(ctx context.Context, cache string) (Kernel, error) {
	k := Kernel{
		Name: "gokrazy", Version: gokrazyVersion, SHA256: gokrazySHA256,
		Image: filepath.Join(cache, "gokrazy-"+gokrazyVersion, "vmlinuz"),
	}
	if err := checkFile(k.Image, k.SHA256); err == nil {
		return k, nil
	}
	dir, err := moduleDir(ctx)
	if err != nil {
		return Kernel{}, fmt.Errorf("fetch the kernel %s@%s: %w", gokrazyModule, gokrazyVersion, err)
	}
	source := filepath.Join(dir, "vmlinuz")
	if err := checkFile(source, k.SHA256); err != nil {
		return Kernel{}, fmt.Errorf("kernel %s@%s: %w", gokrazyModule, gokrazyVersion, err)
	}
	image, err := os.ReadFile(source)
	if err != nil {
		return Kernel{}, fmt.Errorf("copy the kernel: %w", err)
	}
	if err := writeFile(k.Image, image, 0o644); err != nil {
		return Kernel{}, fmt.Errorf("copy the kernel: %w", err)
	}
	return k, nil
}

// moduleDir downloads the kernel's module, if it is not there, and says where it is.
func moduleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", gokrazyModule+"@"+gokrazyVersion).Output()
	var answer struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &answer); jsonErr == nil && answer.Error != "" {
		return "", fmt.Errorf("go mod download: %s", answer.Error)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("go is not installed; run this once where it is, or give a kernel by its path: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("go mod download: %w", withOutput(err))
	}
	if answer.Dir == "" {
		return "", errors.New("go mod download did not say where the module is")
	}
	return answer.Dir, nil
}

// checkFile compares a file's SHA-256 with what it should be.
func checkFile(name, want string) error {
	got, err := hashFile(name)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s has the SHA-256 %s, not %s", name, got, want)
	}
	return nil
}

func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
