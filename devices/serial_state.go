package devices

import "github.com/pollux-ha/pollux/devices/state"

const serialStateVersion = 1

// Save implements Device. What waits in the transmit FIFO and in the input queue is state: the twin prints the one and
// the guest reads the other there.
func (s *Serial) Save(e *state.Encoder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mustBeFrozen(s.name)
	section := e.Begin(s.name, serialStateVersion)
	e.U8(s.ier)
	e.U8(s.fcr)
	e.U8(s.lcr)
	e.U8(s.mcr)
	e.U8(s.lsr)
	e.U8(s.scr)
	e.U8(s.msrDelta)
	e.U16(s.divisor)
	e.Bool(s.transmitPending)
	s.receive.save(e)
	s.transmit.save(e)
	s.input.save(e)
	e.End(section)
}

// Load implements Device.
func (s *Serial) Load(d *state.Decoder) error {
	_, d = d.Section(s.name, serialStateVersion)
	next := serialState{
		ier:             d.U8(),
		fcr:             d.U8(),
		lcr:             d.U8(),
		mcr:             d.U8(),
		lsr:             d.U8(),
		scr:             d.U8(),
		msrDelta:        d.U8(),
		divisor:         d.U16(),
		transmitPending: d.Bool(),
	}
	receive := d.Blob(serialFIFODepth)
	transmit := d.Blob(serialFIFODepth)
	input := d.Blob(serialInputDepth)
	if err := d.Finish(); err != nil {
		return err
	}
	if err := next.check(d, len(receive), len(transmit)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.frozen {
		return errRunning
	}
	next.receive, next.transmit, next.input = s.receive, s.transmit, s.input
	next.receive.set(receive)
	next.transmit.set(transmit)
	next.input.set(input)
	s.serialState = next
	s.fresh = true
	return nil
}

// check refuses combinations that the registers of a running port never show.
func (s *serialState) check(d *state.Decoder, receive, transmit int) error {
	switch {
	case s.ier&^ierMask != 0:
		return d.Failf("IER %#x has reserved bits", s.ier)
	case s.fcr&^fcrKept != 0:
		return d.Failf("FCR %#x has bits that it does not keep", s.fcr)
	case s.mcr&^mcrMask != 0:
		return d.Failf("MCR %#x has reserved bits", s.mcr)
	case s.lsr&^(lsrData|lsrOverrun|lsrTransmit|lsrTransmitAll) != 0:
		return d.Failf("LSR %#x has bits that this port never sets", s.lsr)
	case s.msrDelta&^msrDelta != 0:
		return d.Failf("MSR changes %#x are more than four bits", s.msrDelta)
	case (s.lsr&lsrData != 0) != (receive > 0):
		return d.Failf("LSR %#x with %d bytes received", s.lsr, receive)
	case (s.lsr&lsrTransmit == 0) != (transmit > 0), (s.lsr&lsrTransmit == 0) != (s.lsr&lsrTransmitAll == 0):
		return d.Failf("LSR %#x with %d bytes to transmit", s.lsr, transmit)
	case s.fcr&fcrEnable == 0 && (receive > 1 || transmit > 1):
		return d.Failf("%d bytes received and %d to transmit without FIFOs", receive, transmit)
	}
	return nil
}
