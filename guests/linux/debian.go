package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// debianMeta is the package that depends on Debian's current cloud kernel.
const debianMeta = "linux-image-cloud-amd64"

// manifestName is the file that makes an unpacked package in the cache complete.
const manifestName = "kernel.json"

// manifest is what a cache directory says about itself.
type manifest struct {
	Package string `json:"package"` // "linux-image-6.1.0-56-cloud-amd64"
	Version string `json:"version"` // "6.1.192-2"
	SHA256  string `json:"sha256"`  // of vmlinuz
}

// Debian returns Debian's cloud kernel, whose drivers are modules. The package is fetched by apt-get, which checks its
// signature, and unpacked below cache without being installed; the next time it is taken from there, without a network.
// Remove the directory to get a newer one.
func Debian(ctx context.Context, cache string) (Kernel, error) {
	// The programs below run in directories of their own.
	cache, err := filepath.Abs(cache)
	if err != nil {
		return Kernel{}, fmt.Errorf("find the kernel cache: %w", err)
	}
	if k, err := cachedDebian(cache); err == nil {
		return k, nil
	}
	m, err := currentDebian(ctx)
	if err != nil {
		return Kernel{}, fmt.Errorf("find Debian's cloud kernel: %w", err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("make the kernel cache: %w", err)
	}
	// Next to its place, so that the last step is a rename.
	work, err := os.MkdirTemp(cache, ".debian-*")
	if err != nil {
		return Kernel{}, fmt.Errorf("make the kernel cache: %w", err)
	}
	err = unpackDebian(ctx, m, work, filepath.Join(cache, "debian-"+m.Version))
	if err = errors.Join(err, os.RemoveAll(work)); err != nil {
		return Kernel{}, fmt.Errorf("fetch Debian's kernel %s %s: %w", m.Package, m.Version, err)
	}
	return cachedDebian(cache)
}

// cachedDebian finds the complete package that was unpacked last.
func cachedDebian(cache string) (Kernel, error) {
	dirs, err := filepath.Glob(filepath.Join(cache, "debian-*", manifestName))
	if err != nil {
		return Kernel{}, fmt.Errorf("look through the kernel cache %s: %w", cache, err)
	}
	var newest time.Time
	var k Kernel
	problem := fmt.Errorf("no Debian kernel in %s", cache)
	for _, file := range dirs {
		found, at, err := openDebian(file)
		if err != nil {
			problem = err
			continue
		}
		if at.After(newest) {
			k, newest = found, at
		}
	}
	if newest.IsZero() {
		return Kernel{}, problem
	}
	return k, nil
}

// openDebian reads a manifest and checks the kernel next to it.
func openDebian(file string) (Kernel, time.Time, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Kernel{}, time.Time{}, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return Kernel{}, time.Time{}, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Kernel{}, time.Time{}, fmt.Errorf("%s: %w", file, err)
	}
	dir := filepath.Dir(file)
	k := Kernel{Name: "debian", Version: m.Version, SHA256: m.SHA256, Image: filepath.Join(dir, "vmlinuz"), Modules: filepath.Join(dir, "modules")}
	if err := checkFile(k.Image, m.SHA256); err != nil {
		return Kernel{}, time.Time{}, err
	}
	return k, info.ModTime(), nil
}

var dependsLine = regexp.MustCompile(`(?m)^Depends: (linux-image-[a-z0-9.+-]+) \(= ([a-zA-Z0-9.+:~-]+)\)`)

// currentDebian asks apt which package the meta package stands for.
func currentDebian(ctx context.Context) (manifest, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", debianMeta).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return manifest{}, fmt.Errorf("this is no Debian; use the gokrazy kernel, or give a kernel by its path: %w", err)
	}
	if err != nil {
		return manifest{}, fmt.Errorf("apt-cache knows no package %s, run \"apt-get update\": %w", debianMeta, withOutput(err))
	}
	found := dependsLine.FindSubmatch(out)
	if found == nil {
		return manifest{}, fmt.Errorf("package %s does not say which kernel it stands for, run \"apt-get update\"", debianMeta)
	}
	return manifest{Package: string(found[1]), Version: string(found[2])}, nil
}

// unpackDebian fetches the package into work and puts what a guest needs of it at target.
func unpackDebian(ctx context.Context, m manifest, work, target string) error {
	if err := run(ctx, work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", m.Package+"="+m.Version); err != nil {
		return fmt.Errorf("no network, or apt's lists are old (run \"apt-get update\"): %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d packages instead of one", len(debs))
	}
	root := filepath.Join(work, "root")
	if err := run(ctx, work, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	release := strings.TrimPrefix(m.Package, "linux-image-")
	ready := filepath.Join(work, "ready")
	image := filepath.Join(ready, "vmlinuz")
	err = errors.Join(
		os.Mkdir(ready, 0o755),
		os.Rename(filepath.Join(root, "boot", "vmlinuz-"+release), image),
		os.Rename(modulesOf(root, release), filepath.Join(ready, "modules")),
	)
	if err != nil {
		return err
	}
	if m.SHA256, err = hashFile(image); err != nil {
		return err
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(ready, manifestName), append(b, '\n'), 0o644); err != nil {
		return err
	}
	// What is there was found unusable, or has just been put there by another process, and that is the same.
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	return os.Rename(ready, target)
}

// modulesOf is where a package has its modules: below usr in newer releases.
func modulesOf(root, release string) string {
	dir := filepath.Join(root, "usr", "lib", "modules", release)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	return filepath.Join(root, "lib", "modules", release)
}

// run runs a program quietly; its error has what it said.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if _, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s: %w", name, withOutput(err))
	}
	return nil
}
