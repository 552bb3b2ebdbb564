package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

// BlockBackend is where a disk's contents are. Offsets and lengths are in bytes, multiples of SectorSize, and inside of Size.
// Several calls come at once, for ranges that may overlap; their order is then undefined, as on a disk.
type BlockBackend interface {
	// ReadVec fills all of bufs from off on.
	ReadVec(bufs [][]byte, off int64) error
	// WriteVec writes all of bufs from off on. It need not be on stable storage before a Flush.
	WriteVec(bufs [][]byte, off int64) error
	// Flush returns when every write that returned before it was called is on stable storage.
	Flush() error
	// Discard tells that the contents of a range are not needed any more; they may become anything.
	Discard(off, n int64) error
	// WriteZeroes makes a range read as zeroes; mayUnmap: it need not keep its space.
	WriteZeroes(off, n int64, mayUnmap bool) error
	// Size is constant.
	Size() int64
	// ReadOnly is constant.
	ReadOnly() bool
}

// BlkConfig describes a disk.
type BlkConfig struct {
	Backend BlockBackend
	ID      string // the serial number that the guest reads, at most 20 bytes
}

// SectorSize is the unit of disk addresses (virtio 1.2 §5.2).
const SectorSize = 512

// Feature bits of block devices (§5.2.3).
const (
	blkSegMax      = 1 << 2
	blkRO          = 1 << 5
	blkBlockSize   = 1 << 6
	blkFlush       = 1 << 9
	blkDiscard     = 1 << 13
	blkWriteZeroes = 1 << 14
)

// Configuration (§5.2.4).
const (
	blkCfgCapacity         = 0
	blkCfgSegMax           = 12
	blkCfgBlockSize        = 20
	blkCfgMaxDiscard       = 36
	blkCfgMaxDiscardSeg    = 40
	blkCfgDiscardAlignment = 44
	blkCfgMaxZeroes        = 48
	blkCfgMaxZeroesSeg     = 52
	blkCfgZeroesMayUnmap   = 56
	blkConfigSize          = 60
)

const (
	blkIDSize    = 20
	blkQueueSize = 256
	blkMaxSeg    = 126 // data buffers in one request: with indirect descriptors or not, it fits in the queue
	// blkMaxRanges and blkMaxRange bound a discard: pieces of one request, and sectors of a piece (1 GiB).
	blkMaxRanges = 16
	blkMaxRange  = 1 << 21

	// blkRequests is how many requests can be in flight, blkWorkers how many of them the backend sees at a time.
	blkRequests = 64
	blkWorkers  = 8
	blkBatch    = 64
)

// Blk is a virtio disk (virtio 1.2 §5.2).
//
// A request is checked when it is taken from the queue, executed by a worker without any lock, and answered with the lock held.
// So a freeze does not wait for the disk. What is in flight then is saved as the index of its descriptor chain and
// executed again after Load, which does no harm: its outcome was not known to the guest yet, whose requests in flight
// have no order among each other.
//
// The data of requests in flight is the one thing that is read and written in guest memory while the device is frozen. A
// checkpoint may hold any mix of old and new bytes there, and is still right: the guest must not look at the buffer of a read
// before it is answered, and executing the read again writes all of it. Its pages are marked dirty with the answer.
type Blk struct {
	transport
	backend BlockBackend
	id      [blkIDSize]byte
	sectors uint64
	cfg     [blkConfigSize]byte // constant

	// Guarded by gate.mu.
	requests [blkRequests]request
	inFlight int
	starved  bool // chains may be waiting for a free request

	submitted chan *request // to the workers; has room for all
}

// NewBlk returns a frozen disk. The backend stays the caller's, who closes it after the device.
func NewBlk(name string, cfg BlkConfig, host Host) (*Blk, error) {
	size := cfg.Backend.Size()
	if size <= 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("%s: a disk of %d bytes: must be a multiple of %d, and not empty", name, size, SectorSize)
	}
	if len(cfg.ID) > blkIDSize {
		return nil, fmt.Errorf("%s: disk ID %q is longer than %d bytes", name, cfg.ID, blkIDSize)
	}
	b := &Blk{backend: cfg.Backend, sectors: uint64(size) / SectorSize, submitted: make(chan *request, blkRequests)}
	copy(b.id[:], cfg.ID)
	b.fillConfig()
	features := uint64(blkSegMax | blkBlockSize | blkFlush)
	if cfg.Backend.ReadOnly() {
		features |= blkRO
	} else {
		features |= blkDiscard | blkWriteZeroes
	}
	id := identity{deviceType: 2, pciClass: 0x010000}
	if err := b.init(name, id, b, features, []uint16{blkQueueSize}, host); err != nil {
		return nil, err
	}
	b.startWorkers(0)
	for range blkWorkers {
		b.workers.Go(b.executeAll)
	}
	return b, nil
}

// Close stops the device, after the requests that the backend is executing.
func (b *Blk) Close() error {
	return b.close(func() error {
		close(b.submitted) // nobody submits once the gate is closed
		return nil
	})
}

func (b *Blk) fillConfig() {
	le := binary.LittleEndian
	le.PutUint64(b.cfg[blkCfgCapacity:], b.sectors)
	le.PutUint32(b.cfg[blkCfgSegMax:], blkMaxSeg)
	le.PutUint32(b.cfg[blkCfgBlockSize:], SectorSize)
	if b.backend.ReadOnly() {
		return
	}
	le.PutUint32(b.cfg[blkCfgMaxDiscard:], blkMaxRange)
	le.PutUint32(b.cfg[blkCfgMaxDiscardSeg:], blkMaxRanges)
	le.PutUint32(b.cfg[blkCfgDiscardAlignment:], 4096/SectorSize)
	le.PutUint32(b.cfg[blkCfgMaxZeroes:], blkMaxRange)
	le.PutUint32(b.cfg[blkCfgMaxZeroesSeg:], blkMaxRanges)
	b.cfg[blkCfgZeroesMayUnmap] = 1
}

func (b *Blk) accept(uint64) error     { return nil }
func (b *Blk) config() []byte          { return b.cfg[:] }
func (b *Blk) writeConfig(int, []byte) {}

func (b *Blk) reset() (done bool) {
	b.starved = false
	b.answerDone() // they are forgotten now
	return b.inFlight == 0
}

// resume goes on with what a freeze or a load left: answers what was executed meanwhile, and executes what waits.
func (b *Blk) resume() {
	for i := range b.requests {
		r := &b.requests[i]
		if r.phase != phaseWaiting {
			continue
		}
		if !b.ready() {
			b.release(r)
			continue
		}
		if err := b.queues[0].Read(&r.chain, r.head); err != nil {
			b.release(r)
			b.breakDown(fmt.Errorf("request in flight: %w", err))
			continue
		}
		b.begin(r)
	}
	b.settle()
}

func (b *Blk) process(i int) (more bool) {
	b.settle()
	q := b.queues[i].Queue
	q.StopNotify()
	more, err := b.takeBatch(q)
	b.publish(i)
	if err != nil {
		b.breakDown(fmt.Errorf("request queue: %w", err))
		return false
	}
	return more
}

var errBlkFraming = errors.New("disk request without header or status byte")

func (b *Blk) takeBatch(q *queue.Queue) (more bool, err error) {
	for range blkBatch {
		if b.hurry() {
			return true, nil
		}
		r := b.free()
		if r == nil {
			b.starved = true // the next answer goes on here
			return false, nil
		}
		ok, err := q.Next(&r.chain)
		if err != nil {
			return false, err
		}
		if !ok {
			return q.StartNotify(), nil
		}
		if r.chain.ReadableBytes < blkHeaderSize || r.chain.WritableBytes == 0 {
			return false, fmt.Errorf("%w: %w", queue.ErrBroken, errBlkFraming)
		}
		q.Take()
		r.head = r.chain.Head
		b.inFlight++
		b.begin(r)
	}
	return true, nil
}

// begin checks a request that was taken, and gives it to the workers or answers it at once.
func (b *Blk) begin(r *request) {
	if r.parse(b) {
		r.phase = phaseSubmitted
		b.submitted <- r // has room: there are no more requests than it holds
		return
	}
	b.answer(r)
}

// free is a request that is not in use; nil: all are.
func (b *Blk) free() *request {
	if b.inFlight == blkRequests {
		return nil
	}
	for i := range b.requests {
		if b.requests[i].phase == phaseFree {
			return &b.requests[i]
		}
	}
	return nil
}

func (b *Blk) release(r *request) {
	r.phase = phaseFree
	b.inFlight--
}

// executeAll is a worker.
func (b *Blk) executeAll() {
	for r := range b.submitted {
		if !b.claim(r) {
			continue
		}
		r.execute(b.backend)
		b.mu.Lock()
		r.phase = phaseDone
		if !b.frozen {
			b.settle()
		}
		b.mu.Unlock()
	}
}

// claim reports whether a worker may execute a request now. While the device is frozen nothing new reaches the backend: the
// request waits for Thaw.
func (b *Blk) claim(r *request) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.frozen || b.closed {
		r.phase = phaseWaiting
		return false
	}
	return true
}

// settle answers what was executed, tells the driver, and completes a reset that has waited for it.
func (b *Blk) settle() {
	b.answerDone()
	if b.queues[0].Enabled() {
		b.publish(0)
	}
	if b.resetting && b.inFlight == 0 {
		b.finishReset()
	}
}

// answerDone answers the requests that the backend has executed, as far as the device may touch memory now.
func (b *Blk) answerDone() {
	for i := range b.requests {
		r := &b.requests[i]
		if r.phase != phaseDone || (b.ready() && !b.function.BusMaster()) {
			continue
		}
		if r.err != nil {
			b.fault(fmt.Errorf("disk %v: %w", r.kind, r.err))
		}
		b.answer(r)
	}
}

// answer gives a request back to the driver. A driver that has reset the device, or broken it, gets no answer; but what a
// read has written to its memory is there, and is marked.
func (b *Blk) answer(r *request) {
	if r.kind == blkIn && r.phase == phaseDone {
		for _, s := range r.data {
			b.host.Memory.MarkDirty(s.Addr, uint64(len(s.Data)))
		}
	}
	if b.ready() {
		q := b.queues[0].Queue
		status := [1]byte{r.status}
		q.WriteAt(&r.chain, status[:], r.chain.WritableBytes-1)
		q.Put(r.head, uint32(r.chain.WritableBytes))
	}
	b.release(r)
	if b.starved {
		b.starved = false
		b.queues[0].kick.signal()
	}
}
