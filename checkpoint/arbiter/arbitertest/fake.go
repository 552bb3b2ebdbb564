// Package arbitertest has an arbiter in memory for tests, which can lose requests and replies as a network does.
package arbitertest

import (
	"context"
	"fmt"
	"sync"

	"github.com/pollux-ha/pollux/checkpoint/arbiter"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

// Fault is what happens to one request.
type Fault int

const (
	// None answers.
	None Fault = iota
	// LoseRequest gives no answer and does nothing.
	LoseRequest
	// LoseReply does what was asked and gives no answer.
	LoseReply
)

// Fake is an arbiter in memory. The zero value has no records. It may be used by several goroutines.
type Fake struct {
	mu      sync.Mutex
	records map[string]role.Record
	history []role.Record
	fault   func(swap bool) Fault
}

// SetFault makes f decide about every request from now on; nil: all are answered.
func (a *Fake) SetFault(f func(swap bool) Fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
}

// Read is Client.Read.
func (a *Fake) Read(ctx context.Context, vm string) (role.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() != nil || a.decide(false) != None {
		return role.Record{}, fmt.Errorf("read the role record of %s: %w", vm, arbiter.ErrUnanswered)
	}
	return a.records[vm], nil
}

// Swap is Client.Swap.
func (a *Fake) Swap(ctx context.Context, vm string, old, next role.Record) (role.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fault := a.decide(true)
	lost := fmt.Errorf("swap the role record of %s: %w", vm, arbiter.ErrUnanswered)
	if ctx.Err() != nil || fault == LoseRequest {
		return role.Record{}, lost
	}
	if a.records[vm] == old {
		if a.records == nil {
			a.records = make(map[string]role.Record)
		}
		a.records[vm] = next
		a.history = append(a.history, next)
	}
	if fault == LoseReply {
		return role.Record{}, lost
	}
	return a.records[vm], nil
}

func (a *Fake) decide(swap bool) Fault {
	if a.fault == nil {
		return None
	}
	return a.fault(swap)
}

// Record is what stands for a VM.
func (a *Fake) Record(vm string) role.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.records[vm]
}

// History is every record that ever stood, of all VMs, in order.
func (a *Fake) History() []role.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]role.Record(nil), a.history...)
}
