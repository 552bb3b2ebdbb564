package devices

import (
	"errors"
	"sync"
	"time"
)

// gate is what the platform devices share: a lock above the device's state, and whether the device is frozen.
//
// Freeze does not keep the lock. A vCPU cannot reach a frozen device (it has stopped), and everything else that comes
// from outside — input, a timer, an operator's power button — takes the lock, sees frozen, and leaves its cause where
// the device's Thaw finds it. So an outside caller is never stuck behind a machine that is paused for minutes.
type gate struct {
	mu     sync.Mutex
	frozen bool // guarded by mu
}

// Freeze implements Device.
func (g *gate) Freeze() {
	g.mu.Lock()
	g.frozen = true
	g.mu.Unlock()
}

var errRunning = errors.New("state can be loaded only into a frozen device")

// mustBeFrozen is called with the lock held, by Save: a VMM that saves a running device would ship a torn checkpoint.
func (g *gate) mustBeFrozen(name string) {
	if !g.frozen {
		panic("devices: Save of " + name + ", which is running")
	}
}

// irq drives a Line and remembers its level, so that a level that has not changed costs no system call.
type irq struct {
	line  Line
	level bool
}

func (q *irq) set(level bool) {
	if level != q.level {
		q.level = level
		q.line.Set(level)
	}
}

// restore sets the line whatever its level is believed to be: after a Load the interrupt controller was replaced too.
func (q *irq) restore(level bool) {
	q.level = level
	q.line.Set(level)
}

// newAlarm returns a stopped timer. One that fires although it was just stopped or set anew does no harm: what it calls
// looks at the clock, and at whether the device is frozen, before it does anything.
func newAlarm(f func()) *time.Timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}
