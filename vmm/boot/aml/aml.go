package aml

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Term is a piece of AML, encoded. Terms are put together by the functions of this package.
type Term []byte

// Opcodes (ACPI 6.5 §20.3).
const (
	opZero    = 0x00
	opOne     = 0x01
	opName    = 0x08
	opByte    = 0x0a
	opWord    = 0x0b
	opDword   = 0x0c
	opString  = 0x0d
	opQword   = 0x0e
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	opDual    = 0x2e
	opMulti   = 0x2f
	opOnes    = 0xff

	opExtended = 0x5b
	opDevice   = 0x82 // after opExtended
)

// Scope opens an existing object's namespace (§19.6.122): what is in it is added there.
func Scope(path string, content ...Term) Term {
	return packaged(opcode{opScope}, append([]Term{namePath(path)}, content...))
}

// Device defines a device and what it holds (§19.6.31).
func Device(name string, content ...Term) Term {
	return packaged(opcode{opExtended, opDevice}, append([]Term{namePath(name)}, content...))
}

// Name defines a name for an object (§19.6.90).
func Name(name string, object Term) Term {
	return join(Term{opName}, namePath(name), object)
}

// Package is a list of objects (§19.6.101), at most 255.
func Package(elements ...Term) Term {
	if len(elements) > 255 {
		panic(fmt.Sprintf("aml: package of %d elements", len(elements)))
	}
	return packaged(opcode{opPackage}, append([]Term{{byte(len(elements))}}, elements...))
}

// Buffer is a list of bytes (§19.6.10).
func Buffer(content []byte) Term {
	return packaged(opcode{opBuffer}, []Term{Integer(uint64(len(content))), content})
}

// Integer is a constant in its shortest form.
func Integer(v uint64) Term {
	switch {
	case v == 0:
		return Term{opZero}
	case v == 1:
		return Term{opOne}
	case v == ^uint64(0):
		return Term{opOnes}
	case v <= 0xff:
		return Term{opByte, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16(Term{opWord}, uint16(v))
	case v <= 0xffff_ffff:
		return binary.LittleEndian.AppendUint32(Term{opDword}, uint32(v))
	default:
		return binary.LittleEndian.AppendUint64(Term{opQword}, v)
	}
}

// String is a constant of ASCII characters other than NUL.
func String(s string) Term {
	for i := range len(s) {
		if s[i] == 0 || s[i] > 0x7f {
			panic(fmt.Sprintf("aml: %q is not ASCII", s))
		}
	}
	return append(append(Term{opString}, s...), 0)
}

// EISAID is the integer form of a plug-and-play identifier, three capital letters and four hexadecimal digits
// (§19.3.4): five bits a letter and four bits a digit, most significant byte first.
func EISAID(id string) Term {
	valid := len(id) == 7
	var v uint32
	for i := 0; valid && i < len(id); i++ {
		switch c := id[i]; {
		case i < 3 && c >= 'A' && c <= 'Z':
			v = v<<5 | uint32(c-'A'+1)
		case i >= 3 && c >= '0' && c <= '9':
			v = v<<4 | uint32(c-'0')
		case i >= 3 && c >= 'A' && c <= 'F':
			v = v<<4 | uint32(c-'A'+10)
		default:
			valid = false
		}
	}
	if !valid {
		panic("aml: " + id + " is not a plug-and-play identifier")
	}
	// The term is a DWord constant, little endian; the identifier is written the other way round.
	return binary.BigEndian.AppendUint32(Term{opDword}, v)
}

type opcode []byte

// packaged encodes an object whose length comes after its opcode (PkgLength, §20.2.4).
func packaged(op opcode, parts []Term) Term {
	body := join(parts...)
	return join(Term(op), packageLength(len(body)), body)
}

// packageLength counts itself. One byte holds up to 63; otherwise the top two bits of the first say how many follow,
// and its low four bits are the least significant.
func packageLength(body int) Term {
	if body+1 <= 0x3f {
		return Term{byte(body + 1)}
	}
	for following := 1; following <= 3; following++ {
		n := body + 1 + following
		if n >= 1<<(4+8*following) {
			continue
		}
		t := Term{byte(following<<6 | n&0xf)}
		for n >>= 4; len(t) <= following; n >>= 8 {
			t = append(t, byte(n))
		}
		return t
	}
	panic(fmt.Sprintf("aml: object of %d bytes", body))
}

// namePath encodes a name such as "_HID", or a path such as `\_SB.PCI0` (§20.2.2). Segments shorter than four
// characters are padded with underscores.
func namePath(path string) Term {
	var t Term
	rest := path
	if strings.HasPrefix(rest, `\`) {
		t = append(t, '\\')
		rest = rest[1:]
	}
	segments := strings.Split(rest, ".")
	switch n := len(segments); {
	case n == 2:
		t = append(t, opDual)
	case n > 255:
		panic("aml: path too long: " + path)
	case n > 2:
		t = append(t, opMulti, byte(n))
	}
	for _, s := range segments {
		if !validSegment(s) {
			panic(fmt.Sprintf("aml: %q is not a name", path))
		}
		t = append(t, s...)
		t = append(t, "____"[len(s):]...)
	}
	return t
}

func validSegment(s string) bool {
	if len(s) == 0 || len(s) > 4 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func join(terms ...Term) Term {
	var t Term
	for _, part := range terms {
		t = append(t, part...)
	}
	return t
}
