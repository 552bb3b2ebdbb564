package stress

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
)

func TestRun(t *testing.T) {
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	guests := Guests(elf, "", 1)
	// One that powers itself off is started again.
	guests = append(guests, Guest{Kernel: elf, Cmdline: "mode=dirty ws=100 pages=500", CPUs: 1, MemoryBytes: 64 << 20})
	var out bytes.Buffer
	if err := Run(t.Context(), Config{Guests: guests, Duration: 4 * time.Second, Interval: 5 * time.Millisecond, Out: &out, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	if s := out.String(); !strings.HasPrefix(s, "done after 4s: boots=") || strings.Contains(s, "boots=2 ") || strings.Contains(s, "dirty_pages=0") {
		t.Errorf("got %q; want checkpoints of both guests, and the second one started again", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = Run(ctx, Config{Guests: guests, Duration: time.Minute, Interval: time.Millisecond, Out: &out, Logger: log})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a run that was stopped gives %v", err)
	}
}

func TestRefusals(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	for name, cfg := range map[string]Config{
		"no guest":    {Duration: time.Second, Interval: time.Second},
		"no duration": {Guests: Guests("a", "b", 1), Interval: time.Second},
		"no interval": {Guests: Guests("a", "b", 1), Duration: time.Second},
		"no kernel":   {Guests: Guests("/nonexistent", "", 1), Duration: time.Second, Interval: time.Second},
	} {
		cfg.Out, cfg.Logger = &bytes.Buffer{}, log
		if err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
