package aml

import (
	"bytes"
	"testing"
)

// The encodings are worked out by hand from ACPI 6.5 §20.2 and agree with what iasl produces.
func TestTerms(t *testing.T) {
	for _, c := range []struct {
		name string
		got  Term
		want []byte
	}{
		{"zero", Integer(0), []byte{0x00}},
		{"one", Integer(1), []byte{0x01}},
		{"ones", Integer(^uint64(0)), []byte{0xff}},
		{"byte", Integer(0xfe), []byte{0x0a, 0xfe}},
		{"word", Integer(0x1234), []byte{0x0b, 0x34, 0x12}},
		{"double word", Integer(0x12345678), []byte{0x0c, 0x78, 0x56, 0x34, 0x12}},
		{"quad word", Integer(0x1_0000_0000), []byte{0x0e, 0, 0, 0, 0, 1, 0, 0, 0}},
		{"string", String("AB"), []byte{0x0d, 'A', 'B', 0}},
		{"EISA", EISAID("PNP0A03"), []byte{0x0c, 0x41, 0xd0, 0x0a, 0x03}},
		{"name", Name("X", Integer(0)), []byte{0x08, 'X', '_', '_', '_', 0x00}},
		{"two segments", Scope(`\_SB.PCI0`), []byte("\x10\x0b\\\x2e_SB_PCI0")},
		{"three segments", Scope("AAAA.BBBB.C"), []byte("\x10\x0f\x2f\x03AAAABBBBC___")},
		{"device", Device("COM1", Integer(1)), []byte("\x5b\x82\x06COM1\x01")},
		{"package", Package(Integer(5), Integer(0)), []byte{0x12, 0x05, 0x02, 0x0a, 0x05, 0x00}},
		{"buffer", Buffer([]byte{7, 8}), []byte{0x11, 0x05, 0x0a, 0x02, 7, 8}},
		{
			"resources", ResourceTemplate(Ports(0x3f8, 8), IRQ(4)),
			[]byte{0x11, 0x10, 0x0a, 0x0d, 0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x22, 0x10, 0, 0x79, 0},
		},
		{
			"port window", Term(PortWindow(0xd00, 0xffff)),
			[]byte{0x88, 13, 0, 1, 0x0c, 3, 0, 0, 0, 0x0d, 0xff, 0xff, 0, 0, 0, 0xf3},
		},
		{
			"memory window", Term(MemoryWindow(0xc0000000, 0xdfffffff)),
			[]byte{0x87, 23, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0xdf, 0, 0, 0, 0, 0, 0, 0, 0x20},
		},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s is\n % x, want\n % x", c.name, c.got, c.want)
		}
	}
}

func TestPackageLength(t *testing.T) {
	for _, c := range []struct {
		body int
		want []byte
	}{
		{0, []byte{0x01}},
		{0x3e, []byte{0x3f}},
		{0x3f, []byte{0x41, 0x04}},
		{0xffd, []byte{0x4f, 0xff}},
		{0xffe, []byte{0x81, 0x00, 0x01}},
		{0xffffc, []byte{0x8f, 0xff, 0xff}},
		{0xffffd, []byte{0xc1, 0x00, 0x00, 0x01}},
	} {
		if got := packageLength(c.body); !bytes.Equal(got, c.want) {
			t.Errorf("%#x bytes: % x, want % x", c.body, got, c.want)
		}
	}
}

func TestMistakesPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"long name":         func() { Name("ABCDE", nil) },
		"name with a digit": func() { Name("1ABC", nil) },
		"empty segment":     func() { Scope(`\_SB..A`) },
		"lower case":        func() { Device("abcd") },
		"EISA":              func() { EISAID("PNP0G03") },
		"string":            func() { String("ä") },
		"interrupt":         func() { IRQ(16) },
		"package":           func() { Package(make([]Term, 256)...) },
		"window":            func() { PortWindow(0, 0xffff) },
		"object":            func() { packageLength(1 << 28) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("was encoded")
				}
			}()
			f()
		})
	}
}
