package history

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/guests/register"
)

// Report is the verdict on a history.
type Report struct {
	Stats Stats
	// SequenceViolations counts answers whose number repeats another one's, goes back on its stream, or is not above that
	// of an answer that had come before the request was sent.
	SequenceViolations uint64
	// LostWrites counts acknowledged writes that a later operation did not see although nothing had replaced them.
	LostWrites uint64
	// NotLinearizable lists the registers whose history no single register could have produced.
	NotLinearizable []uint16
	// Undecided lists the registers on which the check did not finish in time.
	Undecided []uint16
	Findings  []string // the first violations, in words
}

// Err is nil if nothing was wrong, or says what was. Undecided registers are an error: a verdict was asked for.
func (r Report) Err() error {
	var wrong []string
	add := func(n uint64, what string) {
		if n > 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(r.SequenceViolations, "sequence violations")
	add(r.LostWrites, "lost acknowledged writes")
	add(r.Stats.ConnectionResets, "connection resets")
	add(r.Stats.BootChanges, "answers of a restarted server")
	if len(r.NotLinearizable) > 0 {
		wrong = append(wrong, fmt.Sprintf("registers %v are not linearizable", r.NotLinearizable))
	}
	if len(r.Undecided) > 0 {
		wrong = append(wrong, fmt.Sprintf("registers %v could not be checked in time", r.Undecided))
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("history of %d answers: %s; %s", r.Stats.Answers, strings.Join(wrong, ", "), strings.Join(r.Findings, "; "))
}

// Check gives the verdict on everything recorded so far. Registers that ctx leaves no time for are reported as undecided.
func (h *History) Check(ctx context.Context) Report {
	h.mu.Lock()
	r := Report{Stats: h.snapshot(time.Now()), Findings: slices.Clone(h.findings)}
	operations := slices.Clone(h.operations)
	h.mu.Unlock()
	c := checker{start: h.start, report: &r}
	c.sequences(operations)
	r.SequenceViolations = max(r.SequenceViolations, r.Stats.SequenceViolations)
	byRegister := make(map[uint16][]register.Operation)
	for _, op := range operations {
		if op.Known && op.Answer.Status == register.BadRequest {
			continue
		}
		byRegister[op.Request.Register] = append(byRegister[op.Request.Register], op)
	}
	registers := make([]uint16, 0, len(byRegister))
	for n := range byRegister {
		registers = append(registers, n)
	}
	slices.Sort(registers)
	for _, n := range registers {
		ops := byRegister[n]
		c.lostWrites(n, ops)
		c.linearizable(ctx, n, ops)
	}
	return r
}

// checker adds what it finds to the report.
type checker struct {
	start  time.Time
	report *Report
}

func (c *checker) find(format string, args ...any) {
	if len(c.report.Findings) < maxFindings {
		c.report.Findings = append(c.report.Findings, fmt.Sprintf(format, args...))
	}
}

func (c *checker) at(t time.Time) string { return t.Sub(c.start).Round(time.Millisecond).String() }

// sequences checks the numbers across streams: none twice, and none that goes back in real time.
func (c *checker) sequences(operations []register.Operation) {
	known := make([]*register.Operation, 0, len(operations))
	for i := range operations {
		if operations[i].Known {
			known = append(known, &operations[i])
		}
	}
	byCall := slices.Clone(known)
	slices.SortStableFunc(byCall, func(a, b *register.Operation) int { return a.Call.Compare(b.Call) })
	byReturn := known
	slices.SortStableFunc(byReturn, func(a, b *register.Operation) int { return a.Return.Compare(b.Return) })
	seen := make(map[uint64]struct{}, len(known))
	var highest uint64
	next := 0
	for _, op := range byCall {
		for next < len(byReturn) && byReturn[next].Return.Before(op.Call) {
			highest = max(highest, byReturn[next].Answer.Sequence)
			next++
		}
		if _, twice := seen[op.Answer.Sequence]; twice {
			c.report.SequenceViolations++
			c.find("sequence number %d was answered twice, again at %s", op.Answer.Sequence, c.at(op.Return))
			continue
		}
		seen[op.Answer.Sequence] = struct{}{}
		if op.Answer.Sequence <= highest {
			c.report.SequenceViolations++
			c.find("sequence number %d at %s, although %d had been answered before it was asked for", op.Answer.Sequence, c.at(op.Return), highest)
		}
	}
}

// effect says whether op may have changed its register, and to what.
func effect(op *register.Operation) (value uint64, may bool) {
	if op.Request.Op == register.Read || op.Known && op.Answer.Status != register.OK {
		return 0, false
	}
	return op.Request.Value, true
}

// lostWrites looks for acknowledged writes that were forgotten: an operation that began after write w was acknowledged
// and saw the value of a write that had ended before w began. It says nothing where a value was written more than once,
// linearizability covers that.
func (c *checker) lostWrites(n uint16, ops []register.Operation) {
	writers := make(map[uint64]*register.Operation)
	var acknowledged []*register.Operation
	for i := range ops {
		op := &ops[i]
		value, may := effect(op)
		if !may {
			continue
		}
		if _, twice := writers[value]; twice {
			writers[value] = nil
		} else {
			writers[value] = op
		}
		if op.Known {
			acknowledged = append(acknowledged, op)
		}
	}
	slices.SortFunc(acknowledged, func(a, b *register.Operation) int { return a.Return.Compare(b.Return) })
	observed := make([]*register.Operation, 0, len(ops))
	for i := range ops {
		if ops[i].Known {
			observed = append(observed, &ops[i])
		}
	}
	slices.SortFunc(observed, func(a, b *register.Operation) int { return a.Call.Compare(b.Call) })
	lost := make(map[*register.Operation]struct{})
	var latest *register.Operation // the one that began last of those acknowledged before op's call
	next := 0
	for _, op := range observed {
		for next < len(acknowledged) && acknowledged[next].Return.Before(op.Call) {
			if latest == nil || acknowledged[next].Call.After(latest.Call) {
				latest = acknowledged[next]
			}
			next++
		}
		if latest == nil {
			continue
		}
		if _, already := lost[latest]; already || !c.forgotten(op, latest, writers) {
			continue
		}
		lost[latest] = struct{}{}
		c.report.LostWrites++
		c.find("register %d: the write of %d acknowledged at %s was lost: %v answered %d at %s", n, latest.Request.Value,
			c.at(latest.Return), op.Request.Op, op.Answer.Value, c.at(op.Return))
	}
}

// seen is the value that op found in its register; false if it tells nothing about that.
func seen(op *register.Operation) (uint64, bool) {
	switch {
	case !op.Known || op.Request.Op == register.Write:
		return 0, false
	case op.Request.Op == register.CompareAndSwap && op.Answer.Status == register.OK:
		return op.Request.Expect, true
	}
	return op.Answer.Value, true
}

// forgotten reports whether op saw something older than the write latest.
func (c *checker) forgotten(op, latest *register.Operation, writers map[uint64]*register.Operation) bool {
	value, saw := seen(op)
	if !saw {
		return false
	}
	writer, written := writers[value]
	if !written {
		return true // what the register held at the very start
	}
	if writer == nil || writer == latest {
		return false
	}
	return writer.Known && writer.Return.Before(latest.Call)
}

// order sorts operations by their call, the earlier end first among equals.
func order(a, b register.Operation) int {
	return cmp.Or(a.Call.Compare(b.Call), a.Return.Compare(b.Return))
}
