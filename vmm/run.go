package vmm

import (
	"context"
	"fmt"
	"sync"
)

// Run executes the machine from where Boot or LoadState put it until the guest ends it, ctx is cancelled, Stop is called
// or something fails; error is not nil exactly when Exit.Reason is ExitError. It owns the vCPU threads: when it returns,
// they are gone and the devices are still. A machine runs once.
func (m *Machine) Run(ctx context.Context) (Exit, error) {
	if err := m.start(); err != nil {
		return Exit{ExitError, err.Error()}, err
	}
	var threads sync.WaitGroup
	for _, v := range m.vcpus {
		threads.Go(v.run)
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		m.end(Exit{ExitStopped, context.Cause(ctx).Error()}, nil)
	}
	threads.Wait()
	m.finish()
	m.log.Info("machine ended", "exit", m.exit.String())
	return m.exit, m.failure
}

// start makes the machine live and releases the hold for being fresh. The vCPUs start parked and run at once unless someone
// else holds the machine.
func (m *Machine) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phaseFresh {
		return fmt.Errorf("run machine: %w", ErrNotFresh)
	}
	m.phase = phaseLive
	m.log.Info("machine starts", "cpus", len(m.vcpus), "memory", m.memory.Size())
	return m.release()
}

func (m *Machine) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase = phaseOver
	for _, d := range m.devices {
		d.Freeze()
	}
}

// Stop ends a machine from outside, as if its power had been cut. It doesn't wait; Run returns soon after.
func (m *Machine) Stop(why string) { m.end(Exit{ExitStopped, why}, nil) }

// end makes Run return with this exit. Only the first call counts. It may be called from a device's handler on a vCPU's
// thread, and doesn't wait.
func (m *Machine) end(exit Exit, failure error) {
	m.endOnce.Do(func() {
		m.exit, m.failure = exit, failure
		close(m.ended)
	})
	if err := m.gate.end(); err != nil {
		m.log.Error("stop vCPUs", "error", err)
	}
}
