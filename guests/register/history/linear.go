package history

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pollux-ha/pollux/guests/register"
)

// segmentLength is the least number of operations on one register that are checked at once. The checker's memory grows with
// the square of what it gets.
const segmentLength = 64

// forever is the return time of an operation that may still happen.
const forever = math.MaxInt64

// linearizable checks register n's history.
//
// The history is cut after operations that overlap with no other: what such a one answered is what the register held
// then, so the pieces can be checked one by one and nothing is missed. Attempts without an answer would overlap with
// everything after them; settle removes that where it provably makes no difference.
func (c *checker) linearizable(ctx context.Context, n uint16, ops []register.Operation) {
	events := settle(c.start, ops)
	starts := firstValues(events)
	for len(events) > 0 {
		cut, last := piece(events)
		switch result, err := check(ctx, starts, events[:cut]); result {
		case porcupine.Unknown:
			c.report.Undecided = append(c.report.Undecided, n)
			c.find("register %d: checking %d operations: %v", n, cut, err)
			return
		case porcupine.Illegal:
			c.report.NotLinearizable = append(c.report.NotLinearizable, n)
			c.find("register %d: no order explains %s", n, describe(events[:cut]))
			return
		}
		starts, events = []uint64{last}, events[cut:]
	}
}

// settle turns a register's operations into porcupine's, ordered by call. Unknown attempts that change nothing, or
// whose change no one saw, are left out: that they never happened is possible, and as good as any other possibility. One
// whose value nobody else wrote and somebody saw had happened by the end of the first operation that saw it. So clients
// should write values that are never used twice, as Load does: then no attempt stays open for ever.
func settle(start time.Time, ops []register.Operation) []porcupine.Operation {
	sorted := slices.Clone(ops)
	slices.SortStableFunc(sorted, order)
	seenBy := sightings(sorted)
	events := make([]porcupine.Operation, 0, len(sorted))
	for i := range sorted {
		op := &sorted[i]
		end := int64(op.Return.Sub(start))
		if !op.Known {
			value, may := effect(op)
			sight, wasSeen := seenBy[value]
			if !may || !wasSeen {
				continue
			}
			end = forever
			if !sight.at.IsZero() {
				// Never before its own call: that it was seen too early is for the checker to say.
				end = max(int64(sight.at.Sub(start)), int64(op.Call.Sub(start)))
			}
		}
		events = append(events, porcupine.Operation{Input: op.Request, Output: *op, Call: int64(op.Call.Sub(start)), Return: end})
	}
	return events
}

// sighting says that a value was in the register: at is the time by which it must have been, zero if that isn't known.
type sighting struct{ at time.Time }

// sightings finds the values that some operation saw, or that an unknown swap must have seen because its own value was seen.
func sightings(ops []register.Operation) map[uint64]sighting {
	writers := make(map[uint64]int)
	seenBy := make(map[uint64]sighting)
	see := func(value uint64, at time.Time) {
		if old, ok := seenBy[value]; !ok || !at.IsZero() && (old.at.IsZero() || at.Before(old.at)) {
			seenBy[value] = sighting{at}
		}
	}
	for i := range ops {
		op := &ops[i]
		if value, may := effect(op); may {
			writers[value]++
		}
		if op.Known {
			see(op.Answer.Value, op.Return)
			if v, saw := seen(op); saw {
				see(v, op.Return)
			}
		}
	}
	// A value written more than once, or zero, which may have been there from the start, was perhaps another's.
	for value, sight := range seenBy {
		if writers[value] > 1 || value == 0 {
			sight.at = time.Time{}
			seenBy[value] = sight
		}
	}
	for grown := true; grown; {
		grown = false
		for i := range ops {
			op := &ops[i]
			sight, wasSeen := seenBy[op.Request.Value]
			if op.Known || op.Request.Op != register.CompareAndSwap || !wasSeen {
				continue
			}
			before, had := seenBy[op.Request.Expect]
			at := sight.at
			if writers[op.Request.Expect] > 1 || op.Request.Expect == 0 {
				at = time.Time{}
			}
			see(op.Request.Expect, at)
			grown = grown || !had || seenBy[op.Request.Expect] != before
		}
	}
	return seenBy
}

// firstValues are the values that the register may have held before events: zero, or one that was seen and that nobody
// wrote, since the server may have served others before.
func firstValues(events []porcupine.Operation) []uint64 {
	written := make(map[uint64]bool)
	for i := range events {
		op := events[i].Output.(register.Operation)
		if value, may := effect(&op); may {
			written[value] = true
		}
	}
	values := []uint64{0}
	for i := range events {
		op := events[i].Output.(register.Operation)
		if v, saw := seen(&op); saw && !written[v] && !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	return values
}

// piece is the length of the first piece of events that is long enough and ends with an operation that overlaps with no
// other, and the value that this one left. The last piece ends anyhow.
func piece(events []porcupine.Operation) (length int, last uint64) {
	end := int64(math.MinInt64) // of all operations before i
	for i := range events {
		op := events[i].Output.(register.Operation)
		// Intervals are closed: an operation that begins at the moment another ends overlaps with it.
		alone := events[i].Call > end && (i+1 == len(events) || events[i+1].Call > events[i].Return)
		if i+1 >= segmentLength && alone && op.Known {
			return i + 1, op.Answer.Value
		}
		end = max(end, events[i].Return)
	}
	return len(events), 0
}

// check asks porcupine whether events can have happened to a register that held one of starts.
func check(ctx context.Context, starts []uint64, events []porcupine.Operation) (porcupine.CheckResult, error) {
	for _, first := range starts {
		timeout := time.Duration(0) // porcupine's "no limit"
		if deadline, ok := ctx.Deadline(); ok {
			timeout = max(time.Until(deadline), time.Nanosecond)
		}
		if ctx.Err() != nil {
			return porcupine.Unknown, fmt.Errorf("no time left: %w", context.Cause(ctx))
		}
		switch result := porcupine.CheckOperationsTimeout(model(first), events, timeout); result {
		case porcupine.Ok:
			return result, nil
		case porcupine.Unknown:
			return result, fmt.Errorf("not decided within %v", timeout)
		}
	}
	return porcupine.Illegal, nil
}

// model is one register that holds value at first.
func model(value uint64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return value },
		Step: func(state, _, output any) (bool, any) {
			op := output.(register.Operation)
			ok, next := step(state.(uint64), &op)
			return ok, next
		},
	}
}

// step is the sequential register: whether op can happen when it holds value, and what it holds then. An attempt without
// an answer can always happen.
func step(value uint64, op *register.Operation) (bool, uint64) {
	next := value
	swapped := false
	switch op.Request.Op {
	case register.Write:
		next = op.Request.Value
	case register.CompareAndSwap:
		if swapped = value == op.Request.Expect; swapped {
			next = op.Request.Value
		}
	}
	if !op.Known {
		return true, next
	}
	if op.Request.Op == register.CompareAndSwap && swapped != (op.Answer.Status == register.OK) {
		return false, value
	}
	return op.Answer.Value == next, next
}

// describe lists the last operations of a piece, which is where it went wrong more often than not.
func describe(events []porcupine.Operation) string {
	const shown = 6
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations, the last of them", len(events))
	for _, e := range events[max(0, len(events)-shown):] {
		op := e.Output.(register.Operation)
		fmt.Fprintf(&b, " [%v–%v %v", time.Duration(e.Call).Round(time.Microsecond), time.Duration(e.Return).Round(time.Microsecond), op.Request.Op)
		if op.Request.Op != register.Read {
			fmt.Fprintf(&b, " %d", op.Request.Value)
		}
		if op.Known {
			fmt.Fprintf(&b, " → %v, %d", op.Answer.Status, op.Answer.Value)
		} else {
			b.WriteString(" → unknown")
		}
		b.WriteByte(']')
	}
	return b.String()
}
