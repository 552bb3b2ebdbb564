package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/stress"
	"github.com/pollux-ha/pollux/vmm/boot"
)

type labDemoCmd struct {
	Backend     lab.Backend   `default:"auto" enum:"auto,namespaces,emulated" help:"How hosts are made."`
	Kernel      string        `default:"build/guests/vmlinuz" type:"existingfile" help:"Kernel of emulated hosts." placeholder:"FILE"`
	GuestKernel string        `default:"build/guests/vmlinuz" type:"existingfile" help:"Kernel of the guest." placeholder:"FILE"`
	GuestInitrd string        `default:"build/guests/initramfs" type:"existingfile" help:"Initial RAM disk of the guest, with the workload." placeholder:"FILE"`
	Before      time.Duration `default:"15s" help:"Length of the traffic before the loss."`
	After       time.Duration `default:"15s" help:"Length of the traffic after it."`
	Report      string        `default:"build/demo/report.json" help:"Where the table is written as JSON." placeholder:"FILE"`
}

func (c *labDemoCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd, w io.Writer) error {
	backend, _, err := lab.Choose(c.Backend)
	if err != nil {
		return err
	}
	name, err := boot.LinuxVersion(c.GuestKernel)
	if err != nil {
		return err
	}
	var pair []string
	if backend == lab.Emulated {
		// Two emulated hosts on two processors stand still for longer than real ones ever do.
		pair = []string{"--heartbeat=100ms", "--misses=20"}
	}
	_, err = lab.Demo(ctx, lab.DemoConfig{
		RunArgs: pair, StandbyArgs: pair,
		Lab:         lab.Config{Dir: parent.Dir + "-demo", Backend: c.Backend, Kernel: c.Kernel, Logger: log},
		GuestKernel: c.GuestKernel, GuestInitrd: c.GuestInitrd, KernelName: name,
		Before: c.Before, After: c.After, Report: c.Report, Out: w, Logger: log,
	})
	return err
}

type labSoakCmd struct {
	Runs     int           `default:"30" help:"Runs per setting."`
	Time     time.Duration `default:"2m" help:"Length of a run."`
	Parallel int           `default:"1" help:"Nodes at a time."`
	Settings []string      `default:"default" help:"Which settings to compare; all: every one that is known." placeholder:"NAME"`
	Report   string        `default:"build/soak/report.jsonl" help:"Results, one line of JSON a run, appended." placeholder:"FILE"`
	Kernel   string        `default:"build/guests/vmlinuz" type:"existingfile" help:"Kernel of the nodes, and of a guest in each." placeholder:"FILE"`
	Bare     string        `default:"build/guests/bare.elf" type:"existingfile" help:"The bare guest." placeholder:"FILE"`
}

func (c *labSoakCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd, w io.Writer) error {
	settings := slices.DeleteFunc(lab.SoakSettings(c.Kernel, "", ""), func(s lab.Setting) bool {
		return !slices.Contains(c.Settings, s.Name) && !slices.Contains(c.Settings, "all")
	})
	const bare, linux = lab.WorkDir + "/bare.elf", lab.WorkDir + "/vmlinuz"
	counts, err := lab.Soak(ctx, lab.SoakConfig{
		Dir: parent.Dir + "-soak", Output: c.Report, Settings: settings, Runs: c.Runs, Duration: c.Time, Parallel: c.Parallel,
		Files: map[string]string{bare: c.Bare, linux: c.Kernel},
		Work:  lab.Command{Args: []string{"pollux", "lab-stress", "{seconds}", bare, linux, "2"}}, Logger: log,
	})
	for _, n := range counts {
		fmt.Fprintln(w, n)
	}
	return err
}

// labClientCmd is what the lab's checking client runs as, in the client node.
type labClientCmd struct {
	Address string `arg:"" help:"Of the register server."`
}

func (c labClientCmd) Run(ctx context.Context, w io.Writer) error {
	return lab.ClientMain(ctx, c.Address, os.Stdin, w)
}

// labStressCmd is the work of soak runs, in a node.
type labStressCmd struct {
	Seconds int    `arg:""`
	Bare    string `arg:"" help:"The bare guest, or -."`
	Linux   string `arg:"" help:"A Linux kernel, or -."`
	CPUs    string `arg:"" optional:"" default:"1"`
}

func (c labStressCmd) Run(ctx context.Context, log *slog.Logger) error {
	cpus, err := strconv.Atoi(c.CPUs)
	if err != nil {
		return fmt.Errorf("number of CPUs %q: %w", c.CPUs, err)
	}
	return stress.Main(ctx, c.Seconds, c.Bare, c.Linux, cpus, log)
}
