package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Version is the protocol's version. Frames of another one are refused: a pair is always upgraded one host at a time,
// and a switchover between versions goes over a Hello that says so.
const Version = 1

const (
	// HeaderSize is the length of a frame's header.
	HeaderSize = 32

	// PageSize is the unit of memory on the wire, whatever the host's page is.
	PageSize = 4096

	magic = 'P' | 'L'<<8 | 'X'<<16 | 'W'<<24

	crcOffset = 12
)

// Bounds of payloads. MaxPagesData is a compromise: large enough that the header, the checksum and the system call are noise,
// small enough that a heartbeat never waits long behind it.
const (
	MaxPagesData = 1 << 20
	MaxRuns      = 4096
	MaxState     = 1 << 20
	MaxRole      = 1 << 11
	MaxText      = 1 << 10
	MaxHello     = 1 << 18

	// MaxPagesPayload is the longest payload of a Pages frame.
	MaxPagesPayload = pagesHeadSize + MaxRuns*runSize + MaxPagesData
)

// Type says what a frame carries.
type Type uint8

// The types of frames. Zero is invalid.
const (
	TypeHello Type = 1 + iota
	TypeHelloAck
	TypeRefuse
	TypeEpochBegin
	TypePages
	TypeState
	TypeEpochEnd
	TypeAck
	TypeHeartbeat
	TypeRole
	TypeBye
	typeEnd
)

var typeNames = [typeEnd]string{
	TypeHello: "hello", TypeHelloAck: "hello-ack", TypeRefuse: "refuse", TypeEpochBegin: "epoch-begin", TypePages: "pages",
	TypeState: "state", TypeEpochEnd: "epoch-end", TypeAck: "ack", TypeHeartbeat: "heartbeat", TypeRole: "role", TypeBye: "bye",
}

// payloadBounds are the least and the greatest payload of each type.
var payloadBounds = [typeEnd]struct{ min, max uint32 }{
	TypeHello:      {1, MaxHello},
	TypeHelloAck:   {1, MaxText},
	TypeRefuse:     {1, MaxText},
	TypeEpochBegin: {epochBeginSize, epochBeginSize},
	TypePages:      {pagesHeadSize + runSize, MaxPagesPayload},
	TypeState:      {1, MaxState},
	TypeEpochEnd:   {epochEndSize, epochEndSize},
	TypeAck:        {ackSize, ackSize},
	TypeHeartbeat:  {heartbeatSize, heartbeatSize},
	TypeRole:       {1, MaxRole},
	TypeBye:        {1, MaxText},
}

// String is the type's name in errors and logs.
func (t Type) String() string {
	if t == 0 || t >= typeEnd {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return typeNames[t]
}

// ofEpoch reports whether frames of this type belong to an epoch, and so to a session.
func (t Type) ofEpoch() bool { return t >= TypeEpochBegin && t <= TypeAck }

// Errors that a frame or a message can be refused with. Each is wrapped with what was wrong.
var (
	ErrFrame    = errors.New("not a valid frame")
	ErrChecksum = errors.New("checksum does not match")
	ErrVersion  = errors.New("another version of the protocol")
	ErrMessage  = errors.New("not a valid message")
	ErrSequence = errors.New("frame out of sequence")
)

// VersionError is the refusal of a frame of another protocol version. It is an ErrVersion.
type VersionError struct {
	Theirs uint16
}

// Error names both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the peer speaks version %d of the checkpoint protocol, this Pollux speaks version %d", e.Theirs, Version)
}

// Is makes errors.Is(err, ErrVersion) true.
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// Header is what precedes every payload.
type Header struct {
	Type    Type
	Length  uint32 // of the payload, in bytes
	Session uint64 // the sync that the frame belongs to; zero where it belongs to none
	Epoch   uint64 // likewise

	crc uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// put writes the header into b[:HeaderSize] with a zero checksum.
func (h *Header) put(b []byte) {
	_ = b[HeaderSize-1]
	binary.LittleEndian.PutUint32(b[0:], magic)
	binary.LittleEndian.PutUint16(b[4:], Version)
	b[6] = byte(h.Type)
	b[7] = 0
	binary.LittleEndian.PutUint32(b[8:], h.Length)
	binary.LittleEndian.PutUint32(b[crcOffset:], 0)
	binary.LittleEndian.PutUint64(b[16:], h.Session)
	binary.LittleEndian.PutUint64(b[24:], h.Epoch)
}

// parseHeader checks b[:HeaderSize] and clears its checksum field, so that b is what the checksum was computed over.
func parseHeader(b []byte) (Header, error) {
	_ = b[HeaderSize-1]
	if m := binary.LittleEndian.Uint32(b[0:]); m != magic {
		return Header{}, fmt.Errorf("%w: begins with %#08x, not with the magic number", ErrFrame, m)
	}
	// The version comes before everything else: the rest of the layout is what it may change.
	if v := binary.LittleEndian.Uint16(b[4:]); v != Version {
		return Header{}, &VersionError{Theirs: v}
	}
	h := Header{
		Type:    Type(b[6]),
		Length:  binary.LittleEndian.Uint32(b[8:]),
		Session: binary.LittleEndian.Uint64(b[16:]),
		Epoch:   binary.LittleEndian.Uint64(b[24:]),
		crc:     binary.LittleEndian.Uint32(b[crcOffset:]),
	}
	if h.Type == 0 || h.Type >= typeEnd {
		return Header{}, fmt.Errorf("%w: unknown %v", ErrFrame, h.Type)
	}
	if b[7] != 0 {
		return Header{}, fmt.Errorf("%w: %v has unknown flags %#x", ErrFrame, h.Type, b[7])
	}
	if bound := payloadBounds[h.Type]; h.Length < bound.min || h.Length > bound.max {
		return Header{}, fmt.Errorf("%w: %v of %d bytes, must be %d to %d", ErrFrame, h.Type, h.Length, bound.min, bound.max)
	}
	binary.LittleEndian.PutUint32(b[crcOffset:], 0)
	return h, nil
}
