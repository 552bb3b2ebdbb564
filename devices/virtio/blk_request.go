package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

// requestType is the type field of a request (virtio 1.2 §5.2.6).
type requestType uint32

const (
	blkIn              requestType = 0
	blkOut             requestType = 1
	blkFlushRequest    requestType = 4
	blkGetID           requestType = 8
	blkDiscardRequest  requestType = 11
	blkZeroesRequest   requestType = 13
	blkHeaderSize                  = 16 // type, reserved, sector
	blkRangeSize                   = 16 // sector, sectors, flags (§5.2.6, virtio_blk_discard_write_zeroes)
	blkRangeUnmap                  = 1 << 0
	blkStatusSize                  = 1
	blkStatusOK        uint8       = 0
	blkStatusIOError   uint8       = 1
	blkStatusUnsupport uint8       = 2
)

// String names the type for people.
func (t requestType) String() string {
	switch t {
	case blkIn:
		return "read"
	case blkOut:
		return "write"
	case blkFlushRequest:
		return "flush"
	case blkGetID:
		return "get ID"
	case blkDiscardRequest:
		return "discard"
	case blkZeroesRequest:
		return "write zeroes"
	}
	return fmt.Sprintf("request of type %d", uint32(t))
}

// phase is where a request is.
type phase uint8

const (
	phaseFree      phase = iota
	phaseWaiting         // in flight, but no worker has it: it is begun again when the device is thawed
	phaseSubmitted       // a worker has it, or will
	phaseDone            // executed, and not answered yet
)

// request is one request in flight. While it is submitted it belongs to a worker, otherwise to the holder of the device's lock.
type request struct {
	phase phase // guarded by the device's lock
	head  uint16
	chain queue.Chain

	// What the driver asks for, copied from its memory and checked.
	kind    requestType
	offset  int64           // in bytes
	data    []queue.Segment // to fill or to write: part of chain
	bufs    [][]byte        // the same
	ranges  [blkMaxRanges]blkRange
	nRanges int
	sync    bool // flush after writing

	status uint8
	err    error // of the backend
}

type blkRange struct {
	offset, size int64 // in bytes
	unmap        bool
}

// parse checks the request in chain. It returns true if there is something to execute; otherwise status is the answer.
func (r *request) parse(b *Blk) (execute bool) {
	var head [blkHeaderSize]byte
	r.chain.ReadAt(head[:], 0)
	r.kind = requestType(binary.LittleEndian.Uint32(head[:]))
	sector := binary.LittleEndian.Uint64(head[8:])
	r.status, r.err, r.data, r.bufs, r.nRanges, r.sync = blkStatusOK, nil, r.data[:0], r.bufs[:0], 0, false
	if b.backend.ReadOnly() && (r.kind == blkOut || r.kind == blkDiscardRequest || r.kind == blkZeroesRequest) {
		r.status = blkStatusIOError // §5.2.6.2
		return false
	}
	switch r.kind {
	case blkIn:
		r.take(r.chain.Writable, 0, r.chain.WritableBytes-blkStatusSize)
		r.status = b.checkRange(sector, r.chain.WritableBytes-blkStatusSize)
	case blkOut:
		r.take(r.chain.Readable, blkHeaderSize, r.chain.ReadableBytes-blkHeaderSize)
		r.status = b.checkRange(sector, r.chain.ReadableBytes-blkHeaderSize)
		// A driver that cannot flush must find on the disk what was answered (§5.2.6.2).
		r.sync = !b.negotiated(blkFlush)
	case blkFlushRequest:
	case blkGetID:
		room := r.chain.WritableBytes - blkStatusSize
		b.queues[0].WriteAt(&r.chain, b.id[:min(room, blkIDSize)], 0)
		return false
	case blkDiscardRequest, blkZeroesRequest:
		r.status = r.parseRanges(b)
	default:
		r.status = blkStatusUnsupport
	}
	if r.status != blkStatusOK {
		return false
	}
	r.offset = int64(sector) * SectorSize
	return true
}

// take makes data and bufs of the n bytes from off on of the segments.
func (r *request) take(segments []queue.Segment, off, n uint64) {
	for _, s := range segments {
		size := uint64(len(s.Data))
		if off >= size {
			off -= size
			continue
		}
		if n == 0 {
			return
		}
		m := min(size-off, n)
		piece := queue.Segment{Addr: s.Addr + off, Data: s.Data[off : off+m]}
		r.data = append(r.data, piece)
		r.bufs = append(r.bufs, piece.Data)
		off, n = 0, n-m
	}
}

// checkRange is the status of an access to n bytes at a sector.
func (b *Blk) checkRange(sector, n uint64) uint8 {
	if n == 0 || n%SectorSize != 0 || sector >= b.sectors || n/SectorSize > b.sectors-sector {
		return blkStatusIOError
	}
	return blkStatusOK
}

// parseRanges reads the ranges of a discard or a write of zeroes (§5.2.6.2).
func (r *request) parseRanges(b *Blk) (status uint8) {
	n := r.chain.ReadableBytes - blkHeaderSize
	if n == 0 || n%blkRangeSize != 0 || n/blkRangeSize > blkMaxRanges {
		return blkStatusIOError
	}
	for i := range n / blkRangeSize {
		var p [blkRangeSize]byte
		r.chain.ReadAt(p[:], blkHeaderSize+i*blkRangeSize)
		sector := binary.LittleEndian.Uint64(p[:])
		sectors := binary.LittleEndian.Uint32(p[8:])
		flags := binary.LittleEndian.Uint32(p[12:])
		unmap := flags&blkRangeUnmap != 0
		if flags&^blkRangeUnmap != 0 || (unmap && r.kind == blkDiscardRequest) {
			return blkStatusUnsupport
		}
		if sectors > blkMaxRange || b.checkRange(sector, uint64(sectors)*SectorSize) != blkStatusOK {
			return blkStatusIOError
		}
		r.ranges[i] = blkRange{offset: int64(sector) * SectorSize, size: int64(sectors) * SectorSize, unmap: unmap}
		r.nRanges++
	}
	return blkStatusOK
}

// execute does what the driver asked for, without any lock.
func (r *request) execute(backend BlockBackend) {
	if r.err = r.do(backend); r.err != nil {
		r.status = blkStatusIOError
	}
}

func (r *request) do(backend BlockBackend) error {
	switch r.kind {
	case blkIn:
		return backend.ReadVec(r.bufs, r.offset)
	case blkOut:
		if err := backend.WriteVec(r.bufs, r.offset); err != nil || !r.sync {
			return err
		}
		return backend.Flush()
	case blkFlushRequest:
		return backend.Flush()
	}
	for _, x := range r.ranges[:r.nRanges] {
		var err error
		if r.kind == blkDiscardRequest {
			err = backend.Discard(x.offset, x.size)
		} else {
			err = backend.WriteZeroes(x.offset, x.size, x.unmap)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
