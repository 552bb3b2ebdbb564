package pci

import (
	"errors"

	"github.com/pollux-ha/pollux/devices/state"
)

const rootVersion = 1

// Name implements devices.Device.
func (r *Root) Name() string { return "pci0" }

// Freeze implements devices.Device. The bus acts only when a vCPU accesses it, so there is nothing to stop.
func (r *Root) Freeze() { r.setFrozen(true) }

// Thaw implements devices.Device.
func (r *Root) Thaw() { r.setFrozen(false) }

func (r *Root) setFrozen(v bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = v
}

// Save implements devices.Device: the address register and the host bridge. The functions in the other slots are saved
// by their devices.
func (r *Root) Save(e *state.Encoder) {
	r.mu.Lock()
	frozen, address := r.frozen, r.address
	r.mu.Unlock()
	if !frozen {
		panic("pci0: Save of a running device")
	}
	s := e.Begin(r.Name(), rootVersion)
	e.U32(address)
	r.bridge.Save(e)
	e.End(s)
}

// Load implements devices.Device.
func (r *Root) Load(d *state.Decoder) error {
	_, s := d.Section(r.Name(), rootVersion)
	address := s.U32()
	if address&addressReserved != 0 {
		_ = s.Failf("address register %#x has reserved bits set", address)
	}
	bridge := r.bridge.Decode(s)
	if err := s.Finish(); err != nil {
		return err
	}
	r.mu.Lock()
	if !r.frozen {
		r.mu.Unlock()
		return errors.New("pci0: load into a running device")
	}
	r.address = address
	r.mu.Unlock()
	r.bridge.Restore(bridge)
	return nil
}
