package role

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Status is the one message that two role machines exchange: all that the
// sender knows and the receiver may need. It says what is, not what has
// happened, so that losing one costs only the time until the next.
type Status struct {
	From    Member // the sender
	To      Member // the receiver, as the sender knows it from the connection
	Seq     uint64 // grows with every status of the sender
	Heard   uint64 // Seq of the receiver's newest status that the sender has had; 0: none
	Ask     bool   // the sender waits for a status that was sent after this one
	Phase   Phase  // the sender's
	Session uint64 // the sync that the phase is about; the last one known otherwise
	Epoch   Epoch  // active: newest capture; twin: newest complete checkpoint
	Record  Record // the newest record that the sender knows
}

// String renders s on one line.
func (s Status) String() string {
	return fmt.Sprintf("%v %v session=%d epoch=%d knows %v", s.From, s.Phase, s.Session, s.Epoch, s.Record)
}

// ErrStatus is wrapped by the errors of ParseStatus.
var ErrStatus = errors.New("invalid role status")

// statusVersion is the first byte of an encoded Status. Zero is invalid.
const statusVersion = 1

// Append appends the encoding of s to b, for ParseStatus: a version byte, the
// phase, one for Ask (0 or 1), and then all numbers big-endian and all names with a one-byte length,
// of them the record's last.
func (s Status) Append(b []byte) []byte {
	ask := byte(0)
	if s.Ask {
		ask = 1
	}
	b = append(b, statusVersion, byte(s.Phase), ask)
	b = binary.BigEndian.AppendUint64(b, s.Seq)
	b = binary.BigEndian.AppendUint64(b, s.Heard)
	b = binary.BigEndian.AppendUint64(b, s.Session)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Epoch))
	b = binary.BigEndian.AppendUint64(b, s.Record.Revision)
	b = binary.BigEndian.AppendUint64(b, s.Record.Generation)
	for _, m := range [...]Member{s.From, s.To, s.Record.Active, s.Record.Standby} {
		b = binary.BigEndian.AppendUint64(b, m.Incarnation)
		b = append(b, byte(len(m.Node)))
		b = append(b, m.Node...)
	}
	return b
}

// ParseStatus is the reverse of Append. It refuses, with an error that wraps
// ErrStatus, whatever Append can't have made: another version, wrong length,
// unknown phases, members and records that can't be.
func ParseStatus(b []byte) (Status, error) {
	const fixed = 3 + 6*8
	if len(b) < fixed {
		return Status{}, fmt.Errorf("%w: %d bytes are too few", ErrStatus, len(b))
	}
	if b[0] != statusVersion {
		return Status{}, fmt.Errorf("%w: version %d, want %d", ErrStatus, b[0], statusVersion)
	}
	if b[2] > 1 {
		return Status{}, fmt.Errorf("%w: flag %d", ErrStatus, b[2])
	}
	s := Status{
		Phase:   Phase(b[1]),
		Ask:     b[2] == 1,
		Seq:     binary.BigEndian.Uint64(b[3:]),
		Heard:   binary.BigEndian.Uint64(b[11:]),
		Session: binary.BigEndian.Uint64(b[19:]),
		Epoch:   Epoch(binary.BigEndian.Uint64(b[27:])),
		Record: Record{
			Revision:   binary.BigEndian.Uint64(b[35:]),
			Generation: binary.BigEndian.Uint64(b[43:]),
		},
	}
	rest := b[fixed:]
	for _, m := range [...]*Member{&s.From, &s.To, &s.Record.Active, &s.Record.Standby} {
		var err error
		if rest, err = m.parse(rest); err != nil {
			return Status{}, err
		}
	}
	if len(rest) != 0 {
		return Status{}, fmt.Errorf("%w: %d bytes too many", ErrStatus, len(rest))
	}
	return s, s.validate()
}

func (m *Member) parse(b []byte) ([]byte, error) {
	const fixed = 8 + 1
	if len(b) < fixed || len(b) < fixed+int(b[8]) {
		return nil, fmt.Errorf("%w: a member is cut off", ErrStatus)
	}
	m.Incarnation = binary.BigEndian.Uint64(b)
	m.Node = Node(b[fixed : fixed+int(b[8])])
	return b[fixed+int(b[8]):], nil
}

func (s Status) validate() error {
	if !s.Phase.valid() {
		return fmt.Errorf("%w: phase %d is unknown", ErrStatus, s.Phase)
	}
	if err := s.From.validate(); err != nil {
		return fmt.Errorf("%w: sender: %w", ErrStatus, err)
	}
	if err := s.To.validate(); err != nil {
		return fmt.Errorf("%w: receiver: %w", ErrStatus, err)
	}
	if err := s.Record.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrStatus, err)
	}
	return nil
}
