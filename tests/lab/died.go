package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Cause is why a node died by itself.
type Cause string

// The causes, in words for people.
const (
	CauseStackGuard Cause = "its kernel ran over its stack in a page-fault recursion (a fault of emulated nested virtualization)"
	CausePanic      Cause = "its kernel panicked"
	CauseOops       Cause = "its kernel failed (oops)"
	CauseNodeInit   Cause = "the lab's own agent ended in it, which is a fault of the lab"
	CauseLockup     Cause = "its kernel stopped making progress (lockup)"
	CauseEmulator   Cause = "the emulator itself ended"
	CauseReset      Cause = "it reset without a word on its console (triple fault)"
	CauseHang       Cause = "its agent fell silent while the emulator kept running"
	CauseShutdown   Cause = "it shut itself down"
	CauseBoot       Cause = "it did not come up in time"
	CauseEnded      Cause = "its first process ended"
)

// NodeDied is the error of a node that died without the lab having killed it. It says nothing about Pollux: such a run counts
// neither for nor against it, and is repeated at most once (RepeatOnce).
type NodeDied struct {
	Node    string
	Cause   Cause
	Detail  string        // the line of the console that tells, or the emulator's exit status
	Console string        // the console's last lines
	After   time.Duration // since the node was started
}

func (e *NodeDied) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s died by itself after %v: %s", e.Node, e.After.Round(time.Second), e.Cause)
	if e.Detail != "" {
		fmt.Fprintf(&b, " (%s)", e.Detail)
	}
	b.WriteString("; this is not counted for or against Pollux")
	return b.String()
}

// RepeatOnce runs f, and once more if it failed because a node died by itself. f gets the attempt, 1 or 2, and has to start from
// nothing. Errors of any other kind are final.
func RepeatOnce(ctx context.Context, log *slog.Logger, f func(ctx context.Context, attempt int) error) error {
	first := f(ctx, 1)
	var died *NodeDied
	if !errors.As(first, &died) || ctx.Err() != nil {
		return first
	}
	log.Warn("run is repeated once", "reason", died.Error())
	second := f(ctx, 2)
	if errors.As(second, &died) {
		return fmt.Errorf("a node died by itself in both of two runs: first %w; then %w", first, second)
	}
	return second
}
