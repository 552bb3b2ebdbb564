package standby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Machine is what a Receiver fills: a machine that has not run.
type Machine interface {
	Memory() *guestmem.Memory
	// LoadState takes the state of a machine of the same kind, which then goes on where that one was frozen.
	LoadState(b []byte) error
}

var (
	// ErrPeer is wrapped by the error for frames that no primary sends: the connection must end.
	ErrPeer = errors.New("the peer sent what it must not")
	// ErrNoCopy is wrapped by the error of a TakeOver from a checkpoint that isn't here.
	ErrNoCopy = errors.New("no copy of that checkpoint")
)

// Receiver receives epochs into a machine's memory.
type Receiver struct {
	machine Machine
	memory  *guestmem.Memory
	stats   *checkpoint.Stats
	log     *slog.Logger

	// Owned by the reading goroutine.
	assembler wire.Assembler
	small     [256]byte // payloads of frames without bulk
	begin     time.Time // of the epoch being received
	lastApply time.Duration

	// mu guards the rest. It is held while an epoch is applied, so that a takeover finds a whole image; it is not held
	// while the link is read.
	mu      sync.Mutex
	session uint64 // accepted; 0: none
	begun   bool   // nothing of session has been received yet
	staged  uint64 // epoch that is whole in staging and not applied; 0: none
	applied uint64 // epoch that the image is at; 0: none

	// staging holds the pages frames of the checkpoint being received: length (8 bytes), payload, padding to 8 bytes. It and
	// state belong to the reading goroutine until staged is set.
	staging []byte
	used    int
	state   []byte // of the epoch being received
	image   []byte // state of the epoch applied
}

// stagingSize covers the worst case, every page a run of its own in a frame of its own (8 bytes of length, 8 of head, 24 of run, 7 of
// padding: less than 64 per page), and the largest frame, which is received before it is examined.
func stagingSize(m *guestmem.Memory) int {
	pages := int(m.Size() / wire.PageSize)
	return pages*(wire.PageSize+64) + 2*wire.MaxPagesPayload
}

// keepStaging is how much of staging stays with the host's memory in hand after an epoch.
const keepStaging = 64 << 20

// New returns a Receiver into the memory of machine.
func New(machine Machine, stats *checkpoint.Stats, log *slog.Logger) (*Receiver, error) {
	r := &Receiver{machine: machine, memory: machine.Memory(), stats: stats, log: log}
	var err error
	if r.staging, err = checkpoint.Map(stagingSize(r.memory)); err != nil {
		return nil, fmt.Errorf("prepare to receive: %w", err)
	}
	return r, nil
}

// Close frees staging. The link must not be read any more. The machine stays.
func (r *Receiver) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	staging := r.staging
	r.staging, r.session, r.staged, r.applied = nil, 0, 0, 0
	return checkpoint.Unmap(staging)
}

// Begin drops what is here and accepts the given session.
func (r *Receiver) Begin(session uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session, r.begun, r.staged, r.applied = session, true, 0, 0
}

// Drop forgets the copy.
func (r *Receiver) Drop() { r.Begin(0) }

// Complete is the newest checkpoint that a takeover can start from, 0 if there is none.
func (r *Receiver) Complete() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(r.applied, r.staged)
}

// Whole is an epoch that has arrived and was verified.
type Whole struct {
	Session uint64
	Epoch   uint64
	Ack     wire.Ack // what to answer
}

// Receive takes the frame that in's Next has announced; it must be of an epoch. When it was the last one of a round or a checkpoint, that is
// returned: a round is to be acknowledged; a checkpoint is to be acknowledged and applied, or dropped, before the next call. An
// error that wraps ErrPeer or one of wire's ends the connection.
func (r *Receiver) Receive(h wire.Header, in *wire.Reader) (whole Whole, done bool, err error) {
	accepted, first := r.accepts(h.Session)
	if !accepted {
		// Left over from a session that has ended.
		return Whole{}, false, in.Skip(r.small[:])
	}
	if first {
		// An earlier session may have ended in the middle of an epoch, and another peer may count its sessions alike.
		r.assembler = wire.Assembler{}
	}
	switch h.Type {
	case wire.TypeEpochBegin:
		return Whole{}, false, r.onBegin(h, in)
	case wire.TypePages:
		return Whole{}, false, r.onPages(h, in)
	case wire.TypeState:
		return Whole{}, false, r.onState(h, in)
	case wire.TypeEpochEnd:
		return r.onEnd(h, in)
	}
	return Whole{}, false, fmt.Errorf("%w: %v within an epoch", ErrPeer, h.Type)
}

// accepts reports whether frames of the session are expected, and whether this is its first one.
func (r *Receiver) accepts(session uint64) (accepted, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if session == 0 || session != r.session {
		return false, false
	}
	first, r.begun = r.begun, false
	return true, first
}

func (r *Receiver) onBegin(h wire.Header, in *wire.Reader) error {
	r.begin = time.Now()
	p := r.small[:h.Length]
	if err := in.Payload(p); err != nil {
		return err
	}
	b, err := wire.ParseEpochBegin(p)
	if err != nil {
		return err
	}
	if b.Pages > r.memory.Size()/wire.PageSize {
		return fmt.Errorf("%w: epoch %d with %d pages, the guest has %d", ErrPeer, h.Epoch, b.Pages, r.memory.Size()/wire.PageSize)
	}
	r.mu.Lock()
	complete := max(r.applied, r.staged)
	r.staged = 0
	r.mu.Unlock()
	switch {
	case h.Epoch == 0, b.Kind == wire.Checkpoint && complete != 0 && h.Epoch != complete+1:
		return fmt.Errorf("%w: %v %d after checkpoint %d", ErrPeer, b.Kind, h.Epoch, complete)
	case b.Kind == wire.Round && complete != 0:
		// It would tear the image.
		return fmt.Errorf("%w: round %d after checkpoint %d", ErrPeer, h.Epoch, complete)
	}
	r.used = 0
	if cap(r.state) < int(b.State) {
		r.state = make([]byte, 0, int(b.State)) // bounded by wire.MaxStateTotal; state hardly changes its size
	}
	r.state = r.state[:b.State]
	return r.assembler.Begin(h, b, in.Checksum())
}

func (r *Receiver) onPages(h wire.Header, in *wire.Reader) error {
	at := r.used + 8
	if !r.assembler.Open() || len(r.staging)-at < int(h.Length) {
		return fmt.Errorf("%w: %d bytes of pages, with %d of %d bytes of staging in use", ErrPeer, h.Length, r.used, len(r.staging))
	}
	p := r.staging[at : at+int(h.Length)]
	if err := in.Payload(p); err != nil {
		return err
	}
	pages, err := wire.ParsePages(p)
	if err != nil {
		return err
	}
	if err := r.assembler.Pages(h, pages, in.Checksum()); err != nil {
		return err
	}
	for run := range pages.Runs {
		if _, err := r.target(run); err != nil {
			return err
		}
	}
	if r.assembler.Kind() == wire.Round {
		return r.write(pages)
	}
	binary.LittleEndian.PutUint64(r.staging[r.used:], uint64(h.Length))
	r.used = (at + int(h.Length) + 7) &^ 7
	return nil
}

// target is the guest memory that a run is for.
func (r *Receiver) target(run wire.Run) ([]byte, error) {
	// Beyond the last frame the shift could wrap around.
	if frames := r.memory.Frames(); run.First >= frames || uint64(run.Count) > frames {
		return nil, fmt.Errorf("%w: %d pages at frame %d, the guest has %d frames", ErrPeer, run.Count, run.First, frames)
	}
	s, err := r.memory.Slice(run.First<<guestmem.PageShift, uint64(run.Count)<<guestmem.PageShift)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return s, nil
}

func (r *Receiver) onState(h wire.Header, in *wire.Reader) error {
	if !r.assembler.Open() || int(h.Length) > len(r.state) {
		return fmt.Errorf("%w: %d bytes of state, announced were %d", ErrPeer, h.Length, len(r.state))
	}
	at, err := r.assembler.StateRoom(h)
	if err != nil {
		return err
	}
	if err := in.Payload(r.state[at : at+h.Length]); err != nil {
		return err
	}
	return r.assembler.State(h, in.Checksum())
}

func (r *Receiver) onEnd(h wire.Header, in *wire.Reader) (Whole, bool, error) {
	p := r.small[:h.Length]
	if err := in.Payload(p); err != nil {
		return Whole{}, false, err
	}
	e, err := wire.ParseEpochEnd(p)
	if err != nil {
		return Whole{}, false, err
	}
	digest, err := r.assembler.End(h, e)
	if err != nil {
		return Whole{}, false, err
	}
	took := time.Since(r.begin)
	kind := r.assembler.Kind()
	w := Whole{Session: h.Session, Epoch: h.Epoch, Ack: wire.Ack{
		Kind: kind, Digest: digest, ReceiveNanos: uint64(took), ApplyNanos: uint64(r.lastApply),
	}}
	if kind == wire.Round {
		return w, true, nil
	}
	r.stats.Record(checkpoint.PhaseReceive, took)
	r.stats.Update(func(c *checkpoint.Counts) {
		c.Session, c.Captured, c.DirtyPages, c.StateBytes = h.Session, h.Epoch, e.Pages, uint64(len(r.state))
		c.Pages += e.Pages
		c.ZeroPages += e.Zero
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.Session != r.session {
		return Whole{}, false, nil // dropped meanwhile
	}
	r.staged = h.Epoch
	return w, true, nil
}
