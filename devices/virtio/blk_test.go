package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/devicestest"
	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

func TestBlkReadsAndWrites(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	if n := r.Read(r.Device, 8); n != diskSectors {
		t.Errorf("capacity %d sectors", n)
	}
	want := pattern(1, 3*512)
	if s, _ := r.do(t, blkOut, 5, want, 0); s != blkOK {
		t.Fatalf("write: status %d", s)
	}
	s, got := r.do(t, blkIn, 5, nil, 3*512)
	if s != blkOK || !bytes.Equal(got, want) {
		t.Errorf("read: status %d, data equal %v", s, bytes.Equal(got, want))
	}
	if s, _ := r.do(t, blkFlush, 0, nil, 0); s != blkOK {
		t.Errorf("flush: status %d", s)
	}
	s, id := r.do(t, blkGetID, 0, nil, 20)
	if s != blkOK || string(bytes.TrimRight(id, "\x00")) != "serial-7" {
		t.Errorf("get ID: status %d, %q", s, id)
	}
	if calls := r.disk.calls(); !slices.Equal(calls, []string{"write 2560+1536", "read 2560+1536", "flush 0+0"}) {
		t.Errorf("the disk saw %q", calls)
	}
}

func TestBlkRefusesRequests(t *testing.T) {
	const sector = 512
	for _, c := range []struct {
		name   string
		kind   uint32
		sector uint64
		data   []byte
		room   uint32
		want   byte
	}{
		{"last sector", blkIn, diskSectors - 1, nil, sector, blkOK},
		{"beyond the end", blkIn, diskSectors, nil, sector, blkIOErr},
		{"over the end", blkIn, diskSectors - 1, nil, 2 * sector, blkIOErr},
		{"sector wraps", blkIn, 1 << 55, nil, sector, blkIOErr},
		{"sector is the largest", blkOut, ^uint64(0), make([]byte, sector), 0, blkIOErr},
		{"part of a sector", blkIn, 0, nil, 100, blkIOErr},
		{"nothing to read", blkIn, 0, nil, 0, blkIOErr},
		{"nothing to write", blkOut, 0, nil, 0, blkIOErr},
		{"unknown type", 99, 0, nil, 0, blkUnsupp},
		{"short ID", blkGetID, 0, nil, 3, blkOK},
		{"discard", blkDiscard, 0, discardRange(8, 8, 0), 0, blkOK},
		{"discard with unmap", blkDiscard, 0, discardRange(8, 8, 1), 0, blkUnsupp},
		{"discard beyond the end", blkDiscard, 0, discardRange(diskSectors-1, 2, 0), 0, blkIOErr},
		{"discard nothing", blkDiscard, 0, nil, 0, blkIOErr},
		{"discard a broken range", blkDiscard, 0, make([]byte, 15), 0, blkIOErr},
		{"too many ranges", blkDiscard, 0, bytes.Repeat(discardRange(0, 1, 0), 17), 0, blkIOErr},
		{"zeroes", blkWriteZeroes, 0, discardRange(0, 8, 0), 0, blkOK},
		{"zeroes with unmap", blkWriteZeroes, 0, discardRange(0, 8, 1), 0, blkOK},
		{"zeroes with unknown flags", blkWriteZeroes, 0, discardRange(0, 8, 2), 0, blkUnsupp},
		{"too many zeroes", blkWriteZeroes, 0, discardRange(0, 1<<31, 0), 0, blkIOErr},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := startBlk(t, newDisk(), allFeatures)
			if s, _ := r.do(t, c.kind, c.sector, c.data, c.room); s != c.want {
				t.Errorf("status %d, want %d", s, c.want)
			}
			if c.want != blkOK && len(r.disk.calls()) != 0 {
				t.Errorf("the disk saw %q", r.disk.calls())
			}
			if s, _ := r.do(t, blkFlush, 0, nil, 0); s != blkOK {
				t.Error("the disk does not work after it")
			}
		})
	}
}

func TestBlkReadOnly(t *testing.T) {
	d := newDisk()
	d.readOnly = true
	r := startBlk(t, d, allFeatures)
	if r.Features&(1<<5) == 0 || r.Features&(1<<13|1<<14) != 0 {
		t.Errorf("features %#x", r.Features)
	}
	for _, kind := range []uint32{blkOut, blkDiscard, blkWriteZeroes} {
		if s, _ := r.do(t, kind, 0, make([]byte, 512), 0); s != blkIOErr {
			t.Errorf("type %d: status %d", kind, s)
		}
	}
	if s, _ := r.do(t, blkIn, 0, nil, 512); s != blkOK {
		t.Errorf("read: status %d", s)
	}
	if calls := d.calls(); !slices.Equal(calls, []string{"read 0+512"}) {
		t.Errorf("the disk saw %q", calls)
	}
}

func TestBlkWithoutFlushWritesThrough(t *testing.T) {
	r := startBlk(t, newDisk(), 0)
	if s, _ := r.do(t, blkOut, 0, make([]byte, 512), 0); s != blkOK {
		t.Fatalf("status %d", s)
	}
	if calls := r.disk.calls(); !slices.Equal(calls, []string{"write 0+512", "flush 0+0"}) {
		t.Errorf("the disk saw %q", calls)
	}
}

func TestBlkReportsAFailingDisk(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	r.disk.failing = errors.New("head crash")
	if s, _ := r.do(t, blkIn, 0, nil, 512); s != blkIOErr {
		t.Errorf("status %d", s)
	}
	if n, err := r.faults.seen(); n != 1 || !errors.Is(err, r.disk.failing) {
		t.Errorf("%d faults, the last: %v", n, err)
	}
}

func TestBlkBrokenFraming(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	at := r.Alloc(16, 4)
	r.Rings[0].Add([]virtiotest.Buffer{{Addr: at, Len: 16}}, nil) // no status byte
	r.Rings[0].Kick()
	r.Await("the device's wish to be reset", func() bool { return r.Status()&virtiotest.StatusNeedsReset != 0 })
	r.Await("the configuration interrupt", func() bool { return r.ConfigInterrupts() == 1 })
	r.Start(allFeatures, 16)
	if s, _ := r.do(t, blkIn, 0, nil, 512); s != blkOK {
		t.Errorf("after the reset: status %d", s)
	}
}

// More requests than the device executes, and more than it holds at a time, are all answered.
func TestBlkManyRequests(t *testing.T) {
	for _, features := range []uint64{0, allFeatures} {
		r := startBlk(t, newDisk(), features)
		r.Start(features, 256)
		for range 5 {
			release := r.disk.stall()
			requests := map[uint16]blkRequest{}
			for i := range 80 {
				q := r.submit(t, blkIn, uint64(i), nil, 512)
				requests[q.head] = q
			}
			r.Await("the disk's work", func() bool { return r.disk.waiting() == 8 })
			release()
			for range 80 {
				head, _ := r.Rings[0].AwaitUsed()
				if s := r.statusOf(requests[head]); s != blkOK {
					t.Fatalf("status %d", s)
				}
			}
		}
	}
}

func TestBlkFreezeDoesNotWaitForTheDisk(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	release := r.disk.stall()
	const size = 8 * guestmem.PageSize
	q := r.submit(t, blkIn, 0, nil, size)
	r.Await("the disk's work", func() bool { return r.disk.waiting() == 1 })
	r.blk.Freeze()
	release()
	r.Await("the end of the disk's work", func() bool { return len(r.disk.calls()) == 1 })
	time.Sleep(5 * time.Millisecond)
	if s := r.statusOf(q); s != unanswered {
		t.Errorf("the frozen device answered with %d", s)
	}
	dirty := guestmem.NewBitmap(r.Memory.Frames())
	r.Memory.CollectDirty(nil)
	r.blk.Thaw()
	r.Rings[0].AwaitUsed()
	if s := r.statusOf(q); s != blkOK {
		t.Errorf("status %d", s)
	}
	r.Memory.CollectDirty(dirty)
	for at := q.data; at <= q.status; at += guestmem.PageSize {
		if !dirty.Has(at >> guestmem.PageShift) {
			t.Errorf("the page at %#x is not marked dirty; the data is at %#x, the status at %#x", at, q.data, q.status)
		}
	}
	if calls := r.disk.calls(); len(calls) != 1 {
		t.Errorf("the disk saw %q: executed again without need", calls)
	}
}

// While the device is frozen no further request reaches the disk, although more are waiting than there are workers.
func TestBlkFrozenBeginsNothing(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	release := r.disk.stall()
	const requests = 30
	for i := range requests {
		r.submit(t, blkOut, uint64(i), make([]byte, 512), 0)
	}
	r.Await("the disk's work", func() bool { return r.disk.waiting() == 8 })
	r.blk.Freeze()
	release()
	r.Await("the end of the disk's work", func() bool { return r.disk.waiting() == 0 && len(r.disk.calls()) == 8 })
	time.Sleep(5 * time.Millisecond)
	if n := len(r.disk.calls()); n != 8 {
		t.Errorf("%d requests reached the disk, %d of them while the device was frozen", n, n-8)
	}
	r.blk.Thaw()
	for range requests {
		r.Rings[0].AwaitUsed()
	}
	if n := len(r.disk.calls()); n != requests {
		t.Errorf("%d requests reached the disk, want %d", n, requests)
	}
}

func TestBlkResetWaitsForRequestsInFlight(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	release := r.disk.stall()
	q := r.submit(t, blkIn, 0, nil, 512)
	r.Await("the disk's work", func() bool { return r.disk.waiting() == 1 })
	r.CommonWrite(virtiotest.RegStatus, 1, 0)
	if s := r.Status(); s == 0 {
		t.Error("the reset is complete while the disk may still write into the guest's memory")
	}
	release()
	r.Await("the reset", func() bool { return r.Status() == 0 })
	if s := r.statusOf(q); s != unanswered {
		t.Errorf("status %d was written after the reset began", s)
	}
	r.Start(allFeatures, 16)
	if s, _ := r.do(t, blkIn, 0, nil, 512); s != blkOK {
		t.Errorf("after the reset: status %d", s)
	}
}

// stallingBlk is a disk whose requests hang until it carries on, or is closed.
type stallingBlk struct {
	*virtio.Blk
	release func()
}

func (b *stallingBlk) Close() error {
	b.release()
	return b.Blk.Close()
}

// blkConformance saves with three requests in flight, which the backend is executing.
func blkConformance(t testing.TB) *devicestest.Rig {
	b := newBlk(t, newDisk())
	device := &stallingBlk{b.blk, func() {}}
	rig := &devicestest.Rig{Device: device, Guest: b}
	rig.Prepare = func(t testing.TB) {
		b.Driver = virtiotest.Find(b.Guest, 1)
		b.Start(allFeatures, 64)
		if s, _ := b.do(t, blkOut, 3, pattern(9, 1024), 0); s != blkOK {
			t.Fatalf("status %d", s)
		}
		device.release = sync.OnceFunc(b.disk.stall())
		b.pending = []blkRequest{
			b.submit(t, blkIn, 3, nil, 1024),
			b.submit(t, blkOut, 7, pattern(11, 512), 0),
			b.submit(t, blkFlush, 0, nil, 0),
		}
		b.Await("the disk's work", func() bool { return b.disk.waiting() == 3 })
	}
	rig.Inherit = func(t testing.TB, from *devicestest.Rig) {
		old := from.Guest.(*blkRig)
		b.Inherit(old.Guest)
		b.Driver = old.MoveTo(b.Guest)
		b.pending = old.pending
		old.disk.mu.Lock()
		defer old.disk.mu.Unlock()
		copy(b.disk.data, old.disk.data) // the twin's disk: without the write in flight
	}
	rig.CarryOn = func(t testing.TB) {
		device.release()
		for range 3 {
			b.Rings[0].AwaitUsed()
		}
		for _, q := range b.pending {
			if s := b.statusOf(q); s != blkOK {
				t.Errorf("status %d", s)
			}
		}
		if s, got := b.do(t, blkIn, 7, nil, 512); s != blkOK || !bytes.Equal(got, pattern(11, 512)) {
			t.Errorf("the write in flight is lost: status %d", s)
		}
	}
	return rig
}

func TestBlkConformance(t *testing.T) { devicestest.Run(t, blkConformance) }

// Bytes that cannot be the state of a disk with one request in flight.
func TestBlkRefusesState(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	release := r.disk.stall()
	defer release()
	r.submit(t, blkIn, 0, nil, 512)
	r.Await("the disk's work", func() bool { return r.disk.waiting() == 1 })
	r.blk.Freeze()
	saved := saveBytes(r.blk)
	end := len(saved) // the number of requests, and the head of each, two bytes each
	for what, edit := range map[string]func(b []byte) []byte{
		"more requests than taken":        func(b []byte) []byte { b[end-4] = 2; return append(b, 0, 0) },
		"fewer requests than taken":       func(b []byte) []byte { b[end-4] = 0; return b[:end-2] },
		"more requests than there can be": func(b []byte) []byte { b[end-3] = 1; return append(b, make([]byte, 512)...) },
		"a head beyond the queue":         func(b []byte) []byte { b[end-2] = 128; return b },
		"another capacity":                func(b []byte) []byte { b[end-4-20-8]++; return b },
		"another ID":                      func(b []byte) []byte { b[end-5] ^= 1; return b },
	} {
		b := edit(slices.Clone(saved))
		const head = 1 + len("blk0") + 2
		binary.LittleEndian.PutUint32(b[head:], uint32(len(b)-head-4))
		twin := newBlk(t, newDisk())
		if err := loadBytes(twin.blk, b); err == nil {
			t.Errorf("%s: taken", what)
		}
		if err := twin.blk.Close(); err != nil {
			t.Error(err)
		}
	}
}
