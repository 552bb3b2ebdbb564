package primary

import (
	"fmt"
	"time"
)

// Pace says when epochs end and when a sync is ready.
type Pace struct {
	Interval    time.Duration // longest epoch of a busy guest
	MinInterval time.Duration // shortest epoch, when output waits
	IdleMax     time.Duration // longest epoch of a guest that does almost nothing
	MaxRounds   int           // pre-copy rounds at most
}

// The defaults of Pace.
const (
	DefaultInterval    = 25 * time.Millisecond
	DefaultMinInterval = time.Millisecond
	DefaultIdleMax     = 200 * time.Millisecond
	DefaultMaxRounds   = 10
)

// idlePages is the number of dirty pages up to which an epoch counts as almost nothing: a guest's timer tick.
const idlePages = 32

func (p Pace) withDefaults() Pace {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&p.Interval, DefaultInterval)
	set(&p.MinInterval, min(DefaultMinInterval, p.Interval))
	set(&p.IdleMax, max(DefaultIdleMax, p.Interval))
	if p.MaxRounds == 0 {
		p.MaxRounds = DefaultMaxRounds
	}
	return p
}

func (p Pace) check() error {
	if p.MinInterval <= 0 || p.Interval < p.MinInterval || p.IdleMax < p.Interval || p.MaxRounds < 1 {
		return fmt.Errorf("intervals of epochs: minimum %v, normal %v, idle %v, at most %d rounds: must be positive and ascending",
			p.MinInterval, p.Interval, p.IdleMax, p.MaxRounds)
	}
	return nil
}

// clock decides when the next epoch is due. It is a value that the capturer owns; time is given to it.
type clock struct {
	pace     Pace
	interval time.Duration // of the epoch under way
	last     time.Time     // when it began
}

func newClock(p Pace) clock { return clock{pace: p, interval: p.Interval} }

// began notes an epoch's end and the next one's beginning. dirty is the number of pages that the old one had; held tells whether it
// had output.
func (c *clock) began(now time.Time, dirty int, held bool) {
	c.last = now
	if dirty > idlePages || held {
		c.interval = c.pace.Interval
		return
	}
	c.interval = min(2*c.interval, c.pace.IdleMax)
}

// due returns how long to wait for the end of the epoch: 0 or less for now. held tells that output waits, committed that every
// earlier epoch is acknowledged.
func (c *clock) due(now time.Time, held, committed bool) time.Duration {
	wait := c.interval
	if held {
		// What waits when nothing is in flight leaves soonest if it is captured now. While something is in flight, the next
		// acknowledgement is the moment to look again.
		wait = c.pace.Interval
		if committed {
			wait = c.pace.MinInterval
		}
	}
	return wait - now.Sub(c.last)
}
