// Package stress works a host's KVM hard in the way that Pollux does: nested guests under dirty logging that are frozen, have
// their dirty pages and their state taken, and run on, many times a second. Soak runs of the lab use it to find out whether
// an emulated node can be relied on (lab.Soak).
//
// It uses the package vmm alone, without a peer or a network, so that what it finds is about the node. A guest that ends
// (a Linux kernel without an init panics soon) is started anew: booting is the hardest work of all for nested
// virtualization.
package stress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm"
)

// Guest is one guest to run, again and again.
type Guest struct {
	Kernel      string // a bzImage or a PVH ELF
	Initrd      string
	Cmdline     string
	CPUs        int
	MemoryBytes uint64
}

// Config says what to do for how long.
type Config struct {
	Guests   []Guest // all at once
	Duration time.Duration
	Interval time.Duration // between two checkpoints of a guest
	Out      io.Writer     // a line of progress every ten seconds, and one at the end
	Logger   *slog.Logger
}

// counts is what all guests of a run came to.
type counts struct {
	boots, checkpoints, pages, stateBytes, consoleBytes atomic.Uint64
}

func (c *counts) String() string {
	return fmt.Sprintf("boots=%d checkpoints=%d dirty_pages=%d state_bytes=%d console_bytes=%d",
		c.boots.Load(), c.checkpoints.Load(), c.pages.Load(), c.stateBytes.Load(), c.consoleBytes.Load())
}

// Run works until the duration is over. It fails when a guest can't be started or checkpointed.
func Run(ctx context.Context, cfg Config) error {
	if len(cfg.Guests) == 0 || cfg.Duration <= 0 || cfg.Interval <= 0 {
		return errors.New("stress: need guests, a duration and an interval")
	}
	began := time.Now()
	timed, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	total := &counts{}
	g, timed := errgroup.WithContext(timed)
	for i, guest := range cfg.Guests {
		g.Go(func() error {
			for n := 0; timed.Err() == nil; n++ {
				if err := life(timed, cfg, guest, fmt.Sprintf("guest%d", i), total); err != nil {
					return fmt.Errorf("stress: guest %d, start %d: %w", i, n+1, err)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		t := time.NewTicker(10 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-timed.Done():
				return nil
			case <-t.C:
				fmt.Fprintf(cfg.Out, "t=%.0fs %s\n", time.Since(began).Seconds(), total)
			}
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "done after %.0fs: %s\n", time.Since(began).Seconds(), total)
	return nil
}

// life runs one guest from its boot to its end, or the end of ctx.
func life(ctx context.Context, cfg Config, guest Guest, name string, total *counts) (err error) {
	m, err := vmm.New(vmm.Config{
		Name: name, MemoryBytes: guest.MemoryBytes, CPUs: guest.CPUs, Kernel: guest.Kernel, Initrd: guest.Initrd, Cmdline: guest.Cmdline,
		Serial: console{total}, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Boot(); err != nil {
		return err
	}
	if err := m.StartDirtyLog(); err != nil {
		return err
	}
	total.boots.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		exit, err := m.Run(ctx)
		if err == nil {
			cfg.Logger.Debug("guest ended", "guest", name, "how", exit.Reason)
		}
		cancel()
		ended <- err
	}()
	err = checkpoints(ctx, m, cfg.Interval, total)
	cancel()
	return errors.Join(<-ended, err)
}

// checkpoints takes one checkpoint after the other until ctx ends.
func checkpoints(ctx context.Context, m *vmm.Machine, interval time.Duration, total *counts) error {
	dirty := guestmem.NewBitmap(m.Memory().Frames())
	var state []byte
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		dirty.Clear()
		var err error
		if state, err = checkpoint(m, dirty, state[:0]); err != nil {
			if ctx.Err() != nil {
				return nil // the guest ended under it
			}
			return err
		}
		total.checkpoints.Add(1)
		total.pages.Add(uint64(dirty.Count()))
		total.stateBytes.Add(uint64(len(state)))
	}
}

func checkpoint(m *vmm.Machine, dirty *guestmem.Bitmap, state []byte) ([]byte, error) {
	if err := m.Freeze(); err != nil {
		return state, fmt.Errorf("freeze: %w", err)
	}
	err := m.CollectDirty(dirty)
	if err == nil {
		state, err = m.SaveState(state)
	}
	if err := errors.Join(err, m.Thaw()); err != nil {
		return state, fmt.Errorf("checkpoint: %w", err)
	}
	return state, nil
}

// console counts what a guest prints.
type console struct{ total *counts }

func (c console) Put(p []byte) int {
	c.total.consoleBytes.Add(uint64(len(p)))
	return len(p)
}

func (console) OnSpace(func()) {}

// Guests are the guests of the lab's soak runs: the bare guest dirtying memory at a pace, or, when no path is given for it,
// left out; and a Linux kernel that boots over and over, with the number of CPUs given.
func Guests(bare, linux string, cpus int) []Guest {
	var guests []Guest
	if bare != "" {
		guests = append(guests, Guest{Kernel: bare, Cmdline: "mode=dirty+compute ws=4000 rate=20000 checkrate=4000", CPUs: 1, MemoryBytes: 128 << 20})
	}
	if linux != "" {
		guests = append(guests, Guest{Kernel: linux, Cmdline: "console=ttyS0 panic=-1", CPUs: cpus, MemoryBytes: 256 << 20})
	}
	return guests
}

// Main is Run with plain words for arguments, as the hidden command that soak runs start in their nodes: seconds, the bare guest's
// and the Linux kernel's paths (either may be "-"), the Linux guest's CPUs.
func Main(ctx context.Context, seconds int, bare, linux string, cpus int, log *slog.Logger) error {
	none := func(s string) string {
		if s == "-" {
			return ""
		}
		return s
	}
	return Run(ctx, Config{
		Guests:   Guests(none(bare), none(linux), cpus),
		Duration: time.Duration(seconds) * time.Second, Interval: 25 * time.Millisecond,
		Out: os.Stdout, Logger: log,
	})
}
