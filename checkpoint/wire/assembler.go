package wire

import "fmt"

// Assembler follows the frames of epochs and holds them to what was announced: the receiver state machine of the package's
// documentation. It stores nothing but counts; the caller keeps pages and state where it wants them.
//
// The zero value is idle. After an error it must not be used any more.
type Assembler struct {
	open    bool
	session uint64
	epoch   uint64
	begin   EpochBegin
	pages   uint64
	zero    uint64
	state   uint32
	end     uint64 // frame number after the last page
	digest  uint32
}

// Open reports whether an epoch is under way.
func (a *Assembler) Open() bool { return a.open }

// Kind is that of the epoch under way, or of the last one.
func (a *Assembler) Kind() Kind { return a.begin.Kind }

// Begin takes a parsed epoch-begin, the header it came with and its frame's checksum.
func (a *Assembler) Begin(h Header, b EpochBegin, crc uint32) error {
	if a.open && h.Session == a.session {
		return fmt.Errorf("%w: epoch %d begins within epoch %d", ErrSequence, h.Epoch, a.epoch)
	}
	*a = Assembler{open: true, session: h.Session, epoch: h.Epoch, begin: b, digest: addDigest(0, crc)}
	return nil
}

func (a *Assembler) in(h Header) error {
	if !a.open || h.Session != a.session || h.Epoch != a.epoch {
		return fmt.Errorf("%w: %v of epoch %d in session %d; open: %t, epoch %d in session %d",
			ErrSequence, h.Type, h.Epoch, h.Session, a.open, a.epoch, a.session)
	}
	return nil
}

// Pages takes a parsed pages frame.
func (a *Assembler) Pages(h Header, p Pages, crc uint32) error {
	if err := a.in(h); err != nil {
		return err
	}
	for r := range p.Runs {
		if r.First < a.end {
			return fmt.Errorf("%w: page at frame %d after frame %d", ErrSequence, r.First, a.end)
		}
		a.end = r.First + uint64(r.Count)
		a.pages += uint64(r.Count)
		if r.Codec == CodecZero {
			a.zero += uint64(r.Count)
		}
	}
	if a.pages > a.begin.Pages {
		return fmt.Errorf("%w: epoch %d announced %d pages and has %d", ErrSequence, a.epoch, a.begin.Pages, a.pages)
	}
	a.digest = addDigest(a.digest, crc)
	return nil
}

// StateRoom says where in the state the frame of this header belongs, before it is read.
func (a *Assembler) StateRoom(h Header) (offset uint32, err error) {
	if err := a.in(h); err != nil {
		return 0, err
	}
	if h.Length > a.begin.State-a.state {
		return 0, fmt.Errorf("%w: epoch %d announced %d bytes of state and has %d", ErrSequence, a.epoch, a.begin.State, uint64(a.state)+uint64(h.Length))
	}
	return a.state, nil
}

// State takes a state frame that was read.
func (a *Assembler) State(h Header, crc uint32) error {
	if _, err := a.StateRoom(h); err != nil {
		return err
	}
	a.state += h.Length
	a.digest = addDigest(a.digest, crc)
	return nil
}

// End takes a parsed epoch-end. No error: the epoch is whole, and its digest is returned.
func (a *Assembler) End(h Header, e EpochEnd) (digest uint32, err error) {
	if err := a.in(h); err != nil {
		return 0, err
	}
	switch {
	case a.pages != a.begin.Pages || e.Pages != a.pages || e.Zero != a.zero:
		return 0, fmt.Errorf("%w: epoch %d has %d pages (%d zero), announced %d, closed with %d (%d zero)",
			ErrSequence, a.epoch, a.pages, a.zero, a.begin.Pages, e.Pages, e.Zero)
	case a.state != a.begin.State:
		return 0, fmt.Errorf("%w: epoch %d has %d bytes of state, announced %d", ErrSequence, a.epoch, a.state, a.begin.State)
	case e.Digest != a.digest:
		return 0, fmt.Errorf("epoch %d as a whole: %w", a.epoch, ErrChecksum)
	}
	a.open = false
	return a.digest, nil
}
