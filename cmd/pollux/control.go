package main

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"

	"github.com/pollux-ha/pollux/vmm/control"
)

// controlFlag names the machine that a command is for.
type controlFlag struct {
	Control string `required:"" help:"Path of the machine's control socket." placeholder:"PATH"`
}

func (c controlFlag) client() *control.Client { return control.NewClient(c.Control) }

type statusCmd struct{ controlFlag }

func (c statusCmd) Run(ctx context.Context, w io.Writer) error {
	s, err := c.client().Status(ctx)
	if err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

type pauseCmd struct{ controlFlag }

func (c pauseCmd) Run(ctx context.Context) error { return c.client().Pause(ctx) }

type resumeCmd struct{ controlFlag }

func (c resumeCmd) Run(ctx context.Context) error { return c.client().Resume(ctx) }

type powerButtonCmd struct{ controlFlag }

func (c powerButtonCmd) Run(ctx context.Context) error { return c.client().PressPowerButton(ctx) }

type quitCmd struct{ controlFlag }

func (c quitCmd) Run(ctx context.Context) error { return c.client().Quit(ctx) }

type snapshotCmd struct {
	controlFlag
	File string `arg:"" help:"The file to write."`
}

func (c snapshotCmd) Run(ctx context.Context) error {
	path, err := filepath.Abs(c.File) // the machine's process has another working directory
	if err != nil {
		return err
	}
	return c.client().Snapshot(ctx, path)
}
