package devicestest

import (
	"errors"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/devices/state"
)

// counter is a device that counts what the guest writes. Its flaws are switched on one at a time, to see that the
// suite notices.
type counter struct {
	frozen bool
	count  uint32
	on     bool
	flaw   string
	spill  []byte
	stop   chan struct{}
	closed bool
}

func (c *counter) Name() string { return "counter0" }

func (c *counter) Freeze() {
	c.frozen = c.flaw != "never freezes"
}

func (c *counter) Thaw() {
	if c.flaw == "starts a goroutine" && c.stop == nil {
		c.stop = make(chan struct{})
		go func() { <-c.stop }()
	}
	c.frozen = c.flaw == "never thaws"
}

func (c *counter) Save(e *state.Encoder) {
	if !c.frozen && c.flaw != "saves while running" {
		panic("counter0: Save while running")
	}
	if c.flaw == "allocates" {
		c.spill = make([]byte, 8)
	}
	s := e.Begin(map[bool]string{true: "other", false: c.Name()}[c.flaw == "wrong name"], 2)
	if c.flaw != "forgets" {
		e.U32(c.count)
	}
	e.Bool(c.on)
	e.End(s)
	if c.flaw == "unstable" {
		c.count++
	}
}

func (c *counter) Load(d *state.Decoder) error {
	if !c.frozen && c.flaw != "loads while running" {
		return errors.New("counter0: load while running")
	}
	maxVersion := uint16(2)
	if c.flaw == "takes any version" {
		maxVersion = ^uint16(0)
	}
	_, s := d.Section(c.Name(), maxVersion)
	var count uint32
	if c.flaw != "forgets" {
		count = s.U32()
	}
	if c.flaw == "loads piecemeal" {
		c.count = count
	}
	on := s.Bool()
	if c.flaw == "clamps" {
		count = min(count, 100)
	}
	if c.flaw == "panics" && count > 1<<30 {
		panic("index out of range")
	}
	var err error
	if c.flaw == "ignores the tail" {
		err = s.Err()
	} else {
		err = s.Finish()
	}
	if err = errors.Join(err, d.Err()); err != nil {
		return err
	}
	c.count, c.on = count, on
	return nil
}

// leaker is a counter whose Close leaves its goroutine.
type leaker struct{ *counter }

func (l leaker) Close() error { return nil }

func factory(flaw string, fail *error) Factory {
	return func(t testing.TB) *Rig {
		c := &counter{frozen: flaw != "created running", flaw: flaw}
		r := &Rig{Device: c}
		if flaw == "starts a goroutine" {
			r.Device = leaker{c}
		}
		r.Prepare = func(testing.TB) { c.count, c.on = c.count+3, true }
		r.CarryOn = func(testing.TB) {
			if c.count++; c.count != 4 || !c.on {
				*fail = errors.New("the guest sees a wrong count")
			}
		}
		t.Cleanup(func() {
			if c.stop != nil && !c.closed {
				c.closed = true
				close(c.stop)
			}
		})
		return r
	}
}

func TestGoodDevicePasses(t *testing.T) {
	var fail error
	Run(t, factory("", &fail))
	if fail != nil {
		t.Error(fail)
	}
}

func TestFlawsAreSeen(t *testing.T) {
	for flaw, check := range map[string]string{
		"created running":     "created frozen",
		"never freezes":       "created frozen|may be repeated",
		"never thaws":         "may be repeated",
		"saves while running": "neither saved nor loaded",
		"loads while running": "neither saved nor loaded",
		"wrong name":          "one section",
		"forgets":             "loaded device carries on",
		"unstable":            "same bytes",
		"takes any version":   "foreign sections",
		"loads piecemeal":     "cut state",
		"clamps":              "altered state",
		"panics":              "altered state",
		"ignores the tail":    "foreign sections",
		"allocates":           "does not allocate",
		"starts a goroutine":  "close stops",
	} {
		t.Run(flaw, func(t *testing.T) {
			seen := false
			for _, c := range checks {
				var fail error
				err := errors.Join(c.run(t, factory(flaw, &fail)), fail)
				for name := range strings.SplitSeq(check, "|") {
					seen = seen || (err != nil && strings.Contains(c.name, name))
				}
			}
			if !seen {
				t.Errorf("no check matching %q failed", check)
			}
		})
	}
}
