package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/pollux-ha/pollux/tests/lab"
)

type labCmd struct {
	Up     labUpCmd     `cmd:"" help:"Bring the lab up; what is up stays as it is."`
	Down   labDownCmd   `cmd:"" help:"Remove the lab and all that it started."`
	Status labStatusCmd `cmd:"" help:"Show the lab's nodes."`
	Exec   labExecCmd   `cmd:"" help:"Run a command in a node."`
	Kill   labKillCmd   `cmd:"" help:"Cut a node's power."`
	Start  labStartCmd  `cmd:"" help:"Give a node its power back."`
	Demo   labDemoCmd   `cmd:"" help:"A Linux guest survives the power loss of its host, as you watch."`
	Soak   labSoakCmd   `cmd:"" help:"Find out how dependable emulated hosts are here."`

	Dir string `default:"build/lab" help:"The lab's state directory." placeholder:"DIR"`
}

func (c *labCmd) open(log *slog.Logger) (*lab.Lab, error) { return lab.Open(c.Dir, log) }

type labUpCmd struct {
	Backend lab.Backend `default:"auto" enum:"auto,namespaces,emulated" help:"How hosts are made: auto, namespaces (hardware KVM) or emulated (QEMU in software)."`
	Kernel  string      `default:"build/guests/vmlinuz" help:"Kernel of emulated hosts." placeholder:"FILE"`
}

func (c *labUpCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd, w io.Writer) error {
	backend, why, err := lab.Choose(c.Backend)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "lab:", why)
	l, err := lab.Up(ctx, lab.Config{Dir: parent.Dir, Backend: backend, Kernel: c.Kernel, Logger: log})
	if err != nil {
		return err
	}
	return printLab(ctx, l, w)
}

type labDownCmd struct{}

func (labDownCmd) Run(log *slog.Logger, parent *labCmd) error { return lab.Down(parent.Dir, log) }

type labStatusCmd struct {
	JSON bool `name:"json" help:"For programs."`
}

func (c labStatusCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd, w io.Writer) error {
	l, err := parent.open(log)
	if err != nil {
		return err
	}
	if !c.JSON {
		return printLab(ctx, l, w)
	}
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

func printLab(ctx context.Context, l *lab.Lab, w io.Writer) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPOWER\tANSWERS\tADDRESSES\t")
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%v\t%s\t%s\n", n.Name, n.Power, n.Answers, strings.Join(n.Addrs, " "), n.Died)
	}
	return t.Flush()
}

type labExecCmd struct {
	Node    string   `arg:"" help:"host-a, host-b, witness or client."`
	Command []string `arg:"" passthrough:"" help:"The command and its arguments."`
}

func (c *labExecCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd, w io.Writer) error {
	l, err := parent.open(log)
	if err != nil {
		return err
	}
	args := c.Command
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	err = l.Explain(l.Exec(ctx, c.Node, lab.Command{Args: args}, os.Stdin, w, os.Stderr))
	var exit *lab.ExitError
	if errors.As(err, &exit) && exit.Code > 0 {
		return &exitError{status: exit.Code}
	}
	return err
}

type labKillCmd struct {
	Node string `arg:"" help:"host-a, host-b, witness or client."`
}

func (c labKillCmd) Run(log *slog.Logger, parent *labCmd) error {
	l, err := parent.open(log)
	if err != nil {
		return err
	}
	return l.Kill(c.Node)
}

type labStartCmd struct {
	Node string `arg:"" help:"host-a, host-b, witness or client."`
}

func (c labStartCmd) Run(ctx context.Context, log *slog.Logger, parent *labCmd) error {
	l, err := parent.open(log)
	if err != nil {
		return err
	}
	return l.Start(ctx, c.Node)
}

// labNodeCmd is what a lab's nodes run as their first process.
type labNodeCmd struct {
	Config string `arg:"" optional:"" help:"The node's configuration."`
}

func (c labNodeCmd) Run(ctx context.Context) error { return lab.NodeMain(ctx, c.Config) }
