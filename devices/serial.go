package devices

import (
	"context"
	"fmt"
	"sync/atomic"
)

// The first serial port of a PC.
const (
	COM1Base = 0x3f8
	COM1IRQ  = 4
	// SerialSize is the number of registers, and of ports, of a serial port.
	SerialSize = 8
)

// SerialSink takes what the guest writes to a serial port. It decides when that becomes visible: under protection a
// console's output is held until its epoch commits, like a frame.
type SerialSink interface {
	// Put takes a prefix of p and returns its length, without blocking. When it took less than all of p, the function
	// given to OnSpace is called once there is room again. The device calls Put only while it is thawed.
	Put(p []byte) int
	// OnSpace sets the function to call; the sink calls it with none of its own locks held.
	OnSpace(f func())
}

// SerialConfig is what a serial port needs.
type SerialConfig struct {
	Name string // "serial0"
	Line Line   // its interrupt, edge triggered on ISA
	Sink SerialSink
}

// Registers by offset (16550A data sheet §8). DLAB in LCR switches 0 and 1 to the divisor latch.
const (
	serialData = 0 // RBR on read, THR on write; DLL
	serialIER  = 1 // DLM
	serialIIR  = 2 // FCR on write
	serialLCR  = 3
	serialMCR  = 4
	serialLSR  = 5
	serialMSR  = 6
	serialSCR  = 7
)

const (
	ierReceive  = 0x01
	ierTransmit = 0x02
	ierLine     = 0x04
	ierModem    = 0x08
	ierMask     = 0x0f

	iirNone     = 0x01
	iirModem    = 0x00
	iirTransmit = 0x02
	iirReceive  = 0x04
	iirLine     = 0x06
	iirTimeout  = 0x0c
	iirFIFO     = 0xc0

	fcrEnable        = 0x01
	fcrClearReceive  = 0x02
	fcrClearTransmit = 0x04
	fcrTriggerShift  = 6
	fcrKept          = 0xc9 // enable, DMA mode, trigger: what the register remembers

	lcrDLAB = 0x80

	mcrDTR      = 0x01
	mcrRTS      = 0x02
	mcrOUT1     = 0x04
	mcrOUT2     = 0x08
	mcrLoopback = 0x10
	mcrMask     = 0x1f

	lsrData        = 0x01
	lsrOverrun     = 0x02
	lsrTransmit    = 0x20 // THR (or the transmit FIFO) is empty
	lsrTransmitAll = 0x40 // and so is the shift register

	msrDelta = 0x0f
	msrCTS   = 0x10
	msrDSR   = 0x20
	msrRI    = 0x40
	msrDCD   = 0x80
)

const (
	serialFIFODepth  = 16
	serialInputDepth = 4096
)

// The trigger levels of the receive FIFO, by FCR bits 7:6.
var serialTrigger = [4]int{1, 4, 8, 14}

// Serial is a 16550A UART whose other end is always there. A byte takes no time on the wire.
//
// Output goes to the sink at once. While the sink is full, bytes stay in the transmit FIFO and the guest sees that it is
// not empty; a guest that writes on regardless loses bytes, as on hardware, and Lost counts them: a stuck console never
// stops a vCPU.
//
// Input goes from Feed through a bounded queue (the wire) into the receive FIFO, but only while the guest asserts RTS:
// that is the flow control which keeps what was typed during boot until a driver listens, because drivers clear the FIFO
// as they start.
type Serial struct {
	gate
	name  string
	irq   irq
	sink  SerialSink
	lost  atomic.Uint64
	room  chan struct{} // has an item when Feed should look again
	feed  chan struct{} // a semaphore: one Feed at a time
	fresh bool          // loaded, and not thawed since

	serialState
}

// serialState is what a checkpoint carries; serial_state.go writes it down.
type serialState struct {
	ier, fcr, lcr, mcr, lsr, scr uint8
	msrDelta                     uint8 // the low half of MSR: which inputs changed
	divisor                      uint16
	transmitPending              bool // the THRE interrupt waits to be seen; reading IIR clears it

	receive, transmit, input fifo
}

// NewSerial returns a frozen serial port in its reset state.
func NewSerial(c SerialConfig) (*Serial, error) {
	if c.Name == "" || c.Line == nil || c.Sink == nil {
		return nil, fmt.Errorf("serial port %q: a name, an interrupt line and a sink are needed", c.Name)
	}
	s := &Serial{
		name: c.Name,
		irq:  irq{line: c.Line},
		sink: c.Sink,
		room: make(chan struct{}, 1),
		feed: make(chan struct{}, 1),
	}
	s.frozen = true
	s.serialState = serialState{
		lsr:      lsrTransmit | lsrTransmitAll,
		divisor:  12, // 9600 baud
		receive:  newFIFO(serialFIFODepth),
		transmit: newFIFO(serialFIFODepth),
		input:    newFIFO(serialInputDepth),
	}
	c.Sink.OnSpace(s.drain)
	return s, nil
}

// Name implements Device.
func (s *Serial) Name() string { return s.name }

// Thaw implements Device.
func (s *Serial) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = false
	s.flush()
	s.refill()
	if s.fresh {
		s.fresh = false
		s.irq.restore(s.asserted())
	}
	s.update()
	s.signalRoom()
}

// Lost is the number of bytes that the guest wrote into a full transmit FIFO.
func (s *Serial) Lost() uint64 { return s.lost.Load() }

// Feed gives the guest all of p to read. It blocks while the input queue is full or the machine is frozen, and returns
// the context's error if that ends first; what was taken until then stays taken.
func (s *Serial) Feed(ctx context.Context, p []byte) error {
	select {
	case s.feed <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.feed }()
	for {
		p = p[s.accept(p):]
		if len(p) == 0 {
			return nil
		}
		select {
		case <-s.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Serial) accept(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen {
		return 0
	}
	n := 0
	for n < len(p) && s.input.push(p[n]) {
		n++
	}
	s.refill()
	s.update()
	return n
}

func (s *Serial) signalRoom() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// drain is called by the sink when it has room again.
func (s *Serial) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen {
		return // Thaw looks again
	}
	s.flush()
	s.update()
}

// Read implements Handler. A wide access touches the registers one after another, as on an 8-bit bus.
func (s *Serial) Read(offset uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range p {
		p[i] = s.readRegister(offset + uint64(i))
	}
	s.update()
}

// Write implements Handler.
func (s *Serial) Write(offset uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, v := range p {
		s.writeRegister(offset+uint64(i), v)
	}
	s.update()
}

func (s *Serial) readRegister(offset uint64) uint8 {
	switch offset {
	case serialData:
		if s.lcr&lcrDLAB != 0 {
			return uint8(s.divisor)
		}
		return s.readData()
	case serialIER:
		if s.lcr&lcrDLAB != 0 {
			return uint8(s.divisor >> 8)
		}
		return s.ier
	case serialIIR:
		return s.identify()
	case serialLCR:
		return s.lcr
	case serialMCR:
		return s.mcr
	case serialLSR:
		v := s.lsr
		s.lsr &^= lsrOverrun // reading clears the errors
		return v
	case serialMSR:
		v := s.modemInputs() | s.msrDelta
		s.msrDelta = 0 // reading clears the changes
		return v
	case serialSCR:
		return s.scr
	}
	return 0xff
}

func (s *Serial) writeRegister(offset uint64, v uint8) {
	switch offset {
	case serialData:
		if s.lcr&lcrDLAB != 0 {
			s.divisor = s.divisor&0xff00 | uint16(v)
			return
		}
		s.send(v)
	case serialIER:
		if s.lcr&lcrDLAB != 0 {
			s.divisor = s.divisor&0x00ff | uint16(v)<<8
			return
		}
		// Enabling the transmit interrupt while there is nothing to transmit raises it: drivers start output so.
		if v&ierTransmit != 0 && s.ier&ierTransmit == 0 && s.lsr&lsrTransmit != 0 {
			s.transmitPending = true
		}
		s.ier = v & ierMask
	case serialIIR:
		s.control(v)
	case serialLCR:
		s.lcr = v
	case serialMCR:
		s.setModemControl(v & mcrMask)
	case serialSCR:
		s.scr = v
	}
	// LSR and MSR are read only; writing them is for the factory's tests.
}

func (s *Serial) readData() uint8 {
	v, _ := s.receive.pop() // an empty one reads as 0
	s.refill()
	if s.receive.n == 0 {
		s.lsr &^= lsrData
	}
	return v
}

func (s *Serial) send(v uint8) {
	s.transmitPending = false
	if s.mcr&mcrLoopback != 0 {
		if s.receive.n >= s.receiveDepth() {
			s.lsr |= lsrOverrun
		} else {
			s.receive.push(v)
			s.lsr |= lsrData
		}
		s.transmitPending = true
		return
	}
	if s.transmit.n >= s.transmitDepth() {
		s.lost.Add(1)
		return
	}
	s.transmit.push(v)
	s.lsr &^= lsrTransmit | lsrTransmitAll
	s.flush()
}

// flush moves the transmit FIFO to the sink, as far as that takes it.
func (s *Serial) flush() {
	if s.lsr&lsrTransmit != 0 {
		return
	}
	for s.transmit.n > 0 {
		p := s.transmit.head()
		taken := s.sink.Put(p)
		s.transmit.drop(taken)
		if taken < len(p) {
			return
		}
	}
	s.lsr |= lsrTransmit | lsrTransmitAll
	s.transmitPending = true
}

// refill moves input to the receive FIFO as far as flow control and room allow.
func (s *Serial) refill() {
	if s.mcr&mcrLoopback != 0 || s.mcr&mcrRTS == 0 {
		return
	}
	moved := false
	for s.receive.n < s.receiveDepth() {
		v, ok := s.input.pop()
		if !ok {
			break
		}
		s.receive.push(v)
		moved = true
	}
	if moved {
		s.lsr |= lsrData
		s.signalRoom()
	}
}

func (s *Serial) receiveDepth() int {
	if s.fcr&fcrEnable != 0 {
		return serialFIFODepth
	}
	return 1
}

func (s *Serial) transmitDepth() int { return s.receiveDepth() }

// control writes FCR (16550A data sheet §8.5). Changing the enable bit clears both FIFOs.
func (s *Serial) control(v uint8) {
	clearAll := (v^s.fcr)&fcrEnable != 0
	if v&fcrEnable == 0 {
		v &= fcrEnable // the other bits are programmed only together with enable
	}
	if clearAll || v&fcrClearReceive != 0 {
		s.receive.clear()
		s.lsr &^= lsrData
	}
	if clearAll || v&fcrClearTransmit != 0 {
		s.transmit.clear()
		if s.lsr&lsrTransmit == 0 {
			s.lsr |= lsrTransmit | lsrTransmitAll
			s.transmitPending = true
		}
	}
	s.fcr = v & fcrKept
	s.refill()
}

func (s *Serial) setModemControl(v uint8) {
	before := s.modemInputs()
	s.mcr = v
	after := s.modemInputs()
	changed := (before ^ after) >> 4
	if after&msrRI != 0 {
		changed &^= msrRI >> 4 // RI counts only when it goes away: TERI is its trailing edge
	}
	s.msrDelta |= changed
	s.refill()
}

// modemInputs is the high half of MSR: in loopback the four outputs of MCR come back as its four inputs, otherwise the
// other end is there and ready.
func (s *Serial) modemInputs() uint8 {
	if s.mcr&mcrLoopback == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var v uint8
	if s.mcr&mcrRTS != 0 {
		v |= msrCTS
	}
	if s.mcr&mcrDTR != 0 {
		v |= msrDSR
	}
	if s.mcr&mcrOUT1 != 0 {
		v |= msrRI
	}
	if s.mcr&mcrOUT2 != 0 {
		v |= msrDCD
	}
	return v
}

// pending is the interrupt of highest priority (16550A data sheet §8.6), as IIR gives it.
func (s *Serial) pending() uint8 {
	switch {
	case s.ier&ierLine != 0 && s.lsr&lsrOverrun != 0:
		return iirLine
	case s.ier&ierReceive != 0 && s.receive.n > 0:
		if s.fcr&fcrEnable != 0 && s.receive.n < serialTrigger[s.fcr>>fcrTriggerShift] {
			return iirTimeout // nothing more is on the wire, so the four characters' time is over at once
		}
		return iirReceive
	case s.ier&ierTransmit != 0 && s.transmitPending:
		return iirTransmit
	case s.ier&ierModem != 0 && s.msrDelta != 0:
		return iirModem
	}
	return iirNone
}

func (s *Serial) identify() uint8 {
	v := s.pending()
	if v == iirTransmit {
		s.transmitPending = false
	}
	if s.fcr&fcrEnable != 0 {
		v |= iirFIFO
	}
	return v
}

// asserted is the level of the interrupt line, which OUT2 gates on a PC and loopback cuts off.
func (s *Serial) asserted() bool {
	return s.pending() != iirNone && s.mcr&mcrOUT2 != 0 && s.mcr&mcrLoopback == 0
}

func (s *Serial) update() { s.irq.set(s.asserted()) }
