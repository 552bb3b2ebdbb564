package state

import "encoding/binary"

// Encoder appends values to a buffer. The zero value is ready; Reset gives it a buffer to reuse.
type Encoder struct {
	b []byte
}

// Reset makes the encoder append to b (usually a buffer cut to length 0, kept from the checkpoint before).
func (e *Encoder) Reset(b []byte) { e.b = b }

// Bytes is what has been appended, including what Reset was given.
func (e *Encoder) Bytes() []byte { return e.b }

// Section is an open section; see Encoder.Begin.
type Section struct {
	lengthAt int
}

// Begin opens a section: name (at most 255 bytes), version, and a length that End fills in. Sections nest.
func (e *Encoder) Begin(name string, version uint16) Section {
	if len(name) > 255 {
		panic("state: section name longer than 255 bytes: " + name) // a constant in our own code, never input
	}
	e.b = append(e.b, byte(len(name)))
	e.b = append(e.b, name...)
	e.U16(version)
	s := Section{lengthAt: len(e.b)}
	e.U32(0)
	return s
}

// End closes the section that was opened last.
func (e *Encoder) End(s Section) {
	binary.LittleEndian.PutUint32(e.b[s.lengthAt:], uint32(len(e.b)-s.lengthAt-4))
}

// U8 appends one byte.
func (e *Encoder) U8(v uint8) { e.b = append(e.b, v) }

// U16 appends two bytes, little endian.
func (e *Encoder) U16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }

// U32 appends four bytes, little endian.
func (e *Encoder) U32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }

// U64 appends eight bytes, little endian.
func (e *Encoder) U64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }

// I64 appends eight bytes, little endian, two's complement.
func (e *Encoder) I64(v int64) { e.U64(uint64(v)) }

// Bool appends one byte, 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.U8(1)
	} else {
		e.U8(0)
	}
}

// Raw appends p as it is; the reader must know its length.
func (e *Encoder) Raw(p []byte) { e.b = append(e.b, p...) }

// Blob appends the length of p (four bytes) and p.
func (e *Encoder) Blob(p []byte) {
	e.U32(uint32(len(p)))
	e.Raw(p)
}

// String appends s as a Blob.
func (e *Encoder) String(s string) {
	e.U32(uint32(len(s)))
	e.b = append(e.b, s...)
}
