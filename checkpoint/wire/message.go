package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Region is a piece of guest RAM: guest physical address and length in bytes.
type Region struct {
	Base uint64 `cbor:"1,keyasint"`
	Size uint64 `cbor:"2,keyasint"`
}

// Hello opens a connection, from both ends: who speaks, and what machine it has, which the other one must be able to become.
type Hello struct {
	Node        string `cbor:"1,keyasint"` // who speaks, as the arbiter's record names it
	Incarnation uint64 `cbor:"2,keyasint"` // of the process, not zero
	VM          string `cbor:"3,keyasint"`
	PageSize    uint32 `cbor:"4,keyasint"`
	Codecs      uint32 `cbor:"5,keyasint"` // set of codecs that it can decode, bit 1<<Codec
	// Regions of RAM, ascending. Empty, like the description, if the speaker has no machine.
	Regions []Region `cbor:"6,keyasint"`
	// Description is the machine's own: processors, features, devices. Only a machine can read it.
	Description []byte `cbor:"7,keyasint"`
}

// HelloAck accepts a Hello.
type HelloAck struct {
	Node string `cbor:"1,keyasint"`
}

// Bounds within a Hello.
const (
	maxName        = 255
	maxRegions     = 64
	maxDescription = MaxHello - (16 << 10)
)

var (
	strictDecoding = mustDecMode(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  maxRegions,
		MaxMapPairs:       16,
		MaxNestedLevels:   4,
	})
	canonicalEncoding = mustEncMode(cbor.CoreDetEncOptions())
)

func mustDecMode(o cbor.DecOptions) cbor.DecMode {
	m, err := o.DecMode()
	if err != nil {
		panic(err) // constant options
	}
	return m
}

func mustEncMode(o cbor.EncOptions) cbor.EncMode {
	m, err := o.EncMode()
	if err != nil {
		panic(err) // constant options
	}
	return m
}

// Check reports what of a Hello cannot be.
func (h *Hello) Check() error {
	switch {
	case h.Node == "" || len(h.Node) > maxName:
		return fmt.Errorf("%w: hello with a node name of %d bytes", ErrMessage, len(h.Node))
	case h.Incarnation == 0:
		return fmt.Errorf("%w: hello of node %q with incarnation 0", ErrMessage, h.Node)
	case h.VM == "" || len(h.VM) > maxName:
		return fmt.Errorf("%w: hello with a VM name of %d bytes", ErrMessage, len(h.VM))
	case h.PageSize != PageSize:
		return fmt.Errorf("%w: hello with pages of %d bytes, must be %d", ErrMessage, h.PageSize, PageSize)
	case h.Codecs&CodecsRequired != CodecsRequired:
		return fmt.Errorf("%w: hello without the required codecs (%#x of %#x)", ErrMessage, h.Codecs, CodecsRequired)
	case len(h.Description) > maxDescription:
		return fmt.Errorf("%w: hello with a description of %d bytes, at most %d", ErrMessage, len(h.Description), maxDescription)
	case len(h.Regions) > maxRegions || (len(h.Regions) == 0) != (len(h.Description) == 0):
		return fmt.Errorf("%w: hello with %d memory regions and a description of %d bytes", ErrMessage, len(h.Regions), len(h.Description))
	}
	end := uint64(0)
	for _, r := range h.Regions {
		if r.Base < end || r.Size == 0 || r.Base%PageSize != 0 || r.Size%PageSize != 0 || r.Base+r.Size < r.Base {
			return fmt.Errorf("%w: hello with memory region %#x+%#x after %#x", ErrMessage, r.Base, r.Size, end)
		}
		end = r.Base + r.Size
	}
	return nil
}

// Hello sends h.
func (w *Writer) Hello(h *Hello) error {
	if err := h.Check(); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	return w.cbor(TypeHello, h)
}

// HelloAck sends a.
func (w *Writer) HelloAck(a *HelloAck) error { return w.cbor(TypeHelloAck, a) }

func (w *Writer) cbor(t Type, v any) error {
	b, err := canonicalEncoding.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %v: %w", t, err)
	}
	return w.frame(t, 0, 0, b)
}

// ParseHello reads the payload of a TypeHello frame. The result does not alias it.
func ParseHello(p []byte) (*Hello, error) {
	h := new(Hello)
	if err := strictDecoding.Unmarshal(p, h); err != nil {
		return nil, fmt.Errorf("%w: hello: %w", ErrMessage, err)
	}
	if err := h.Check(); err != nil {
		return nil, err
	}
	return h, nil
}

// ParseHelloAck reads the payload of a TypeHelloAck frame.
func ParseHelloAck(p []byte) (*HelloAck, error) {
	a := new(HelloAck)
	if err := strictDecoding.Unmarshal(p, a); err != nil {
		return nil, fmt.Errorf("%w: hello-ack: %w", ErrMessage, err)
	}
	if a.Node == "" || len(a.Node) > maxName {
		return nil, fmt.Errorf("%w: hello-ack with a node name of %d bytes", ErrMessage, len(a.Node))
	}
	return a, nil
}

// Refuse tells the peer why it can't have what it asked for.
func (w *Writer) Refuse(reason string) error { return w.text(TypeRefuse, reason) }

// Bye ends the connection, with the reason.
func (w *Writer) Bye(reason string) error { return w.text(TypeBye, reason) }

func (w *Writer) text(t Type, s string) error {
	if s == "" {
		s = "no reason given"
	}
	if len(s) > MaxText {
		s = s[:MaxText]
	}
	return w.frame(t, 0, 0, []byte(s))
}

// ParseText reads the payload of a TypeRefuse or TypeBye frame. What is not printable is replaced: the text goes to
// terminals and logs.
func ParseText(p []byte) string {
	return string(mapPrintable(p))
}

func mapPrintable(p []byte) []rune {
	rs := []rune(string(p))
	for i, r := range rs {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			rs[i] = '?'
		}
	}
	return rs
}

// Role sends a message of the role machine (an encoded role.Status), 1 to MaxRole bytes that only it can read.
func (w *Writer) Role(message []byte) error { return w.frame(TypeRole, 0, 0, message) }

// Kind tells a pre-copy round from a checkpoint.
type Kind uint8

const (
	// Round is a copy of memory while the guest runs: torn, superseded by what follows, applied as it arrives.
	Round Kind = 1 + iota
	// Checkpoint is a consistent state of the whole guest: staged, verified, acknowledged and applied whole.
	Checkpoint
)

// String is the kind's name in errors and logs.
func (k Kind) String() string {
	switch k {
	case Round:
		return "round"
	case Checkpoint:
		return "checkpoint"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// MaxStateTotal bounds the state (vCPUs, interrupt controllers, devices) of one checkpoint.
const MaxStateTotal = 64 << 20

// EpochBegin announces an epoch.
type EpochBegin struct {
	Kind  Kind
	State uint32 // bytes of state that follow; 0 in a round
	Pages uint64 // number of pages that follow, zero pages among them
}

const epochBeginSize = 16

// EpochBegin starts epoch n.
func (w *Writer) EpochBegin(n uint64, b EpochBegin) error {
	p := w.head[HeaderSize:]
	p[0], p[1], p[2], p[3] = byte(b.Kind), 0, 0, 0
	binary.LittleEndian.PutUint32(p[4:], b.State)
	binary.LittleEndian.PutUint64(p[8:], b.Pages)
	err := w.frame(TypeEpochBegin, n, epochBeginSize)
	w.digest = addDigest(0, w.crc)
	return err
}

// ParseEpochBegin reads the payload of a TypeEpochBegin frame.
func ParseEpochBegin(p []byte) (EpochBegin, error) {
	if len(p) != epochBeginSize || p[1]|p[2]|p[3] != 0 {
		return EpochBegin{}, fmt.Errorf("%w: epoch-begin of %d bytes", ErrMessage, len(p))
	}
	b := EpochBegin{Kind: Kind(p[0]), State: binary.LittleEndian.Uint32(p[4:]), Pages: binary.LittleEndian.Uint64(p[8:])}
	switch {
	case b.Kind != Round && b.Kind != Checkpoint:
		return EpochBegin{}, fmt.Errorf("%w: epoch-begin of %v", ErrMessage, b.Kind)
	case b.Kind == Round && b.State != 0, b.Kind == Checkpoint && b.State == 0, b.State > MaxStateTotal:
		return EpochBegin{}, fmt.Errorf("%w: %v with %d bytes of state", ErrMessage, b.Kind, b.State)
	}
	return b, nil
}

// State sends a piece of epoch n's state, 1 to MaxState bytes.
func (w *Writer) State(n uint64, piece []byte) error {
	err := w.frame(TypeState, n, 0, piece)
	w.digest = addDigest(w.digest, w.crc)
	return err
}

// EpochEnd closes an epoch with what the receiver must have got.
type EpochEnd struct {
	Pages  uint64 // as announced
	Zero   uint64 // how many of them were zero
	Digest uint32 // over the frames from epoch-begin on
}

const epochEndSize = 24

// EpochEnd ends epoch n with the writer's own Digest.
func (w *Writer) EpochEnd(n, pages, zero uint64) error {
	p := w.head[HeaderSize:]
	binary.LittleEndian.PutUint64(p[0:], pages)
	binary.LittleEndian.PutUint64(p[8:], zero)
	binary.LittleEndian.PutUint32(p[16:], w.digest)
	binary.LittleEndian.PutUint32(p[20:], 0)
	return w.frame(TypeEpochEnd, n, epochEndSize)
}

// ParseEpochEnd reads the payload of a TypeEpochEnd frame.
func ParseEpochEnd(p []byte) (EpochEnd, error) {
	if len(p) != epochEndSize || binary.LittleEndian.Uint32(p[20:]) != 0 {
		return EpochEnd{}, fmt.Errorf("%w: epoch-end of %d bytes", ErrMessage, len(p))
	}
	e := EpochEnd{
		Pages:  binary.LittleEndian.Uint64(p[0:]),
		Zero:   binary.LittleEndian.Uint64(p[8:]),
		Digest: binary.LittleEndian.Uint32(p[16:]),
	}
	if e.Zero > e.Pages {
		return EpochEnd{}, fmt.Errorf("%w: epoch-end with %d zero pages of %d", ErrMessage, e.Zero, e.Pages)
	}
	return e, nil
}

// Ack says that the standby holds all of an epoch.
type Ack struct {
	Kind         Kind
	Digest       uint32 // of the epoch, as the standby computed it
	ReceiveNanos uint64 // from epoch-begin to verified
	ApplyNanos   uint64 // of the epoch before
}

const ackSize = 24

// Ack acknowledges epoch n.
func (w *Writer) Ack(n uint64, a Ack) error {
	p := w.head[HeaderSize:]
	binary.LittleEndian.PutUint32(p[0:], a.Digest)
	binary.LittleEndian.PutUint32(p[4:], uint32(a.Kind))
	binary.LittleEndian.PutUint64(p[8:], a.ReceiveNanos)
	binary.LittleEndian.PutUint64(p[16:], a.ApplyNanos)
	return w.frame(TypeAck, n, ackSize)
}

// ParseAck reads the payload of a TypeAck frame.
func ParseAck(p []byte) (Ack, error) {
	if len(p) != ackSize {
		return Ack{}, fmt.Errorf("%w: ack of %d bytes", ErrMessage, len(p))
	}
	kind := binary.LittleEndian.Uint32(p[4:])
	if kind != uint32(Round) && kind != uint32(Checkpoint) {
		return Ack{}, fmt.Errorf("%w: ack of kind %d", ErrMessage, kind)
	}
	return Ack{
		Kind:         Kind(kind),
		Digest:       binary.LittleEndian.Uint32(p[0:]),
		ReceiveNanos: binary.LittleEndian.Uint64(p[8:]),
		ApplyNanos:   binary.LittleEndian.Uint64(p[16:]),
	}, nil
}

// Heartbeat is a sign of life. Any frame is one; this one has no other purpose.
type Heartbeat struct {
	Sequence uint64
}

const heartbeatSize = 8

// Heartbeat sends hb.
func (w *Writer) Heartbeat(hb Heartbeat) error {
	binary.LittleEndian.PutUint64(w.head[HeaderSize:], hb.Sequence)
	return w.frame(TypeHeartbeat, 0, heartbeatSize)
}

// ParseHeartbeat reads the payload of a TypeHeartbeat frame.
func ParseHeartbeat(p []byte) (Heartbeat, error) {
	if len(p) != heartbeatSize {
		return Heartbeat{}, fmt.Errorf("%w: heartbeat of %d bytes", ErrMessage, len(p))
	}
	return Heartbeat{Sequence: binary.LittleEndian.Uint64(p)}, nil
}
