package state

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrTruncated is wrapped by the error of a read past the end of the input.
var ErrTruncated = errors.New("state is truncated")

// Decoder reads back what an Encoder wrote. Its first error sticks: later reads give zero values, so that a reader can
// check once, with Err or Finish, before it uses what it read.
type Decoder struct {
	b    []byte
	off  int
	name string // of the section, for errors
	err  error
}

// NewDecoder reads from b, which it does not copy.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b, name: "state"} }

// Section opens the next section, which must have this name and a version of at least 1 and at most maxVersion. It
// returns the version and a decoder of the section's content; this decoder goes on after the section.
func (d *Decoder) Section(name string, maxVersion uint16) (uint16, *Decoder) {
	at := d.off
	got := string(d.take(int(d.U8())))
	version := d.U16()
	content := d.take(int(d.U32()))
	sub := &Decoder{b: content, name: name}
	switch {
	case d.err != nil:
		d.err = fmt.Errorf("section %q: %w", name, d.err)
	case got != name:
		d.fail("section %q expected at offset %d, found %q", name, at, got)
	case version == 0 || version > maxVersion:
		d.fail("section %q has version %d, this Pollux knows 1 to %d", name, version, maxVersion)
	}
	sub.err = d.err
	return version, sub
}

// Err is the first error, nil if there was none.
func (d *Decoder) Err() error { return d.err }

// Finish is Err, and an error too if anything is left unread: a section that is longer than its reader knows was
// written by something else.
func (d *Decoder) Finish() error {
	if d.err == nil && d.off != len(d.b) {
		d.fail("%d bytes left over", len(d.b)-d.off)
	}
	return d.err
}

// Failf records that a value was read that cannot be, and returns the decoder's error (the first one).
func (d *Decoder) Failf(format string, args ...any) error {
	d.fail(format, args...)
	return d.err
}

// Len is the number of bytes left.
func (d *Decoder) Len() int { return len(d.b) - d.off }

// U8 reads one byte.
func (d *Decoder) U8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

// U16 reads two bytes, little endian.
func (d *Decoder) U16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

// U32 reads four bytes, little endian.
func (d *Decoder) U32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// U64 reads eight bytes, little endian.
func (d *Decoder) U64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// I64 reads eight bytes, little endian, two's complement.
func (d *Decoder) I64() int64 { return int64(d.U64()) }

// Bool reads one byte, which must be 0 or 1.
func (d *Decoder) Bool() bool {
	v := d.U8()
	if v > 1 {
		d.fail("offset %d: %d is not a boolean", d.off-1, v)
	}
	return v == 1
}

// Raw fills p.
func (d *Decoder) Raw(p []byte) {
	if q := d.take(len(p)); q != nil {
		copy(p, q)
	}
}

// Blob reads a length and that many bytes, at most limit. The result aliases the input.
func (d *Decoder) Blob(limit int) []byte {
	n := d.U32()
	if d.err == nil && uint64(n) > uint64(limit) {
		d.fail("offset %d: blob of %d bytes, at most %d allowed", d.off-4, n, limit)
	}
	return d.take(int(n))
}

// String reads a Blob of at most limit bytes as a string.
func (d *Decoder) String(limit int) string { return string(d.Blob(limit)) }

func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.b)-d.off {
		d.err = fmt.Errorf("%s: %w: %d bytes wanted at offset %d of %d", d.name, ErrTruncated, n, d.off, len(d.b))
		return nil
	}
	p := d.b[d.off : d.off+n : d.off+n]
	d.off += n
	return p
}

func (d *Decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %s", d.name, fmt.Sprintf(format, args...))
	}
}
