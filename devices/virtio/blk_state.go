package virtio

import "github.com/pollux-ha/pollux/devices/state"

// save appends what a disk must have in common with its twin, and the requests in flight: also those executed and not
// answered, which are executed again.
func (b *Blk) save(e *state.Encoder) {
	e.U64(b.sectors)
	e.Raw(b.id[:])
	if !b.ready() {
		e.U16(0) // the driver has given up on its requests
		return
	}
	e.U16(uint16(b.inFlight))
	for i := range b.requests {
		if r := &b.requests[i]; r.phase != phaseFree {
			e.U16(r.head)
		}
	}
}

func (b *Blk) decode(d *state.Decoder, regs *registers) (apply func()) {
	if sectors := d.U64(); d.Err() == nil && sectors != b.sectors {
		_ = d.Failf("disk of %d sectors, this one has %d", sectors, b.sectors) // sticks in d
	}
	var id [blkIDSize]byte
	d.Raw(id[:])
	if d.Err() == nil && id != b.id {
		_ = d.Failf("disk ID %q, this one has %q", id, b.id)
	}
	n := d.U16()
	if n > blkRequests {
		_ = d.Failf("%d requests in flight, at most %d can be", n, blkRequests)
		return nil
	}
	heads := make([]uint16, n)
	q := &regs.queues[0]
	for i := range heads {
		if heads[i] = d.U16(); d.Err() == nil && (!q.enabled || heads[i] >= q.Size) {
			_ = d.Failf("request in flight at descriptor %d of %d", heads[i], q.Size)
		}
	}
	const using = statusDriverOK | statusNeedsReset | statusFailed
	running := q.enabled && regs.status&using == statusDriverOK
	switch inFlight := q.at.Avail - q.at.Used; {
	case d.Err() != nil:
	case running && inFlight != n:
		_ = d.Failf("%d chains taken and not answered, %d requests in flight", inFlight, n)
	case !running && n != 0:
		_ = d.Failf("%d requests in flight of a driver that is not ready", n)
	}
	return func() {
		for i, head := range heads {
			b.requests[i].head, b.requests[i].phase = head, phaseWaiting
		}
		b.inFlight = len(heads)
	}
}
