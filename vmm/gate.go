package vmm

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// kickSignal interrupts a vCPU thread inside KVM_RUN. Nothing else in a Go program uses it: the runtime has a handler for
// it that does nothing unless someone asks os/signal for it, and returning from a handler is all that KVM_RUN needs to come
// back with EINTR. It is not a real-time signal because those queue, and sending one fails when the queue is full.
//
// The alternative, a signal that is blocked in the thread and unblocked by KVM_SET_SIGNAL_MASK, costs two changes of the
// signal mask for every KVM_RUN and a sigtimedwait for every kick, to close a race that immediate_exit closes for free.
// SIGURG, the runtime's own preemption signal, would do as well, but then a kick would look like a preemption.
//
// Measured (BenchmarkFreeze, paravirtual KVM, two busy cores): 30 µs from Freeze's call until one vCPU is parked and the
// devices are still, 10 µs for Thaw.
const kickSignal = unix.SIGVTALRM

// gate stops and restarts the vCPU threads together. A thread passes through park whenever KVM_RUN was interrupted, and
// only there: an interrupted KVM_RUN has completed the port or memory access that was handled before it, so a parked
// vCPU's registers are consistent.
type gate struct {
	mu      sync.Mutex
	changed sync.Cond // stop or quit changed, or active reached 0
	stop    bool      // vCPUs shall park
	quit    bool      // vCPUs shall end; stays true
	active  int       // threads that have started and are neither parked nor gone
	vcpus   []*vcpu
}

func (g *gate) init(vcpus []*vcpu) {
	g.changed.L = &g.mu
	g.stop = true
	g.vcpus = vcpus
}

// enter is called by a vCPU thread when it starts.
func (g *gate) enter(v *vcpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v.tid = unix.Gettid()
	g.active++
}

// leave is called by a vCPU thread when it ends: its thread may be gone a moment later and must not be kicked.
func (g *gate) leave(v *vcpu) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v.tid = 0
	g.exit()
}

func (g *gate) exit() {
	if g.active--; g.active == 0 {
		g.changed.Broadcast()
	}
}

// park holds the thread for as long as the gate is closed. It returns false when the thread shall end.
func (g *gate) park(v *vcpu) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop && !g.quit {
		g.exit()
		for g.stop && !g.quit {
			g.changed.Wait()
		}
		g.active++
	}
	v.cpu.SetImmediateExit(false)
	return !g.quit
}

// close stops the vCPUs: when it returns, all are parked or gone.
func (g *gate) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stop = true
	if err := g.kick(); err != nil {
		return err // waiting could take for ever
	}
	for g.active > 0 {
		g.changed.Wait()
	}
	return nil
}

// open lets the vCPUs run.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stop = false
	g.changed.Broadcast()
}

// end makes every vCPU thread end, parked or not. It doesn't wait.
func (g *gate) end() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.quit {
		return nil
	}
	g.quit = true
	g.changed.Broadcast()
	return g.kick()
}

// forget lets go of the vCPUs, which are about to be closed.
func (g *gate) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.vcpus = nil
}

// kick brings every vCPU out of the guest; the caller holds mu. The immediate-exit flag is set first: a thread that is
// on its way into KVM_RUN sees it there, and one that is inside already gets the signal.
func (g *gate) kick() error {
	var errs []error
	for _, v := range g.vcpus {
		v.cpu.SetImmediateExit(true)
		// The flag and this load are sequentially consistent with the thread's store before KVM_RUN and the kernel's
		// load in it: either the thread sees the flag, or it is seen here.
		if v.tid == 0 || !v.inGuest.Load() {
			continue
		}
		if err := unix.Tgkill(os.Getpid(), v.tid, kickSignal); err != nil {
			errs = append(errs, fmt.Errorf("kick vCPU %d: %w", v.cpu.ID(), err))
		}
	}
	return errors.Join(errs...)
}
