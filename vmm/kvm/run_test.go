package kvm

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// page makes a vCPU out of a run page alone.
func page(set func(p []byte)) *VCPU {
	c := &VCPU{run: make([]byte, 8192)}
	set(c.run)
	return c
}

func TestDecodeIO(t *testing.T) {
	io := func(direction, size uint8, count uint32, offset uint64) *VCPU {
		return page(func(p []byte) {
			p[runIODirection], p[runIOSize] = direction, size
			binary.LittleEndian.PutUint16(p[runIOPort:], 0x3f8)
			binary.LittleEndian.PutUint32(p[runIOCount:], count)
			binary.LittleEndian.PutUint64(p[runIODataOffset:], offset)
			copy(p[4096:], "0123456789")
		})
	}
	for _, c := range []struct {
		name string
		cpu  *VCPU
		want string // the data; empty: refused
	}{
		{"one byte", io(1, 1, 1, 4096), "0"},
		{"a string", io(1, 2, 5, 4096), "0123456789"},
		{"up to the end", io(0, 4, 1024, 4096), "0123"},
		{"beyond the end", io(0, 4, 1025, 4096), ""},
		{"offset beyond the page", io(0, 1, 1, 8193), ""},
		{"offset that wraps", io(0, 1, 1, ^uint64(0)), ""},
		{"count that wraps", io(0, 255, 0xffffffff, 4096), ""},
	} {
		got, err := c.cpu.IO()
		if (err == nil) != (c.want != "") || !bytes.HasPrefix(got.Data, []byte(c.want)) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if err == nil && (got.Port != 0x3f8 || len(got.Data) != got.Size*got.Count) {
			t.Errorf("%s: port %#x, %d bytes", c.name, got.Port, len(got.Data))
		}
	}
}

func TestDecodeMMIO(t *testing.T) {
	for length := range uint32(10) {
		c := page(func(p []byte) {
			binary.LittleEndian.PutUint64(p[runMMIOAddress:], 0xd0000004)
			copy(p[runMMIOData:], "abcdefgh")
			binary.LittleEndian.PutUint32(p[runMMIOLength:], length)
			p[runMMIOIsWrite] = 1
		})
		got, err := c.MMIO()
		if want := length >= 1 && length <= 8; (err == nil) != want {
			t.Errorf("%d bytes: %v", length, err)
		}
		if err == nil && (!got.Write || got.Address != 0xd0000004 || string(got.Data) != "abcdefgh"[:length]) {
			t.Errorf("%d bytes: %+v", length, got)
		}
	}
}

func TestDecodeInternalError(t *testing.T) {
	c := page(func(p []byte) {
		binary.LittleEndian.PutUint32(p[runUnion:], uint32(ErrorEmulation))
		binary.LittleEndian.PutUint32(p[runUnion+4:], 1000) // more than there is room for
		binary.LittleEndian.PutUint64(p[runUnion+8:], 7)
	})
	suberror, data := c.InternalError()
	if suberror != ErrorEmulation || len(data) != 16 || data[0] != 7 {
		t.Errorf("%v, %v", suberror, data)
	}
}
