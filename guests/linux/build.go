package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// initPackage is the guest's only program.
const initPackage = "github.com/pollux-ha/pollux/guests/linux/init"

// BuildInit compiles the guest's init to the file out: static, without debugging data, the same bytes from the same
// source and compiler. It needs Go and must run within the module's source.
func BuildInit(ctx context.Context, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("build the guest's init: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, initPackage)
	// Whatever is being built around it, the guest's program is this.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOAMD64=v1")
	if _, err := cmd.Output(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("build the guest's init: go is not installed; build an initramfs where it is, and give it by its path: %w", err)
		}
		return fmt.Errorf("build the guest's init: %w", withOutput(err))
	}
	return nil
}

// Build makes the initramfs for kernel k at out, with DefaultModules where the kernel has modules: BuildInit and
// BuildInitramfs in one.
func Build(ctx context.Context, k Kernel, out string) error {
	dir, err := os.MkdirTemp("", "pollux-guest-*")
	if err != nil {
		return fmt.Errorf("build the initramfs %s: %w", out, err)
	}
	binary := filepath.Join(dir, "init")
	err = BuildInit(ctx, binary)
	if err == nil {
		err = BuildInitramfs(ctx, Options{Modules: k.Modules, InitBinary: binary, Out: out})
	}
	return errors.Join(err, os.RemoveAll(dir))
}
