package devicestest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/state"
)

// patience bounds calls that must not block. It is far above what they need, for loaded machines.
const patience = 10 * time.Second

// Rig is one device under test and what stands around it.
type Rig struct {
	// Device is fresh and frozen when the Factory returns it. If it also has Close() error, the suite calls that.
	Device devices.Device

	// Prepare drives the running device as a guest would, into a state that is worth saving. Nil: as it is created.
	Prepare func(t testing.TB)

	// Inherit gives this fresh rig what a takeover brings from elsewhere than the device's state: guest memory, the guest
	// driver's own variables (guest memory too, in truth), what a backend holds. The rig that it takes from comes from the same
	// Factory and is frozen. Nil: nothing.
	Inherit func(t testing.TB, from *Rig)

	// CarryOn drives the running device on from where Prepare left it, and checks what the guest sees. It is called once on a
	// rig: on the one that was prepared, or on one that loaded its state. Nil: nothing to check.
	CarryOn func(t testing.TB)

	// Guest is whatever Inherit needs to find in the other rig.
	Guest any
}

// Factory builds a fresh rig, every time with the same configuration. Cleaning up beyond the device is the Factory's own
// (testing.TB.Cleanup).
type Factory func(t testing.TB) *Rig

// check is one promise; an error says how the device breaks it.
type check struct {
	name string
	run  func(t testing.TB, build Factory) error
}

var checks = []check{
	{"created frozen", createdFrozen},
	{"freeze and thaw may be repeated", freezeThawRepeat},
	{"running device is neither saved nor loaded", runningIsRefused},
	{"state is one section named after the device", oneSection},
	{"save, load, save gives the same bytes", roundTrip},
	{"saved device carries on", savedCarriesOn},
	{"loaded device carries on", loadedCarriesOn},
	{"cut state is refused", cutIsRefused},
	{"altered state is refused or taken whole", alteredIsRefused},
	{"foreign sections are refused", foreignIsRefused},
	{"save does not allocate", saveDoesNotAllocate},
	{"close stops everything", closeStops},
}

// Run checks every promise on devices that build makes, each as a subtest. It must not run in parallel with tests that
// start or stop goroutines.
func Run(t *testing.T, build Factory) {
	t.Helper()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t, build); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// start builds a rig that is closed when the test ends.
func start(t testing.TB, build Factory) *Rig {
	t.Helper()
	r := build(t)
	if c, ok := r.Device.(interface{ Close() error }); ok {
		t.Cleanup(func() {
			if err := within("Close", func() error { return c.Close() }); err != nil {
				t.Error(err)
			}
		})
	}
	return r
}

// prepared builds a rig, runs it through Prepare and freezes it.
func prepared(t testing.TB, build Factory) (*Rig, error) {
	t.Helper()
	r := start(t, build)
	if err := thaw(r); err != nil {
		return nil, err
	}
	if r.Prepare != nil {
		r.Prepare(t)
	}
	return r, freeze(r)
}

// inheriting builds a fresh rig that stands in for the given one.
func inheriting(t testing.TB, build Factory, from *Rig) *Rig {
	t.Helper()
	r := start(t, build)
	if r.Inherit != nil {
		r.Inherit(t, from)
	}
	return r
}

func carryOn(t testing.TB, r *Rig) error {
	t.Helper()
	if err := thaw(r); err != nil {
		return err
	}
	if r.CarryOn != nil {
		r.CarryOn(t)
	}
	return nil
}

func freeze(r *Rig) error { return within("Freeze", func() error { r.Device.Freeze(); return nil }) }
func thaw(r *Rig) error   { return within("Thaw", func() error { r.Device.Thaw(); return nil }) }

// within runs f, which must return in good time. A goroutine that f leaves blocked is lost; the test has failed then.
func within(what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("%s blocks for more than %v", what, patience)
	}
}

// save returns what the device writes. A panic comes back as an error.
func save(r *Rig) (b []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in Save: %v", p)
		}
	}()
	var e state.Encoder
	r.Device.Save(&e)
	return e.Bytes(), nil
}

// load gives b to the device. A panic comes back as a fault, an error of the device as refused.
func load(r *Rig, b []byte) (refused, fault error) {
	defer func() {
		if p := recover(); p != nil {
			fault = fmt.Errorf("panic in Load: %v", p)
		}
	}()
	d := state.NewDecoder(b)
	if err := r.Device.Load(d); err != nil {
		return err, nil
	}
	if d.Len() != 0 {
		return nil, fmt.Errorf("Load left %d of %d bytes unread and reported no error", d.Len(), len(b))
	}
	return nil, nil
}

// mustRefuse loads b, which the device has to refuse with an error and without changing: before is its state.
func mustRefuse(r *Rig, b, before []byte) error {
	refused, fault := load(r, b)
	if fault != nil {
		return fault
	}
	if refused == nil {
		return fmt.Errorf("was taken")
	}
	after, err := save(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(before, after) {
		return fmt.Errorf("was refused (%w) and changed the device:\n before %x\n after  %x", refused, before, after)
	}
	return nil
}
