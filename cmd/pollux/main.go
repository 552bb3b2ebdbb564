// Command pollux runs virtual machines that survive the loss of their host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the linker.
var version = "unknown"

// Exit statuses. What a machine came to is told apart from a command that failed.
const (
	exitOK      = 0 // also: the guest powered off
	exitFailure = 1 // the command, or the VMM, failed
	exitUsage   = 2
	exitReboot  = 3 // the guest asked for a reset
	exitPanic   = 4 // the guest's kernel died
	exitStopped = 5 // stopped from outside: Ctrl-A x, quit, a signal
)

// exitError ends the program with a status other than exitFailure.
type exitError struct {
	status int
	err    error // nil: nothing to print
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

type cli struct {
	Run     runCmd     `cmd:"" help:"Run a machine on this host, alone or protected by a twin."`
	Standby standbyCmd `cmd:"" help:"Be the twin of a machine that another host runs."`
	Witness witnessCmd `cmd:"" help:"Run the small etcd that decides who may run when a pair's hosts lose each other."`

	Status      statusCmd      `cmd:"" help:"Show what a machine does."`
	Pause       pauseCmd       `cmd:"" help:"Stop a machine's processors and devices until resume."`
	Resume      resumeCmd      `cmd:"" help:"Let a paused machine go on."`
	Snapshot    snapshotCmd    `cmd:"" help:"Write a running machine to a file; run --restore brings it back."`
	PowerButton powerButtonCmd `cmd:"" help:"Ask the guest to power off."`
	Quit        quitCmd        `cmd:"" help:"Stop a machine at once, as if its power had been cut."`

	Lab labCmd `cmd:"" help:"Two hosts, a witness and a client network on this machine."`

	LabNode   labNodeCmd   `cmd:"" hidden:"" help:"Be the first process of a lab node."`
	LabClient labClientCmd `cmd:"" hidden:"" help:"Be the client that holds a lab's guest to account."`
	LabStress labStressCmd `cmd:"" hidden:"" help:"Work a lab node's KVM hard."`
	Version   versionCmd   `cmd:"" help:"Print the version."`

	LogLevel  slog.Level `default:"info" help:"debug, info, warn or error."`
	LogFormat string     `default:"text" enum:"text,json" help:"text or json, to standard error."`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	exited := false
	parser, err := kong.New(&c,
		kong.Name("pollux"),
		kong.Description("Virtual machines that survive the loss of their host."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { exited = true }), // --help
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		panic(err) // the tags of cli are wrong
	}
	parsed, err := parser.Parse(args)
	switch {
	case exited:
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "pollux: %v (see pollux --help)\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.BindTo(stdout, (*io.Writer)(nil))
	return status(parsed.Run(c.logger(stderr)), stderr)
}

func (c *cli) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// status prints err in one line and gives the exit status that goes with it.
func status(err error, stderr io.Writer) int {
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit) && exit.err == nil:
		return exit.status
	case errors.As(err, &exit):
		fmt.Fprintf(stderr, "pollux: %v\n", err)
		return exit.status
	default:
		fmt.Fprintf(stderr, "pollux: %v\n", err)
		return exitFailure
	}
}

type versionCmd struct{}

func (versionCmd) Run(w io.Writer) error {
	_, err := fmt.Fprintln(w, "pollux", version)
	return err
}
