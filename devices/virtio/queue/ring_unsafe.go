package queue

import (
	"sync/atomic"
	"unsafe"
)

// The index and event fields are 16 bits wide and shared with the guest's CPUs, and sync/atomic begins at 32 bits. So
// they are accessed through the aligned 32-bit word around them: fields are aligned to 2 bytes (Config.check), so each
// lies in one word, and guest memory begins and ends at page boundaries, so that word is guest memory too. The guest is
// little endian, as the host is (x86-64).

// load16 reads the field at offset off of ring, before anything that follows in program order.
func load16(ring []byte, off int) uint16 {
	word, shift := wordOf(ring, off)
	return uint16(atomic.LoadUint32(word) >> shift)
}

// store16 writes the field at offset off of ring, after everything that precedes and before everything that follows. The
// other half of the word may be the guest's and change meanwhile, hence the loop.
func store16(ring []byte, off int, v uint16) {
	word, shift := wordOf(ring, off)
	for {
		old := atomic.LoadUint32(word)
		if atomic.CompareAndSwapUint32(word, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

func wordOf(ring []byte, off int) (word *uint32, shift uint) {
	p := unsafe.Pointer(&ring[off])
	odd := uintptr(p) & 2
	return (*uint32)(unsafe.Add(p, -int(odd))), uint(odd) * 8
}
