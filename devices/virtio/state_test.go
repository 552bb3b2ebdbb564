package virtio_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

func saveBytes(d devices.Device) []byte {
	var e state.Encoder
	d.Save(&e)
	return e.Bytes()
}

func loadBytes(d devices.Device, b []byte) error { return d.Load(state.NewDecoder(b)) }

// Nothing moves while a device is frozen: no frame in either direction, no interrupt, no byte of memory, of state.
func TestFrozenNetIsStill(t *testing.T) {
	r := startNet(t, 1, allFeatures)
	at := r.post(t, 8, 500)
	r.send(t, frame(1, 60))
	r.tx().Kick()
	r.awaitSent(1)
	r.tx().AwaitUsed()

	r.net.Freeze()
	before := saveBytes(r.net)
	interrupts := r.QueueInterrupts(0) + r.QueueInterrupts(1) + r.ConfigInterrupts()
	r.wire.in <- frame(2, 60)
	r.wire.makeRoom(10)
	r.send(t, frame(3, 60))
	r.tx().Notify()
	r.net.Announce()
	memory := bytes.Clone(r.Bytes(0, virtiotest.MemorySize))
	time.Sleep(20 * time.Millisecond)
	if !bytes.Equal(memory, r.Bytes(0, virtiotest.MemorySize)) {
		t.Error("guest memory changed")
	}
	if n := r.QueueInterrupts(0) + r.QueueInterrupts(1) + r.ConfigInterrupts(); n != interrupts {
		t.Error("an interrupt was raised")
	}
	if n := len(r.wire.frames()); n != 1 {
		t.Errorf("%d frames were sent", n)
	}
	// The wish to announce is part of the state; nothing else is new.
	after := saveBytes(r.net)
	differ := 0
	for i := range before {
		if before[i] != after[i] {
			differ++
		}
	}
	if len(before) != len(after) || differ != 1 {
		t.Errorf("%d bytes of the state changed", differ)
	}

	r.net.Thaw()
	if got, _ := r.receive(at); !bytes.Equal(got[12:], frame(2, 60)[12:]) {
		t.Error("the frame that waited was not received")
	}
	if got := r.awaitSent(2); !bytes.Equal(got[1], frame(3, 60)) {
		t.Error("the frame that waited was not sent")
	}
	r.Await("the wish to announce", func() bool { return r.ConfigInterrupts() == 1 })
}

// Freezing and thawing in the midst of traffic loses and repeats nothing.
func TestFreezeInTraffic(t *testing.T) {
	r := startNet(t, 1<<30, allFeatures)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				r.net.Freeze()
				saveBytes(r.net)
				r.net.Thaw()
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	const frames = 500
	at := r.post(t, 20, 500)
	for i := range frames {
		r.send(t, frame(byte(i), 60))
		r.tx().Kick()
		r.wire.in <- frame(byte(i), 100)
		if got, _ := r.receive(at); !bytes.Equal(got[12:], frame(byte(i), 100)[12:]) {
			t.Fatalf("received frame %d is another one", i)
		}
		for head, addr := range r.post(t, 1, 500) {
			at[head] = addr
		}
		r.tx().AwaitUsed()
	}
	close(stop)
	<-done
	got := r.awaitSent(frames)
	for i := range frames {
		if !bytes.Equal(got[i], frame(byte(i), 60)) {
			t.Fatalf("sent frame %d is another one", i)
		}
	}
}

func TestSavedResetIsComplete(t *testing.T) {
	r := startBlk(t, newDisk(), allFeatures)
	release := r.disk.stall()
	r.submit(t, blkOut, 0, make([]byte, 512), 0)
	r.Await("the disk's work", func() bool { return r.disk.waiting() == 1 })
	r.CommonWrite(virtiotest.RegStatus, 1, 0)
	r.blk.Freeze()
	saved := saveBytes(r.blk)

	twin := newBlk(t, newDisk())
	t.Cleanup(func() { _ = twin.blk.Close() })
	twin.Inherit(r.Guest)
	if err := loadBytes(twin.blk, saved); err != nil {
		t.Fatal(err)
	}
	twin.blk.Thaw()
	twin.Driver = r.MoveTo(twin.Guest)
	if s := twin.Status(); s != 0 {
		t.Errorf("status %#x on the twin, although nothing is in flight there", s)
	}
	twin.Start(allFeatures, 16)
	if s, _ := twin.do(t, blkIn, 0, nil, 512); s != blkOK {
		t.Errorf("status %d", s)
	}

	release()
	r.blk.Thaw()
	r.Await("the reset", func() bool { return r.Status() == 0 })
}
