package virtio

import "github.com/pollux-ha/pollux/devices/state"

// save appends the class's state. Its queues answer every chain that they take at once, so there is nothing in flight.
func (n *Net) save(e *state.Encoder) {
	e.Raw(n.mac[:])
	e.U16(n.mtu)
	e.U16(n.link)
	e.Bool(n.announce)
}

func (n *Net) decode(d *state.Decoder, r *registers) (apply func()) {
	var mac [6]byte
	d.Raw(mac[:])
	mtu, link, announce := d.U16(), d.U16(), d.Bool()
	switch {
	case d.Err() != nil:
	case mac != n.mac || mtu != n.mtu:
		_ = d.Failf("MAC %x and MTU %d, this device has %x and %d", mac, mtu, n.mac, n.mtu) // sticks in d
	case link&^(netLinkUp|netAnnounce) != 0:
		_ = d.Failf("link status %#x has unknown bits", link)
	}
	decodeNothingInFlight(d, r)
	return func() { n.link, n.announce = link, announce }
}

// decodeNothingInFlight refuses queues with chains taken and not answered, for classes that answer at once.
func decodeNothingInFlight(d *state.Decoder, r *registers) {
	for i := range r.queues {
		if at := r.queues[i].at; at.Avail != at.Used {
			_ = d.Failf("queue %d: %d chains taken, %d answered", i, at.Avail, at.Used)
		}
	}
}
