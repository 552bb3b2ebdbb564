package netbuffer

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFrame is the longest frame that fits: a 12-byte vnet header and 64 KiB of TCP payload with all its headers (virtio 1.2
// §5.1.6.3.1 asks receivers for 65562 bytes; some room is left for VLAN tags).
const MaxFrame = 65600

// A record is a 16-byte header (length u32, zero u32, time of sending i64 in nanoseconds since the buffer's start) and the
// frame, padded to 16 bytes, never split around the ring's end. Where one does not fit before the end, a header with
// length skipToEnd fills the rest.
const (
	recordHeader = 16
	recordAlign  = 16
	skipToEnd    = 1<<32 - 1
	maxRecord    = recordHeader + (MaxFrame+recordAlign-1)/recordAlign*recordAlign
)

// ring is a byte ring of records in memory outside the Go heap. Positions only ever grow; a position modulo the length is
// an offset. It has no lock: Buffer guards head and tail, and the bytes between them change only with them.
type ring struct {
	mem        []byte
	head, tail uint64
}

// newRing maps capacity bytes, rounded up to pages, and makes them present.
func newRing(capacity int) (ring, error) {
	// Two records always fit, so that a frame can be added while the largest one is being written.
	capacity = max(capacity, 2*maxRecord)
	page := unix.Getpagesize()
	capacity = (capacity + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, capacity, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return ring{}, fmt.Errorf("map %d bytes for held frames: %w", capacity, err)
	}
	return ring{mem: mem}, nil
}

func (r *ring) unmap() error {
	mem := r.mem
	r.mem = nil
	return unix.Munmap(mem)
}

func (r *ring) capacity() uint64 { return uint64(len(r.mem)) }
func (r *ring) free() uint64     { return r.capacity() - (r.tail - r.head) }

// push copies a frame of size bytes, scattered over parts, behind the others. False: it does not fit, nothing was taken.
// A part that shrank since size was counted is not possible: slices carry their length.
func (r *ring) push(parts [][]byte, size int, at time.Duration) bool {
	need := uint64(recordHeader+size+recordAlign-1) / recordAlign * recordAlign
	offset := r.tail % r.capacity()
	skip := uint64(0)
	if rest := r.capacity() - offset; rest < need {
		skip = rest
	}
	if skip+need > r.free() {
		return false
	}
	if skip > 0 {
		binary.LittleEndian.PutUint32(r.mem[offset:], skipToEnd)
		r.tail += skip
		offset = 0
	}
	b := r.mem[offset : offset+need]
	binary.LittleEndian.PutUint32(b, uint32(size))
	binary.LittleEndian.PutUint64(b[8:], uint64(at))
	b = b[recordHeader:]
	for _, p := range parts {
		b = b[copy(b, p):]
	}
	r.tail += need
	return true
}

// first is the oldest frame, when it was sent, and the position behind it; it frees what a skip held. Nil: there is none.
// The frame stays valid until head moves past it.
func (r *ring) first() (frame []byte, at time.Duration, next uint64) {
	if r.head == r.tail {
		return nil, 0, r.head
	}
	offset := r.head % r.capacity()
	size := binary.LittleEndian.Uint32(r.mem[offset:])
	if size == skipToEnd {
		r.head += r.capacity() - offset
		offset = 0
		size = binary.LittleEndian.Uint32(r.mem)
	}
	at = time.Duration(binary.LittleEndian.Uint64(r.mem[offset+8:]))
	end := offset + recordHeader + uint64(size)
	next = r.head + (recordHeader+uint64(size)+recordAlign-1)/recordAlign*recordAlign
	return r.mem[offset+recordHeader : end : end], at, next
}
