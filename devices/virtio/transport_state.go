package virtio

import (
	"fmt"

	"github.com/pollux-ha/pollux/devices/state"
)

// stateVersion is the version of a virtio device's section: PCI function, registers, queues, class.
const stateVersion = 1

// Save implements devices.Device.
func (t *transport) Save(e *state.Encoder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.frozen {
		panic(t.name + ": Save of a running device")
	}
	s := e.Begin(t.name, stateVersion)
	t.function.Save(e)
	t.saveRegisters(e)
	t.class.save(e)
	e.End(s)
}

// saveRegisters appends what the driver set. A reset that waits for requests in flight is saved as complete: they are not
// saved with it, so for whoever loads this it is.
func (t *transport) saveRegisters(e *state.Encoder) {
	r := &t.regs
	if t.resetting {
		r = &t.blank
	}
	e.U64(t.offered)
	e.U32(r.deviceFeatureSelect)
	e.U32(r.driverFeatureSelect)
	e.U64(r.driverFeatures)
	e.U16(r.configVector)
	e.U16(r.queueSelect)
	e.U8(r.status)
	e.U8(t.regs.generation)
	e.U8(r.isr)
	e.U16(uint16(len(r.queues)))
	for i := range r.queues {
		q := &r.queues[i]
		e.U16(q.Size)
		e.U64(q.Desc)
		e.U64(q.Driver)
		e.U64(q.Device)
		e.U16(q.vector)
		e.Bool(q.enabled)
		if q.enabled {
			at := t.queues[i].Position()
			e.U16(at.Avail)
			e.U16(at.Used)
		}
	}
}

// Load implements devices.Device.
func (t *transport) Load(d *state.Decoder) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.frozen {
		return fmt.Errorf("%s: load into a running device", t.name)
	}
	_, s := d.Section(t.name, stateVersion)
	function := t.function.Decode(s)
	r := t.decodeRegisters(s)
	apply := t.class.decode(s, &r)
	if err := s.Finish(); err != nil {
		return err
	}
	for i := range r.queues {
		q := &r.queues[i]
		if !q.enabled {
			continue
		}
		if err := t.queues[i].Enable(q.Config, queueFeatures(r.driverFeatures)); err != nil {
			panic(fmt.Sprintf("%s: queue %d was checked and cannot be enabled: %v", t.name, i, err))
		}
		t.queues[i].Resume(q.at)
	}
	for _, q := range t.queues {
		q.owed.Store(true)
	}
	t.regs = r
	apply()
	t.function.Restore(function)
	return nil
}

func (t *transport) decodeRegisters(d *state.Decoder) registers {
	if offered := d.U64(); d.Err() == nil && offered != t.offered {
		_ = d.Failf("features %#x offered, this device offers %#x", offered, t.offered) // sticks in d
	}
	r := registers{
		deviceFeatureSelect: d.U32(), driverFeatureSelect: d.U32(), driverFeatures: d.U64(),
		configVector: d.U16(), queueSelect: d.U16(), status: d.U8(), generation: d.U8(), isr: d.U8(),
	}
	if n := int(d.U16()); d.Err() == nil && n != len(t.queues) {
		_ = d.Failf("%d queues, this device has %d", n, len(t.queues))
	}
	r.queues = make([]queueRegisters, len(t.queues))
	for i := range r.queues {
		q := &r.queues[i]
		q.Size, q.Desc, q.Driver, q.Device = d.U16(), d.U64(), d.U64(), d.U64()
		q.vector, q.enabled = d.U16(), d.Bool()
		if q.enabled {
			q.at.Avail, q.at.Used = d.U16(), d.U16()
		}
	}
	if err := t.checkRegisters(&r); err != nil {
		_ = d.Failf("%v", err)
	}
	return r
}

// checkRegisters says why no driver can have brought the device into this state.
func (t *transport) checkRegisters(r *registers) error {
	switch {
	case r.status&^(statusByDriver|statusNeedsReset) != 0:
		return fmt.Errorf("status %#x has unknown bits", r.status)
	case r.status&(statusDriverOK|statusFeaturesOK) == statusDriverOK:
		return fmt.Errorf("status %#x: driver ready without features", r.status)
	case r.isr&^(isrQueue|isrConfig) != 0:
		return fmt.Errorf("ISR status %#x has unknown bits", r.isr)
	case r.configVector != t.checkedVector(r.configVector):
		return fmt.Errorf("configuration vector %d does not exist", r.configVector)
	}
	if r.status&statusFeaturesOK != 0 {
		if err := t.checkFeatures(r.driverFeatures); err != nil {
			return err
		}
	}
	for i := range r.queues {
		q := &r.queues[i]
		if q.vector != t.checkedVector(q.vector) {
			return fmt.Errorf("queue %d: vector %d does not exist", i, q.vector)
		}
		if !q.enabled {
			continue
		}
		if r.status&statusFeaturesOK == 0 {
			return fmt.Errorf("queue %d is enabled before the features are final", i)
		}
		if err := t.queues[i].Check(q.Config); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}
