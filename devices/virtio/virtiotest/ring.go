package virtiotest

import (
	"encoding/binary"
	"sync/atomic"
)

// Buffer is a piece of guest memory.
type Buffer struct {
	Addr uint64
	Len  uint32
}

// Ring is the driver's side of a split virtqueue (virtio 1.2 §2.7).
type Ring struct {
	d     *Driver
	Index int
	Size  uint16

	desc, avail, used uint64
	notify            uint64
	free              []uint16            // descriptors
	chains            map[uint16][]uint16 // descriptors in use, by head
	availIdx          uint16
	kicked            uint16 // availIdx at the last Kick
	lastUsed          uint16
}

// Descriptor flags (§2.7.5).
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4
)

// order is a full memory barrier when it is added to: between writing an index and reading what the device wrote.
var order atomic.Uint32

func newRing(d *Driver, index, size uint16) *Ring {
	r := &Ring{d: d, Index: int(index), Size: size, chains: map[uint16][]uint16{}}
	n := uint64(size)
	r.desc = d.Alloc(16*n, 16)
	r.avail = d.Alloc(6+2*n, 2)
	r.used = d.Alloc(6+8*n, 4)
	for i := range size {
		r.free = append(r.free, size-1-i)
	}
	return r
}

// Parts are the guest physical addresses of the descriptor table, the available and the used ring.
func (r *Ring) Parts() (desc, avail, used uint64) { return r.desc, r.avail, r.used }

// WriteDescriptor writes descriptor i of a table.
func (r *Ring) WriteDescriptor(table uint64, i uint16, b Buffer, flags, next uint16) {
	p := r.d.Bytes(table+16*uint64(i), 16)
	binary.LittleEndian.PutUint64(p, b.Addr)
	binary.LittleEndian.PutUint32(p[8:], b.Len)
	binary.LittleEndian.PutUint16(p[12:], flags)
	binary.LittleEndian.PutUint16(p[14:], next)
}

// Add makes a chain available: buffers for the device to read, then buffers for it to write. It reports the head, and false
// when there are not enough descriptors.
func (r *Ring) Add(out, in []Buffer) (head uint16, ok bool) {
	n := len(out) + len(in)
	if n == 0 || n > len(r.free) {
		return 0, false
	}
	chain := make([]uint16, n)
	for i := range chain {
		chain[i] = r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
	}
	for i, b := range append(append([]Buffer(nil), out...), in...) {
		flags, next := uint16(0), uint16(0)
		if i >= len(out) {
			flags |= DescWrite
		}
		if i < n-1 {
			flags, next = flags|DescNext, chain[i+1]
		}
		r.WriteDescriptor(r.desc, chain[i], b, flags, next)
	}
	r.chains[chain[0]] = chain
	r.Offer(chain[0])
	return chain[0], true
}

// AddIndirect is Add with all buffers in an indirect table.
func (r *Ring) AddIndirect(out, in []Buffer) (head uint16, ok bool) {
	n := len(out) + len(in)
	if n == 0 || len(r.free) == 0 {
		return 0, false
	}
	table := r.d.Alloc(16*uint64(n), 16)
	for i, b := range append(append([]Buffer(nil), out...), in...) {
		flags := uint16(0)
		if i >= len(out) {
			flags |= DescWrite
		}
		if i < n-1 {
			flags |= DescNext
		}
		r.WriteDescriptor(table, uint16(i), b, flags, uint16(i+1))
	}
	head = r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.WriteDescriptor(r.desc, head, Buffer{Addr: table, Len: 16 * uint32(n)}, DescIndirect, 0)
	r.chains[head] = []uint16{head}
	r.Offer(head)
	return head, true
}

// Offer puts a head into the available ring.
func (r *Ring) Offer(head uint16) {
	avail := r.d.Bytes(r.avail, 6+2*uint64(r.Size))
	binary.LittleEndian.PutUint16(avail[4+2*(r.availIdx%r.Size):], head)
	r.availIdx++
	order.Add(1)
	binary.LittleEndian.PutUint16(avail[2:], r.availIdx)
}

// SetAvailIndex writes the available ring's index as it is given.
func (r *Ring) SetAvailIndex(v uint16) {
	binary.LittleEndian.PutUint16(r.d.Bytes(r.avail+2, 2), v)
}

// Kick notifies the device, if it asked for that (§2.7.10, §2.7.13). It reports whether it did.
func (r *Ring) Kick() bool {
	order.Add(1)
	old := r.kicked
	r.kicked = r.availIdx
	if r.d.Features&FeatureEventIdx != 0 {
		event := binary.LittleEndian.Uint16(r.d.Bytes(r.used+4+8*uint64(r.Size), 2))
		if r.availIdx-event-1 >= r.availIdx-old {
			return false
		}
	} else if binary.LittleEndian.Uint16(r.d.Bytes(r.used, 2))&1 != 0 {
		return false
	}
	r.Notify()
	return true
}

// Notify notifies the device whether it asked for that or not.
func (r *Ring) Notify() { r.d.Write(r.notify, 2, uint64(r.Index)) }

// NotifyAddress is where the device is notified of this queue.
func (r *Ring) NotifyAddress() uint64 { return r.notify }

// Used takes the next used chain: its head, and how many bytes the device wrote. False: there is none.
func (r *Ring) Used() (head uint16, n uint32, ok bool) {
	used := r.d.Bytes(r.used, 6+8*uint64(r.Size))
	if binary.LittleEndian.Uint16(used[2:]) == r.lastUsed {
		return 0, 0, false
	}
	order.Add(1)
	element := used[4+8*int(r.lastUsed%r.Size):]
	id := binary.LittleEndian.Uint32(element)
	chain, known := r.chains[uint16(id)]
	if id > 0xffff || !known {
		r.d.t.Fatalf("queue %d: used element %d names chain %d, which is not available", r.Index, r.lastUsed, id)
	}
	delete(r.chains, uint16(id))
	r.free = append(r.free, chain...)
	r.lastUsed++
	return uint16(id), binary.LittleEndian.Uint32(element[4:]), true
}

// WantInterrupt asks for an interrupt at the next used chain, or with event indexes after n more.
func (r *Ring) WantInterrupt(n uint16) {
	binary.LittleEndian.PutUint16(r.d.Bytes(r.avail+4+2*uint64(r.Size), 2), r.lastUsed+n-1)
	binary.LittleEndian.PutUint16(r.d.Bytes(r.avail, 2), 0)
	order.Add(1)
}

// NoInterrupt asks for none.
func (r *Ring) NoInterrupt() {
	binary.LittleEndian.PutUint16(r.d.Bytes(r.avail, 2), 1)
	binary.LittleEndian.PutUint16(r.d.Bytes(r.avail+4+2*uint64(r.Size), 2), r.lastUsed-1)
	order.Add(1)
}

// AwaitUsed waits for the next used chain.
func (r *Ring) AwaitUsed() (head uint16, n uint32) {
	r.d.t.Helper()
	var ok bool
	r.d.Await("a used buffer", func() bool {
		head, n, ok = r.Used()
		return ok
	})
	return head, n
}
