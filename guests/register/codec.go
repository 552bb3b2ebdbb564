package register

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The service's size and the lengths of its messages in bytes.
const (
	Port        = 7777
	Registers   = 256
	RequestSize = 40
	AnswerSize  = 48
)

const (
	requestMagic = "PLXQ"
	answerMagic  = "PLXA"
)

// ErrMalformed is wrapped by every error of ParseRequest and ParseAnswer.
var ErrMalformed = errors.New("malformed register message")

// Op says what a request does to its register.
type Op uint8

// The operations. CompareAndSwap sets the register to the request's value if it holds the expected one.
const (
	Read           Op = 1
	Write          Op = 2
	CompareAndSwap Op = 3
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case CompareAndSwap:
		return "cas"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Status says how the server took a request.
type Status uint8

// The statuses of an answer.
const (
	OK         Status = 0
	BadRequest Status = 1
	Mismatch   Status = 2 // a CompareAndSwap whose register did not hold the expected value; nothing was changed
)

func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case BadRequest:
		return "bad request"
	case Mismatch:
		return "mismatch"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Request asks for one operation on one register. Client and ID come back in the answer unchanged.
type Request struct {
	Op       Op
	Register uint16
	Client   uint64
	ID       uint64
	Value    uint64 // for Write and CompareAndSwap
	Expect   uint64 // for CompareAndSwap
}

// Answer is what the server says to one request.
type Answer struct {
	Op       Op
	Status   Status
	Register uint16
	Client   uint64
	ID       uint64
	Value    uint64 // the register after the operation
	Sequence uint64 // 1 for the server's first answer, one more for each further one
	Boot     uint64 // chosen at random when the server started
}

// AppendRequest appends the RequestSize bytes of r to b.
func AppendRequest(b []byte, r Request) []byte {
	b = append(b, requestMagic...)
	b = append(b, byte(r.Op), 0)
	b = binary.BigEndian.AppendUint16(b, r.Register)
	b = binary.BigEndian.AppendUint64(b, r.Client)
	b = binary.BigEndian.AppendUint64(b, r.ID)
	b = binary.BigEndian.AppendUint64(b, r.Value)
	return binary.BigEndian.AppendUint64(b, r.Expect)
}

// ParseRequest decodes a message of exactly RequestSize bytes. An unknown operation or a register out of range is not
// malformed: the server answers it with BadRequest.
func ParseRequest(b []byte) (Request, error) {
	if len(b) != RequestSize {
		return Request{}, fmt.Errorf("%w: request of %d bytes, not %d", ErrMalformed, len(b), RequestSize)
	}
	if string(b[:4]) != requestMagic {
		return Request{}, fmt.Errorf("%w: request starts with %q, not %q", ErrMalformed, b[:4], requestMagic)
	}
	if b[5] != 0 {
		return Request{}, fmt.Errorf("%w: request's reserved byte is %#x", ErrMalformed, b[5])
	}
	return Request{
		Op:       Op(b[4]),
		Register: binary.BigEndian.Uint16(b[6:]),
		Client:   binary.BigEndian.Uint64(b[8:]),
		ID:       binary.BigEndian.Uint64(b[16:]),
		Value:    binary.BigEndian.Uint64(b[24:]),
		Expect:   binary.BigEndian.Uint64(b[32:]),
	}, nil
}

// AppendAnswer appends the AnswerSize bytes of a to b.
func AppendAnswer(b []byte, a Answer) []byte {
	b = append(b, answerMagic...)
	b = append(b, byte(a.Op), byte(a.Status))
	b = binary.BigEndian.AppendUint16(b, a.Register)
	b = binary.BigEndian.AppendUint64(b, a.Client)
	b = binary.BigEndian.AppendUint64(b, a.ID)
	b = binary.BigEndian.AppendUint64(b, a.Value)
	b = binary.BigEndian.AppendUint64(b, a.Sequence)
	return binary.BigEndian.AppendUint64(b, a.Boot)
}

// ParseAnswer decodes a message of exactly AnswerSize bytes. Unknown statuses, and a sequence number of zero, which no
// server sends, are malformed.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) != AnswerSize {
		return Answer{}, fmt.Errorf("%w: answer of %d bytes, not %d", ErrMalformed, len(b), AnswerSize)
	}
	if string(b[:4]) != answerMagic {
		return Answer{}, fmt.Errorf("%w: answer starts with %q, not %q", ErrMalformed, b[:4], answerMagic)
	}
	a := Answer{
		Op:       Op(b[4]),
		Status:   Status(b[5]),
		Register: binary.BigEndian.Uint16(b[6:]),
		Client:   binary.BigEndian.Uint64(b[8:]),
		ID:       binary.BigEndian.Uint64(b[16:]),
		Value:    binary.BigEndian.Uint64(b[24:]),
		Sequence: binary.BigEndian.Uint64(b[32:]),
		Boot:     binary.BigEndian.Uint64(b[40:]),
	}
	if a.Status > Mismatch {
		return Answer{}, fmt.Errorf("%w: answer with %v", ErrMalformed, a.Status)
	}
	if a.Sequence == 0 {
		return Answer{}, fmt.Errorf("%w: answer with sequence number 0", ErrMalformed)
	}
	return a, nil
}

// Answers reports whether a is the answer to r: the same operation, register, client and id.
func (a Answer) Answers(r Request) bool {
	return a.Op == r.Op && a.Register == r.Register && a.Client == r.Client && a.ID == r.ID
}
