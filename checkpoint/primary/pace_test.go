package primary

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	if err := (Pace{}).withDefaults().check(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if err := (Pace{Interval: time.Second}).withDefaults().check(); err != nil {
		t.Errorf("a long interval: %v", err)
	}
	if err := (Pace{Interval: 100 * time.Microsecond}).withDefaults().check(); err != nil {
		t.Errorf("a short interval: %v", err)
	}
	for _, bad := range []Pace{{Interval: -1}, {MinInterval: time.Second}, {IdleMax: time.Millisecond}, {MaxRounds: -1}} {
		if err := bad.withDefaults().check(); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}

func TestClock(t *testing.T) {
	const ms = time.Millisecond
	start := time.Now()
	for name, tt := range map[string]struct {
		after           time.Duration // since the epoch began
		epochs          int           // idle ones before it
		held, committed bool
		want            time.Duration
	}{
		"busy, nothing held":           {after: 5 * ms, want: 20 * ms},
		"interval over":                {after: 25 * ms, want: 0},
		"late":                         {after: 40 * ms, want: -15 * ms},
		"output, all committed":        {after: 5 * ms, held: true, committed: true, want: -4 * ms},
		"output, but too soon":         {after: 0, held: true, committed: true, want: 1 * ms},
		"output, one in flight":        {after: 5 * ms, held: true, want: 20 * ms},
		"idle once":                    {after: 5 * ms, epochs: 1, want: 45 * ms},
		"idle for long":                {after: 0, epochs: 100, want: 200 * ms},
		"idle, then output":            {after: 10 * ms, epochs: 100, held: true, committed: true, want: -9 * ms},
		"idle, then output, in flight": {after: 10 * ms, epochs: 100, held: true, want: 15 * ms},
	} {
		c := newClock(Pace{Interval: 25 * ms, MinInterval: ms, IdleMax: 200 * ms, MaxRounds: 1})
		for range tt.epochs {
			c.began(start, idlePages, false)
		}
		c.last = start
		if got := c.due(start.Add(tt.after), tt.held, tt.committed); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	c := newClock(Pace{Interval: 25 * ms, MinInterval: ms, IdleMax: 200 * ms, MaxRounds: 1})
	for range 10 {
		c.began(start, 0, false)
	}
	if c.began(start, idlePages+1, false); c.interval != 25*ms {
		t.Errorf("busy again, interval %v", c.interval)
	}
	c.began(start, 0, false)
	if c.began(start, 0, true); c.interval != 25*ms {
		t.Errorf("output again, interval %v", c.interval)
	}
}
