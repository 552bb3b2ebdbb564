package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/control"
)

// Options say how to run a machine on this host.
type Options struct {
	Spec    Spec
	Restore string // a snapshot to go on from, instead of booting
	Serial  string // stdio, none, file:PATH or unix:PATH
	Control string // path of the control socket; empty: none
	Logger  *slog.Logger
}

// Run runs a machine on this host alone until it ends. The error is not nil exactly when the exit's reason is vmm.ExitError.
func Run(ctx context.Context, o Options) (exit vmm.Exit, err error) {
	failed := vmm.Exit{Reason: vmm.ExitError}
	spec, baseline := o.Spec, vmm.Baseline(nil)
	if o.Restore != "" {
		d, err := vmm.DescribeSnapshot(o.Restore)
		if err != nil {
			return failed, err
		}
		spec.MemoryBytes, spec.CPUs, baseline = d.MemoryBytes, d.CPUs, d.Baseline
	}
	term, err := openTerminal(o.Serial, o.Logger)
	if err != nil {
		return failed, err
	}
	defer func() { err = errors.Join(err, term.Close()) }()
	g, err := build(spec, baseline, term, o.Logger)
	if err != nil {
		return failed, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if o.Restore != "" {
		err = g.Restore(o.Restore)
	} else {
		warnParavirtual(spec.Kernel, o.Logger)
		err = g.Boot()
	}
	if err == nil {
		err = g.Activate()
	}
	for _, output := range g.Outputs() {
		err = errors.Join(err, output.Passthrough())
	}
	if err != nil {
		return failed, err
	}
	c := control.Config{Machine: g.Machine, MemoryBytes: spec.MemoryBytes, Logger: o.Logger}
	err = attended(ctx, o, term, c, g.SerialInput, func(ctx context.Context) error {
		var announced sync.WaitGroup
		defer announced.Wait()
		if o.Restore != "" { // the guest will not say where it is, as it does when it boots
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			announced.Go(func() {
				if err := g.Announce(ctx); err != nil && ctx.Err() == nil {
					o.Logger.Warn("announce the guest's addresses", "error", err)
				}
			})
		}
		return g.Run(ctx)
	})
	if err != nil {
		return failed, fmt.Errorf("machine %q: %w", o.Spec.Name, err)
	}
	return g.Exit(), nil
}

// attended calls run while a control socket and a console serve the machine, and ends these when it returns.
func attended(ctx context.Context, o Options, term terminal, c control.Config,
	typed func(context.Context, []byte) error, run func(context.Context) error,
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if o.Control != "" {
		server, err := control.Listen(o.Control, c)
		if err != nil {
			return err
		}
		defer func() {
			if err := server.Close(); err != nil {
				o.Logger.Warn("close the control socket", "error", err)
			}
		}()
	}
	var console sync.WaitGroup
	console.Go(func() {
		err := term.Run(ctx, typed)
		switch {
		case errors.Is(err, ErrEscape):
			cancel(err)
		case err != nil && ctx.Err() == nil:
			o.Logger.Warn("console input", "error", err)
		}
	})
	err := run(ctx)
	cancel(nil)
	console.Wait()
	return err
}
