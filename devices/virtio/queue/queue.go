package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// ErrBroken is wrapped by every error for a queue that no correct driver can have made.
var ErrBroken = errors.New("virtqueue is broken")

const (
	// MaxSize is the largest queue size (virtio 1.2 §2.7).
	MaxSize = 32768

	// maxIndirect bounds the descriptors of an indirect table. Drivers may exceed the queue size there (Linux does when it
	// has indirect descriptors), and no driver comes near this.
	maxIndirect = 1024

	// maxBytes bounds a chain: a used element tells its length in 32 bits (§2.7.5.2 forbids longer ones).
	maxBytes = 1<<32 - 1
)

// Layout of the rings (§2.7.5, §2.7.6, §2.7.8): offsets and sizes in bytes.
const (
	descSize = 16

	flagsOffset = 0 // in both rings
	indexOffset = 2
	ringOffset  = 4
	availEntry  = 2
	usedEntry   = 8
	eventSize   = 2 // used_event after the available ring, avail_event after the used ring

	descNext     = 1 << 0
	descWrite    = 1 << 1
	descIndirect = 1 << 2

	availNoInterrupt = 1 << 0
	usedNoNotify     = 1 << 0
)

// Config is where the driver put the queue: guest physical addresses of its three parts, and its size in descriptors.
type Config struct {
	Size   uint16
	Desc   uint64 // descriptor table
	Driver uint64 // available ring
	Device uint64 // used ring
}

// Features are the negotiated features that change how the queue works (§6).
type Features struct {
	Indirect bool // VIRTIO_F_INDIRECT_DESC
	EventIdx bool // VIRTIO_F_EVENT_IDX
}

// Position is how far a queue has come, all there is to its state besides configuration and guest memory.
type Position struct {
	Avail uint16 // the next entry of the available ring to take
	Used  uint16 // the index of the used ring
}

// Segment is one buffer of a chain.
type Segment struct {
	Addr uint64 // guest physical
	Data []byte // the same in the host; never empty
}

// Chain is one request of the driver. Its owner reuses it, so that its slices stop growing.
type Chain struct {
	Head          uint16    // the first descriptor's index, for Put
	Readable      []Segment // what the device may read, in order
	Writable      []Segment // what the device may write, in order
	ReadableBytes uint64
	WritableBytes uint64
}

// Queue is one virtqueue. The zero value is not usable; see New.
type Queue struct {
	mem      *guestmem.Memory
	max      uint16
	cfg      Config
	features Features
	enabled  bool

	desc, avail, used []byte

	nextAvail uint16 // the next entry of the available ring to look at
	nextUsed  uint16 // the next entry of the used ring to fill
	published uint16 // the index that the driver sees; entries from here to nextUsed are not visible yet
}

// New returns a queue that is not enabled. The size is at most max, a power of two.
func New(mem *guestmem.Memory, max uint16) *Queue { return &Queue{mem: mem, max: max} }

// Max is the largest size that the queue can have.
func (q *Queue) Max() uint16 { return q.max }

// Size is the size that the driver chose, 0 when the queue is not enabled.
func (q *Queue) Size() uint16 { return q.cfg.Size }

// Enabled reports whether the driver has set the queue up.
func (q *Queue) Enabled() bool { return q.enabled }

// Check reports why a queue cannot be configured so: the size is a power of two and at most Max, the parts are aligned
// (§2.7: 16, 2 and 4 bytes) and whole inside of guest memory.
func (q *Queue) Check(cfg Config) error {
	_, err := q.rings(cfg)
	return err
}

func (q *Queue) rings(cfg Config) (rings [3][]byte, err error) {
	if cfg.Size == 0 || cfg.Size&(cfg.Size-1) != 0 || cfg.Size > q.max {
		return rings, fmt.Errorf("%w: size %d is not a power of two up to %d", ErrBroken, cfg.Size, q.max)
	}
	n := uint64(cfg.Size)
	for i, part := range [3]struct {
		name              string
		addr, align, size uint64
	}{
		{"descriptor table", cfg.Desc, 16, descSize * n},
		{"available ring", cfg.Driver, 2, ringOffset + availEntry*n + eventSize},
		{"used ring", cfg.Device, 4, ringOffset + usedEntry*n + eventSize},
	} {
		if part.addr%part.align != 0 {
			return rings, fmt.Errorf("%w: %s at %#x is not aligned to %d bytes", ErrBroken, part.name, part.addr, part.align)
		}
		if rings[i], err = q.mem.Slice(part.addr, part.size); err != nil {
			return rings, fmt.Errorf("%w: %s: %w", ErrBroken, part.name, err)
		}
	}
	return rings, nil
}

// Enable puts the queue in use, from its beginning.
func (q *Queue) Enable(cfg Config, f Features) error {
	rings, err := q.rings(cfg)
	if err != nil {
		return err
	}
	*q = Queue{
		mem: q.mem, max: q.max, cfg: cfg, features: f, enabled: true,
		desc: rings[0], avail: rings[1], used: rings[2],
	}
	return nil
}

// Disable puts the queue out of use.
func (q *Queue) Disable() { *q = Queue{mem: q.mem, max: q.max} }

// Position tells how far the queue has come. Nothing may be unpublished.
func (q *Queue) Position() Position { return Position{Avail: q.nextAvail, Used: q.published} }

// Resume makes an enabled queue go on from a position.
func (q *Queue) Resume(p Position) {
	q.nextAvail, q.nextUsed, q.published = p.Avail, p.Used, p.Used
}

// Next reads the next available chain into c without taking it: until Take is called, the next call gives the same one.
// It returns false when there is none.
func (q *Queue) Next(c *Chain) (bool, error) {
	if !q.enabled {
		return false, nil
	}
	waiting := load16(q.avail, indexOffset) - q.nextAvail
	if waiting == 0 {
		return false, nil
	}
	if waiting > q.cfg.Size {
		return false, fmt.Errorf("%w: %d chains available in a queue of %d", ErrBroken, waiting, q.cfg.Size)
	}
	slot := int(q.nextAvail & (q.cfg.Size - 1))
	return true, q.Read(c, binary.LittleEndian.Uint16(q.avail[ringOffset+availEntry*slot:]))
}

// Waiting reports whether there is an available chain that was not taken.
func (q *Queue) Waiting() bool { return q.enabled && load16(q.avail, indexOffset) != q.nextAvail }

// Take removes the chain that Next gave from the available ring: the device answers it with Put, now or later.
func (q *Queue) Take() { q.nextAvail++ }

// Unwind gives back the last n chains taken, and forgets what was Put since the last Publish.
func (q *Queue) Unwind(n uint16) {
	q.nextAvail -= n
	q.nextUsed = q.published
}

// Put returns a chain to the driver, who sees it after Publish. written is how many bytes the device has written into its
// writable segments, from the first on.
func (q *Queue) Put(head uint16, written uint32) {
	off := ringOffset + usedEntry*uint64(q.nextUsed&(q.cfg.Size-1))
	binary.LittleEndian.PutUint32(q.used[off:], uint32(head))
	binary.LittleEndian.PutUint32(q.used[off+4:], written)
	q.mem.MarkDirty(q.cfg.Device+off, usedEntry)
	q.nextUsed++
}

// Publish makes the driver see all that was Put, and reports whether it wants an interrupt for that (§2.7.7, §2.7.10).
func (q *Queue) Publish() (interrupt bool) {
	old := q.published
	if q.nextUsed == old {
		return false
	}
	q.published = q.nextUsed
	store16(q.used, indexOffset, q.published)
	q.mem.MarkDirty(q.cfg.Device+indexOffset, 2)
	if q.features.EventIdx {
		event := load16(q.avail, ringOffset+availEntry*int(q.cfg.Size))
		return passed(event, q.published, old)
	}
	return load16(q.avail, flagsOffset)&availNoInterrupt == 0
}

// passed reports whether moving an index from old to now has passed the event index (§2.7.10, vring_need_event).
func passed(event, now, old uint16) bool { return now-event-1 < now-old }

// StopNotify asks the driver not to notify about new chains, because the device is looking anyway.
func (q *Queue) StopNotify() {
	// With event indexes there is nothing to do: avail_event stays behind, and is passed only once.
	if q.enabled && !q.features.EventIdx {
		q.storeUsed(flagsOffset, usedNoNotify)
	}
}

// StartNotify asks the driver to notify about the next chain. It reports whether there is one already, about which no
// notification need come: the caller then goes on working.
func (q *Queue) StartNotify() (more bool) {
	if !q.enabled {
		return false
	}
	if q.features.EventIdx {
		q.storeUsed(ringOffset+usedEntry*int(q.cfg.Size), q.nextAvail)
	} else {
		q.storeUsed(flagsOffset, 0)
	}
	// store16 is a full barrier: the driver either sees the wish, or has moved the index before this reads it.
	return load16(q.avail, indexOffset) != q.nextAvail
}

func (q *Queue) storeUsed(off int, v uint16) {
	store16(q.used, off, v)
	q.mem.MarkDirty(q.cfg.Device+uint64(off), 2)
}
