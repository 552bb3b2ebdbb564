// Command run is `make test`: it finds out what this machine can do, runs every tier that it can, and fails if a
// required test failed or was skipped.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-ha/pollux/tests/testtier"
)

// What `make guests` and `make build` have left.
const (
	polluxBinary = "build/pollux"
	nodeKernel   = "build/guests/vmlinuz"
)

// stage is one call of go test.
type stage struct {
	name     string
	packages []string
	require  string // tiers whose tests must not skip
	flags    []string
	cgo      bool // the race detector needs it
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "make test: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	near, lab, err := packages(ctx)
	if err != nil {
		return err
	}
	kvm := testtier.KVMMissing()
	stages := []stage{
		{
			name: "unit and machine tiers, with the race detector", packages: near, require: "machine", cgo: true,
			flags: []string{"-race", "-timeout", "20m"},
		},
		{name: "lab tier", packages: lab, require: "machine,lab", flags: []string{"-timeout", "30m"}},
	}
	if kvm != nil {
		fmt.Printf("machine tier: %v; its tests run inside an emulated host\n", kvm)
		stages[0].require, stages[0].name = "", "unit tier, with the race detector"
		stages[1].require = "lab"
	}
	var sum tally
	var errs []error
	for _, s := range stages {
		start := time.Now()
		fmt.Printf("=== %s\n", s.name)
		if err := s.run(ctx, &sum); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		fmt.Printf("=== %s: %v\n", s.name, time.Since(start).Round(time.Second))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if kvm != nil {
		if err := runEmulated(ctx, near, nodeKernel, &sum); err != nil {
			errs = append(errs, fmt.Errorf("machine tier in an emulated host: %w", err))
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped)
	return errors.Join(errs...)
}

// packages lists the module's packages: those that run side by side, and those whose tests bring up a lab.
func packages(ctx context.Context) (near, lab []string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f",
		`{{.ImportPath}} {{or .TestGoFiles .XTestGoFiles | len}}`, "./...").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("list the packages: %w", describe(err))
	}
	for line := range strings.Lines(string(out)) {
		path, tests, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case tests == "0":
		case strings.Contains(path, "/tests/") || strings.Contains(path, "/guests/"):
			lab = append(lab, path)
		default:
			near = append(near, path)
		}
	}
	return near, lab, nil
}

func (s stage) run(ctx context.Context, sum *tally) error {
	if len(s.packages) == 0 {
		return nil
	}
	// One package at a time: pairs of machines and emulated hosts need the processors for themselves.
	args := append([]string{"test", "-json", "-p", "1"}, s.flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, s.packages...)...)
	cmd.Env = append(os.Environ(), testtier.RequireEnv+"="+s.require)
	if s.cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	// An interrupt reaches go test too, as it is in the same process group; give it time to clean up its labs.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	bad := sum.read(out, os.Stdout, s.require == "")
	if err := cmd.Wait(); err != nil {
		return errors.Join(err, bad)
	}
	return bad
}

// describe adds what a command said on its standard error.
func describe(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
