package devicestest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/devices/state"
)

// maxAltered bounds how many bytes of a state alteredIsRefused changes, evenly spread: every byte of a small device's
// state, a sample of a large one's.
const maxAltered = 256

func createdFrozen(t testing.TB, build Factory) error {
	if _, err := save(start(t, build)); err != nil {
		return fmt.Errorf("the device is not frozen when it is created: %w", err)
	}
	return nil
}

func freezeThawRepeat(t testing.TB, build Factory) error {
	r := start(t, build)
	if err := freeze(r); err != nil { // frozen already
		return err
	}
	for range 3 {
		if err := errors.Join(thaw(r), thaw(r)); err != nil {
			return err
		}
		if _, err := save(r); err == nil {
			return errors.New("one Thaw after Freeze does not make the device run: it can be saved")
		}
		if err := errors.Join(freeze(r), freeze(r)); err != nil {
			return err
		}
		if _, err := save(r); err != nil {
			return fmt.Errorf("one Freeze after two Thaws does not freeze: %w", err)
		}
	}
	if err := thaw(r); err != nil {
		return err
	}
	if r.Prepare != nil {
		r.Prepare(t)
	}
	return carryOn(t, r)
}

func runningIsRefused(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	b, err := save(r)
	if err != nil {
		return err
	}
	if err := thaw(r); err != nil {
		return err
	}
	if _, err := save(r); err == nil {
		return errors.New("Save of a running device does not panic")
	}
	if refused, fault := load(r, b); refused == nil && fault == nil {
		return errors.New("Load into a running device is not refused")
	}
	return freeze(r) // a refused Save or Load must not have lost the lock
}

func oneSection(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	b, err := save(r)
	if err != nil {
		return err
	}
	d := state.NewDecoder(b)
	if _, content := d.Section(r.Device.Name(), ^uint16(0)); content.Len() == 0 {
		return errors.Join(errors.New("the state is empty"), d.Err())
	}
	return d.Finish()
}

func roundTrip(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	b, err := save(r)
	if err != nil {
		return err
	}
	again, err := save(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return fmt.Errorf("a frozen device saves different states:\n first  %x\n second %x", b, again)
	}
	fresh := inheriting(t, build, r)
	if err := errors.Join(load(fresh, b)); err != nil {
		return fmt.Errorf("a fresh device refuses the state: %w", err)
	}
	loaded, err := save(fresh)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, loaded) {
		return fmt.Errorf("the state changed by loading and saving:\n saved  %x\n loaded %x", b, loaded)
	}
	return nil
}

func savedCarriesOn(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	if _, err := save(r); err != nil {
		return err
	}
	return carryOn(t, r)
}

func loadedCarriesOn(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	b, err := save(r)
	if err != nil {
		return err
	}
	fresh := inheriting(t, build, r)
	if err := errors.Join(load(fresh, b)); err != nil {
		return fmt.Errorf("a fresh device refuses the state: %w", err)
	}
	return carryOn(t, fresh)
}

// refusing gives a prepared device's state, a fresh device that stands in for it, and that one's own state.
func refusing(t testing.TB, build Factory) (b []byte, fresh *Rig, before []byte, err error) {
	r, err := prepared(t, build)
	if err != nil {
		return nil, nil, nil, err
	}
	if b, err = save(r); err != nil {
		return nil, nil, nil, err
	}
	fresh = inheriting(t, build, r)
	before, err = save(fresh)
	return b, fresh, before, err
}

func cutIsRefused(t testing.TB, build Factory) error {
	b, fresh, before, err := refusing(t, build)
	if err != nil {
		return err
	}
	for n := range b {
		if err := mustRefuse(fresh, b[:n:n], before); err != nil {
			return fmt.Errorf("state cut to %d of %d bytes: %w", n, len(b), err)
		}
	}
	// The section's own length is cut too, so that the device and not the section's frame has to notice.
	head := sectionHead(b)
	for n := head; n < len(b); n++ {
		if err := mustRefuse(fresh, resize(b[:n:n]), before); err != nil {
			return fmt.Errorf("section cut to %d of %d bytes: %w", n-head, len(b)-head, err)
		}
	}
	if err := errors.Join(load(fresh, b)); err != nil {
		return fmt.Errorf("after refusing cut states, the whole one is refused too: %w", err)
	}
	return nil
}

func alteredIsRefused(t testing.TB, build Factory) error {
	b, fresh, before, err := refusing(t, build)
	if err != nil {
		return err
	}
	step := max(1, len(b)/maxAltered)
	for i := 0; i < len(b); i += step {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			altered := bytes.Clone(b)
			altered[i] ^= flip
			refused, fault := load(fresh, altered)
			if fault != nil {
				return fmt.Errorf("byte %d xor %#x: %w", i, flip, fault)
			}
			after, err := save(fresh)
			if err != nil {
				return err
			}
			switch {
			case refused != nil && !bytes.Equal(after, before):
				return fmt.Errorf("byte %d xor %#x was refused (%w) and changed the device", i, flip, refused)
			case refused == nil && !bytes.Equal(after, altered):
				return fmt.Errorf("byte %d xor %#x was taken, but not as it is:\n given %x\n saved %x", i, flip, altered, after)
			case refused == nil:
				// A value that can be. The device is not fresh any more; one that loaded anything must still run and stop.
				if err := errors.Join(thaw(fresh), freeze(fresh)); err != nil {
					return fmt.Errorf("byte %d xor %#x was taken: %w", i, flip, err)
				}
				fresh = start(t, build)
			}
		}
	}
	return nil
}

func foreignIsRefused(t testing.TB, build Factory) error {
	b, fresh, before, err := refusing(t, build)
	if err != nil {
		return err
	}
	head := sectionHead(b)
	versionAt := head - 6
	version := binary.LittleEndian.Uint16(b[versionAt:])
	edits := []struct {
		what string
		edit func(b []byte) []byte
	}{
		{"version 0", func(b []byte) []byte { binary.LittleEndian.PutUint16(b[versionAt:], 0); return b }},
		{"the next version", func(b []byte) []byte { binary.LittleEndian.PutUint16(b[versionAt:], version+1); return b }},
		{"another device's name", func(b []byte) []byte { b[1] ^= 0x20; return b }},
		{"a section with a byte too many", func(b []byte) []byte { return resize(append(b, 0)) }},
		{"an empty section", func(b []byte) []byte { return resize(b[:head]) }},
		{"nothing", func([]byte) []byte { return nil }},
	}
	for _, e := range edits {
		if err := mustRefuse(fresh, e.edit(bytes.Clone(b)), before); err != nil {
			return fmt.Errorf("%s: %w", e.what, err)
		}
	}
	return nil
}

func saveDoesNotAllocate(t testing.TB, build Factory) error {
	r, err := prepared(t, build)
	if err != nil {
		return err
	}
	b, err := save(r)
	if err != nil {
		return err
	}
	var e state.Encoder
	buf := make([]byte, 0, 2*len(b))
	if n := testing.AllocsPerRun(20, func() { e.Reset(buf[:0]); r.Device.Save(&e) }); n != 0 {
		return fmt.Errorf("Save allocates %v times", n)
	}
	return nil
}

func closeStops(t testing.TB, build Factory) error {
	type closer interface{ Close() error }
	ignore := goleak.IgnoreCurrent()
	for _, running := range []bool{true, false} {
		r := start(t, build) // closes once more at the end: Close may be repeated
		c, ok := r.Device.(closer)
		if !ok {
			break // it says that it has no goroutines, which the check below holds it to
		}
		if err := thaw(r); err != nil {
			return err
		}
		if r.Prepare != nil {
			r.Prepare(t)
		}
		if !running {
			if err := freeze(r); err != nil {
				return err
			}
		}
		if err := within("Close", c.Close); err != nil {
			return fmt.Errorf("close (running %v): %w", running, err)
		}
	}
	return goleak.Find(ignore)
}

// sectionHead is the length of the frame of the section that b starts with: name, version, length.
func sectionHead(b []byte) int { return 1 + int(b[0]) + 2 + 4 }

// resize makes the section's length field say what b holds.
func resize(b []byte) []byte {
	b = bytes.Clone(b)
	head := sectionHead(b)
	binary.LittleEndian.PutUint32(b[head-4:], uint32(len(b)-head))
	return b
}
