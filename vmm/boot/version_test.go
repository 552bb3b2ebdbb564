package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

func TestLinuxVersion(t *testing.T) {
	const at = 0x500
	with := func(pointer uint16, text string) []byte {
		b := bzImage(4096)
		binary.LittleEndian.PutUint16(b[kernelVersionAt:], pointer)
		copy(b[at:], text)
		return b
	}
	for _, c := range []struct {
		name  string
		image []byte
		want  string // empty: refused
	}{
		{"Debian's", with(at-0x200, "6.1.0-42-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\x00"), "Linux 6.1.0-42-cloud-amd64"},
		{"silent", with(0, ""), "Linux"},
		{"without an end", with(at-0x200, string(bytes.Repeat([]byte("7"), 4000))), "Linux " + string(bytes.Repeat([]byte("7"), maxVersionText))},
		{"no text", with(at-0x200, "\x1b[2J\x00"), ""},
		{"outside", with(0xffff, ""), ""},
		{"cut", with(at-0x200, "")[:0x208], ""},
		{"no kernel", []byte("#!/bin/sh"), ""},
	} {
		got, err := linuxVersion(bytes.NewReader(c.image))
		if got != c.want || (c.want == "") != errors.Is(err, ErrNotKernel) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}
