package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// What tests find in an emulated host.
const (
	nodeHome = lab.WorkDir
	nodeBare = lab.WorkDir + "/bare.elf"
)

// runEmulated runs the machine tier of the packages inside an emulated host, on a machine that has no /dev/kvm itself. A
// host that dies by itself says nothing about Pollux: then everything is run once more.
func runEmulated(ctx context.Context, packages []string, kernel string, sum *tally) error {
	packages, err := machineTier(ctx, packages)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pollux-machine-tier-")
	if err != nil {
		return fmt.Errorf("directory for test binaries: %w", err)
	}
	defer os.RemoveAll(dir)
	binaries := map[string]string{}
	for _, p := range packages {
		binaries[p] = filepath.Join(dir, strings.ReplaceAll(p, "/", "_")+".test")
		if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binaries[p], p).CombinedOutput(); err != nil {
			return fmt.Errorf("build the tests of %s: %w\n%s", p, err, out)
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return lab.RepeatOnce(ctx, log, func(ctx context.Context, _ int) error {
		var once tally
		err := inNode(ctx, filepath.Join(dir, "lab"), kernel, packages, binaries, &once, log)
		sum.passed, sum.failed, sum.skipped = sum.passed+once.passed, sum.failed+once.failed, sum.skipped+once.skipped
		return err
	})
}

// machineTier is those of the packages whose tests know about tiers.
func machineTier(ctx context.Context, packages []string) ([]string, error) {
	const format = `{{.ImportPath}} {{join .TestImports ","}},{{join .XTestImports ","}}`
	out, err := exec.CommandContext(ctx, "go", append([]string{"list", "-f", format}, packages...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("list what tests import: %w", describe(err))
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		p, imports, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.ContainsFunc(strings.Split(imports, ","), func(i string) bool { return strings.HasSuffix(i, "/tests/testtier") }) {
			found = append(found, p)
		}
	}
	return found, nil
}

func inNode(ctx context.Context, dir, kernel string, packages []string, binaries map[string]string, sum *tally, log *slog.Logger) (err error) {
	l, err := lab.Up(ctx, lab.Config{
		Dir: dir, Backend: lab.Emulated, Nodes: []string{lab.HostA}, Kernel: kernel, Binary: polluxBinary, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	guest, err := bare.Ensure(ctx)
	if err != nil {
		return err
	}
	if err := l.Put(ctx, lab.HostA, guest, nodeBare); err != nil {
		return err
	}
	var errs []error
	for _, p := range packages {
		if err := testInNode(ctx, l, p, binaries[p], sum); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p, l.Explain(err)))
		}
	}
	return errors.Join(errs...)
}

// testInNode runs one package's test binary in the node and counts its tests.
func testInNode(ctx context.Context, l *lab.Lab, pkg, binary string, sum *tally) error {
	target := path.Join(lab.WorkDir, filepath.Base(binary))
	if err := l.Put(ctx, lab.HostA, binary, target); err != nil {
		return err
	}
	convert := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", pkg)
	in, err := convert.StdinPipe()
	if err != nil {
		return err
	}
	out, err := convert.StdoutPipe()
	if err != nil {
		return err
	}
	if err := convert.Start(); err != nil {
		return fmt.Errorf("start test2json: %w", err)
	}
	ran := make(chan error, 1)
	go func() {
		defer in.Close()
		ran <- l.Exec(ctx, lab.HostA, lab.Command{
			Args: []string{target, "-test.v=test2json", "-test.timeout=15m"},
			Env:  []string{testtier.RequireEnv + "=machine", "HOME=" + nodeHome, bare.PrebuiltEnv + "=" + nodeBare},
		}, nil, in, io.Discard)
	}()
	skipped := sum.read(out, os.Stdout, false)
	return errors.Join(<-ran, skipped, convert.Wait())
}
