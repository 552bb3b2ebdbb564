package virtio_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

// Request types and answers of block devices (virtio 1.2 §5.2.6).
const (
	blkIn          = 0
	blkOut         = 1
	blkFlush       = 4
	blkGetID       = 8
	blkDiscard     = 11
	blkWriteZeroes = 13

	blkOK      = 0
	blkIOErr   = 1
	blkUnsupp  = 2
	unanswered = 0xff

	featureFlush = 1 << 9
	diskSectors  = 128
)

// disk is a BlockBackend in memory. Calls can be made to wait, or to fail.
type disk struct {
	mu       sync.Mutex
	data     []byte
	log      []string
	failing  error
	readOnly bool
	hold     chan struct{} // not nil: calls wait until it is closed
	holding  int           // calls that wait
}

func newDisk() *disk { return &disk{data: make([]byte, diskSectors*virtio.SectorSize)} }

func (d *disk) enter(what string, off, n int64) error {
	d.mu.Lock()
	hold := d.hold
	d.holding++
	d.mu.Unlock()
	if hold != nil {
		<-hold
	}
	d.mu.Lock()
	d.holding--
	d.log = append(d.log, fmt.Sprintf("%s %d+%d", what, off, n))
	return d.failing
}

func (d *disk) ReadVec(bufs [][]byte, off int64) error {
	err := d.enter("read", off, size(bufs))
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	for _, b := range bufs {
		off += int64(copy(b, d.data[off:]))
	}
	return nil
}

func (d *disk) WriteVec(bufs [][]byte, off int64) error {
	err := d.enter("write", off, size(bufs))
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	for _, b := range bufs {
		off += int64(copy(d.data[off:], b))
	}
	return nil
}

func (d *disk) Flush() error {
	defer d.mu.Unlock()
	return d.enter("flush", 0, 0)
}

func (d *disk) Discard(off, n int64) error {
	defer d.mu.Unlock()
	return d.enter("discard", off, n)
}

func (d *disk) WriteZeroes(off, n int64, mayUnmap bool) error {
	err := d.enter(fmt.Sprintf("zero(%v)", mayUnmap), off, n)
	defer d.mu.Unlock()
	if err == nil {
		clear(d.data[off : off+n])
	}
	return err
}

func (d *disk) Size() int64    { return int64(len(d.data)) }
func (d *disk) ReadOnly() bool { return d.readOnly }

// stall makes calls wait until the function that it returns is called.
func (d *disk) stall() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hold := make(chan struct{})
	d.hold = hold
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hold = nil
		close(hold)
	}
}

func (d *disk) waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holding
}

func (d *disk) calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

func size(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

type blkRig struct {
	*virtiotest.Driver
	blk    *virtio.Blk
	disk   *disk
	faults faults

	pending []blkRequest // of the conformance test
}

func newBlk(t testing.TB, d *disk) *blkRig {
	t.Helper()
	r := &blkRig{disk: d}
	g := virtiotest.NewGuest(t)
	var err error
	if r.blk, err = virtio.NewBlk("blk0", virtio.BlkConfig{Backend: d, ID: "serial-7"}, testHost(g, &r.faults)); err != nil {
		t.Fatal(err)
	}
	g.Attach(1, r.blk.Function())
	r.Driver = &virtiotest.Driver{Guest: g}
	return r
}

func startBlk(t testing.TB, d *disk, features uint64) *blkRig {
	t.Helper()
	r := newBlk(t, d)
	t.Cleanup(func() {
		if err := r.blk.Close(); err != nil {
			t.Error(err)
		}
	})
	r.blk.Thaw()
	r.Driver = virtiotest.Find(r.Guest, 1)
	r.Start(features, 128)
	return r
}

// blkRequest is a request of the driver: where its data and its status are.
type blkRequest struct {
	head         uint16
	data, status uint64
	size         uint32
}

// submit makes a request available. The data is what it carries for the device; room is what it has for the device's.
func (r *blkRig) submit(t testing.TB, kind uint32, sector uint64, data []byte, room uint32) blkRequest {
	t.Helper()
	header := r.Alloc(16, 4)
	binary.LittleEndian.PutUint32(r.Bytes(header, 16), kind)
	binary.LittleEndian.PutUint64(r.Bytes(header+8, 8), sector)
	q := blkRequest{data: r.Alloc(uint64(len(data))+uint64(room), 1), status: r.Alloc(1, 1), size: room}
	copy(r.Bytes(q.data, uint64(len(data))), data)
	r.Bytes(q.status, 1)[0] = unanswered
	out := []virtiotest.Buffer{{Addr: header, Len: 16}}
	in := []virtiotest.Buffer{{Addr: q.status, Len: 1}}
	if half := uint32(len(data)) / 2; len(data) > 0 {
		out = append(out, virtiotest.Buffer{Addr: q.data, Len: half},
			virtiotest.Buffer{Addr: q.data + uint64(half), Len: uint32(len(data)) - half})
	}
	if room > 0 {
		in = append([]virtiotest.Buffer{{Addr: q.data + uint64(len(data)), Len: room}}, in...)
	}
	var ok bool
	if q.head, ok = r.Rings[0].Add(out, in); !ok {
		t.Fatal("the queue is full")
	}
	r.Rings[0].Kick()
	return q
}

func (r *blkRig) statusOf(q blkRequest) byte { return r.Bytes(q.status, 1)[0] }

// do submits a request and waits for its answer: status and data.
func (r *blkRig) do(t testing.TB, kind uint32, sector uint64, data []byte, room uint32) (byte, []byte) {
	t.Helper()
	q := r.submit(t, kind, sector, data, room)
	if head, _ := r.Rings[0].AwaitUsed(); head != q.head {
		t.Fatalf("answer for chain %d, want %d", head, q.head)
	}
	return r.statusOf(q), r.Bytes(q.data+uint64(len(data)), uint64(room))
}

func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7)
	}
	return b
}

func discardRange(sector uint64, sectors, flags uint32) []byte {
	b := make([]byte, 16)
	binary.LittleEndian.PutUint64(b, sector)
	binary.LittleEndian.PutUint32(b[8:], sectors)
	binary.LittleEndian.PutUint32(b[12:], flags)
	return b
}
