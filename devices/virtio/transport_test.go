package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/devices/devicestest"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

// rngRig is the simplest device: its tests are those of the transport.
type rngRig struct {
	*virtiotest.Driver
	rng    *virtio.Rng
	faults faults
}

func newRng(t testing.TB, n virtio.Notifier) *rngRig {
	t.Helper()
	r := &rngRig{}
	g := virtiotest.NewGuest(t)
	host := testHost(g, &r.faults)
	host.Notifier = n
	var err error
	if r.rng, err = virtio.NewRng("rng0", host); err != nil {
		t.Fatal(err)
	}
	g.Attach(1, r.rng.Function())
	r.Driver = &virtiotest.Driver{Guest: g}
	return r
}

func startRng(t testing.TB, features uint64) *rngRig {
	t.Helper()
	r := newRng(t, nil)
	t.Cleanup(func() {
		if err := r.rng.Close(); err != nil {
			t.Error(err)
		}
	})
	r.rng.Thaw()
	r.Driver = virtiotest.Find(r.Guest, 1)
	r.Start(features, 64)
	return r
}

// ask makes a buffer of n bytes available, and returns where it is.
func (r *rngRig) ask(t testing.TB, n uint32) uint64 {
	t.Helper()
	at := r.Alloc(uint64(n), 1)
	if _, ok := r.Rings[0].Add(nil, []virtiotest.Buffer{{Addr: at, Len: n}}); !ok {
		t.Fatal("the queue is full")
	}
	r.Rings[0].Kick()
	return at
}

func TestRngFillsBuffers(t *testing.T) {
	for _, features := range []uint64{0, allFeatures} {
		r := startRng(t, features)
		for _, c := range []struct{ size, want uint32 }{{1, 1}, {64, 64}, {4096, 4096}, {10000, 4096}} {
			at := r.ask(t, c.size)
			_, n := r.Rings[0].AwaitUsed()
			if n != c.want {
				t.Errorf("%d bytes of %d", n, c.size)
			}
			if got := r.Bytes(at, uint64(n)); n >= 64 && bytes.Equal(got, make([]byte, n)) {
				t.Error("all zero")
			}
			if rest := r.Bytes(at+uint64(n), uint64(c.size-n)); !bytes.Equal(rest, make([]byte, len(rest))) {
				t.Error("more was written than is said")
			}
		}
	}
}

func TestRngConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		r := newRng(t, nil)
		return &devicestest.Rig{
			Device: r.rng, Guest: r,
			Prepare: func(t testing.TB) {
				r.Driver = virtiotest.Find(r.Guest, 1)
				r.Start(allFeatures, 64)
				r.ask(t, 32)
				r.Rings[0].AwaitUsed()
			},
			Inherit: func(_ testing.TB, from *devicestest.Rig) {
				old := from.Guest.(*rngRig)
				r.Guest.Inherit(old.Guest)
				r.Driver = old.MoveTo(r.Guest)
			},
			CarryOn: func(t testing.TB) {
				interrupts := r.QueueInterrupts(0)
				r.Rings[0].WantInterrupt(1)
				r.ask(t, 32)
				r.Rings[0].AwaitUsed()
				r.Await("an interrupt", func() bool { return r.QueueInterrupts(0) > interrupts })
			},
		}
	})
}

// A device that was saved before any driver touched it is as good as new.
func TestUntouchedConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		r := newRng(t, nil)
		return &devicestest.Rig{Device: r.rng, CarryOn: func(t testing.TB) {
			r.Driver = virtiotest.Find(r.Guest, 1)
			r.Start(allFeatures, 64)
			r.ask(t, 32)
			r.Rings[0].AwaitUsed()
		}}
	})
}

func TestStatusMachine(t *testing.T) {
	r := startRng(t, 0)
	r.Reset()
	const ack, driver, ok, features = virtiotest.StatusAcknowledge, virtiotest.StatusDriver, virtiotest.StatusDriverOK, virtiotest.StatusFeaturesOK
	set := func(v, want uint64) {
		t.Helper()
		r.CommonWrite(virtiotest.RegStatus, 1, v)
		if got := r.Status(); got != want {
			t.Errorf("status %#x after %#x was written, want %#x", got, v, want)
		}
	}
	set(ack, ack)
	set(ack|driver, ack|driver)
	set(ack|driver|ok, ack|driver)       // no features yet
	set(ack|driver|features, ack|driver) // VERSION_1 is missing
	set(ack|driver|virtiotest.StatusNeedsReset|0x30, ack|driver)
	if !r.Accept(virtiotest.FeatureVersion1) {
		t.Fatal("features are refused")
	}
	r.CommonWrite(virtiotest.RegDriverFeatureSelect, 4, 1)
	r.CommonWrite(virtiotest.RegDriverFeature, 4, 0)
	if v := r.CommonRead(virtiotest.RegDriverFeature, 4); v != 1 {
		t.Errorf("features changed to %#x after they were final", v)
	}
	set(ack, ack|driver|features) // bits cannot be taken back
	set(ack|driver|features|ok, ack|driver|features|ok)
	set(virtiotest.StatusFailed, ack|driver|features|ok|virtiotest.StatusFailed)
	set(0, 0)
}

func TestFeatureWindows(t *testing.T) {
	r := startRng(t, 0)
	for sel, want := range map[uint64]uint64{0: 3 << 28, 1: 1, 2: 0, 0xffffffff: 0} {
		r.CommonWrite(virtiotest.RegDeviceFeatureSelect, 4, sel)
		if got := r.CommonRead(virtiotest.RegDeviceFeature, 4); got != want {
			t.Errorf("features %d: %#x, want %#x", sel, got, want)
		}
	}
}

func TestQueueRegisters(t *testing.T) {
	r := startRng(t, 0)
	r.Reset()
	if !r.Accept(virtiotest.FeatureVersion1) {
		t.Fatal("features are refused")
	}
	r.CommonWrite(virtiotest.RegQueueSelect, 2, 1)
	if n := r.CommonRead(virtiotest.RegQueueSize, 2); n != 0 {
		t.Errorf("a queue that does not exist has size %d", n)
	}
	r.CommonWrite(virtiotest.RegQueueEnable, 2, 1)
	r.CommonWrite(virtiotest.RegQueueDesc, 4, 1)
	r.CommonWrite(virtiotest.RegQueueSelect, 2, 0)
	r.CommonWrite(virtiotest.RegQueueVector, 2, 1)
	r.CommonWrite(virtiotest.RegConfigVector, 2, 2) // there are two vectors, 0 and 1
	if q, c := r.CommonRead(virtiotest.RegQueueVector, 2), r.CommonRead(virtiotest.RegConfigVector, 2); q != 1 || c != 0xffff {
		t.Errorf("vectors %#x and %#x", q, c)
	}
	for i, reg := range []uint64{virtiotest.RegQueueDesc, virtiotest.RegQueueDriver, virtiotest.RegQueueDevice} {
		r.CommonWrite(reg, 8, 0x1_0000_0000+uint64(i+1)*0x1000) // all at once
		r.CommonWrite(reg+4, 4, 0)                              // and the upper half
		if v := r.CommonRead(reg, 8); v != uint64(i+1)*0x1000 {
			t.Errorf("register %d: %#x", reg, v)
		}
		r.CommonWrite(reg, 2, 0xffff) // no half of it
		r.CommonWrite(reg+2, 4, 0xffff)
		if v := r.CommonRead(reg, 8); v != uint64(i+1)*0x1000 {
			t.Errorf("register %d: %#x after writes of a part", reg, v)
		}
	}
	r.CommonWrite(virtiotest.RegQueueEnable, 2, 1)
	if r.CommonRead(virtiotest.RegQueueEnable, 2) != 1 {
		t.Fatal("the queue is not enabled")
	}
	r.CommonWrite(virtiotest.RegQueueDesc, 4, 0x9000)
	r.CommonWrite(virtiotest.RegQueueSize, 2, 8)
	if a, n := r.CommonRead(virtiotest.RegQueueDesc, 4), r.CommonRead(virtiotest.RegQueueSize, 2); a != 0x1000 || n != 64 {
		t.Errorf("an enabled queue moved to %#x, size %d", a, n)
	}
}

func TestImpossibleQueueBreaksTheDevice(t *testing.T) {
	r := startRng(t, 0)
	r.Reset()
	if !r.Accept(virtiotest.FeatureVersion1) {
		t.Fatal("features are refused")
	}
	r.CommonWrite(virtiotest.RegQueueDesc, 8, 0xc0000000) // no memory there
	r.CommonWrite(virtiotest.RegQueueEnable, 2, 1)
	if r.CommonRead(virtiotest.RegQueueEnable, 2) != 0 || r.Status()&virtiotest.StatusNeedsReset == 0 {
		t.Errorf("enabled %d, status %#x", r.CommonRead(virtiotest.RegQueueEnable, 2), r.Status())
	}
	if n, _ := r.faults.seen(); n != 1 {
		t.Errorf("%d faults", n)
	}
}

func TestBrokenQueueNeedsReset(t *testing.T) {
	r := startRng(t, 0)
	at := r.ask(t, 16)
	r.Rings[0].AwaitUsed()
	r.Rings[0].SetAvailIndex(1000)
	r.Rings[0].Notify()
	r.Await("the device's wish to be reset", func() bool { return r.Status()&virtiotest.StatusNeedsReset != 0 })
	r.Await("the configuration interrupt", func() bool { return r.ConfigInterrupts() == 1 })
	clear(r.Bytes(at, 16))
	r.Rings[0].SetAvailIndex(2)
	r.Rings[0].Notify()
	time.Sleep(5 * time.Millisecond)
	if _, _, ok := r.Rings[0].Used(); ok || !bytes.Equal(r.Bytes(at, 16), make([]byte, 16)) {
		t.Error("the broken device goes on working")
	}
	r.Start(0, 64)
	r.ask(t, 16)
	r.Rings[0].AwaitUsed()
}

func TestDeviceWaitsForBusMaster(t *testing.T) {
	r := startRng(t, 0)
	r.ConfigWrite(1, 4, 2, 2)
	r.ask(t, 16)
	time.Sleep(5 * time.Millisecond)
	if _, _, ok := r.Rings[0].Used(); ok {
		t.Error("the device wrote to memory without being bus master")
	}
	r.ConfigWrite(1, 4, 2, 6)
	r.Rings[0].AwaitUsed()
}

func TestNothingHappensBeforeDriverOK(t *testing.T) {
	r := startRng(t, 0)
	features := r.Features
	r.Reset()
	r.Accept(features)
	// A queue made by hand, in the way of Start, which would end it with DRIVER_OK.
	desc, avail, used := r.Alloc(64, 16), r.Alloc(14, 2), r.Alloc(38, 4)
	r.CommonWrite(virtiotest.RegQueueSize, 2, 4)
	r.CommonWrite(virtiotest.RegQueueDesc, 8, desc)
	r.CommonWrite(virtiotest.RegQueueDriver, 8, avail)
	r.CommonWrite(virtiotest.RegQueueDevice, 8, used)
	r.CommonWrite(virtiotest.RegQueueEnable, 2, 1)
	buffer := r.Alloc(16, 1)
	binary.LittleEndian.PutUint64(r.Bytes(desc, 8), buffer)
	copy(r.Bytes(desc+8, 6), []byte{16, 0, 0, 0, virtiotest.DescWrite, 0})
	r.Bytes(avail+2, 1)[0] = 1
	r.Write(r.Notify, 2, 0)
	time.Sleep(5 * time.Millisecond)
	if r.Bytes(used+2, 1)[0] != 0 {
		t.Fatal("the device works before the driver is ready")
	}
	r.AddStatus(virtiotest.StatusDriverOK) // looks at the queue without a notification
	r.Await("the buffer", func() bool { return r.Bytes(used+2, 1)[0] == 1 })
}

func TestISRStatus(t *testing.T) {
	r := startRng(t, 0)
	r.ask(t, 16)
	r.Rings[0].AwaitUsed()
	r.Await("the interrupt", func() bool { return r.QueueInterrupts(0) == 1 })
	if v := r.Read(r.ISR, 1); v != 1 {
		t.Errorf("ISR status %#x", v)
	}
	if v := r.Read(r.ISR, 1); v != 0 {
		t.Errorf("ISR status %#x after it was read", v)
	}
}

// The capability for drivers that cannot map the BAR reaches every register (§4.1.4.9).
func TestConfigWindow(t *testing.T) {
	r := startRng(t, 0)
	aim := func(offset, length uint32) {
		r.ConfigWrite(1, r.WindowAt+4, 1, 0)
		r.ConfigWrite(1, r.WindowAt+8, 4, offset)
		r.ConfigWrite(1, r.WindowAt+12, 4, length)
	}
	data := r.WindowAt + 16
	aim(virtiotest.RegStatus, 1)
	if got := r.ConfigRead(1, data, 1); uint64(got) != r.Status() {
		t.Errorf("status %#x through the window, %#x through the BAR", got, r.Status())
	}
	r.ConfigWrite(1, data, 1, 0)
	if s := r.Status(); s != 0 {
		t.Errorf("status %#x after a reset through the window", s)
	}
	aim(virtiotest.RegNumQueues, 2)
	if got := r.ConfigRead(1, data, 2); got != 1 {
		t.Errorf("%d queues through the window", got)
	}
	for _, c := range []struct{ offset, length uint32 }{{0x8000, 4}, {0xfffffffc, 4}, {2, 4}, {0, 3}, {0, 8}, {0, 0}} {
		aim(c.offset, c.length)
		if got := r.ConfigRead(1, data, 4); got != 0 {
			t.Errorf("%d bytes at %#x read %#x", c.length, c.offset, got)
		}
		r.ConfigWrite(1, data, 4, 0xffffffff)
	}
	r.ConfigWrite(1, r.WindowAt+4, 1, 1)
	if got := r.ConfigRead(1, data, 4); got != 0 {
		t.Errorf("another BAR reads %#x", got)
	}
}

// notifier is KVM's part: it keeps which eventfd is attached where.
type notifier struct {
	mu       sync.Mutex
	attached map[uint64]int
	fail     error
}

func (n *notifier) Attach(address uint64, length, fd int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	if _, ok := n.attached[address]; ok || length != 2 {
		return fmt.Errorf("attach %d bytes at %#x: exists", length, address)
	}
	n.attached[address] = fd
	return nil
}

func (n *notifier) Detach(address uint64, _, fd int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if got, ok := n.attached[address]; !ok || got != fd {
		return fmt.Errorf("detach %#x: is not there", address)
	}
	delete(n.attached, address)
	return nil
}

func TestNotifierFollowsTheBAR(t *testing.T) {
	n := &notifier{attached: map[uint64]int{}}
	r := newRng(t, n)
	r.rng.Thaw()
	r.Driver = virtiotest.Find(r.Guest, 1)
	r.Start(0, 64)
	address := r.Rings[0].NotifyAddress()
	fd, ok := n.attached[address]
	if !ok {
		t.Fatalf("nothing is attached at %#x: %v", address, n.attached)
	}
	at := r.Alloc(16, 1)
	r.Rings[0].Add(nil, []virtiotest.Buffer{{Addr: at, Len: 16}})
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil { // as KVM does
		t.Fatal(err)
	}
	r.Rings[0].AwaitUsed()

	bar := uint32(r.Common) &^ 0x7fff
	r.ConfigWrite(1, 0x10, 4, bar+0x100000)
	if _, ok := n.attached[address+0x100000]; !ok || len(n.attached) != 1 {
		t.Errorf("after the move: %#x", n.attached)
	}
	r.ConfigWrite(1, 4, 2, 0)
	if len(n.attached) != 0 {
		t.Errorf("with memory decoding off: %#x", n.attached)
	}
	r.ConfigWrite(1, 4, 2, 6)
	if err := r.rng.Close(); err != nil {
		t.Fatal(err)
	}
	if len(n.attached) != 0 {
		t.Errorf("after Close: %#x", n.attached)
	}
}

func TestNotifierMayFail(t *testing.T) {
	r := newRng(t, &notifier{fail: errors.New("no more eventfds")})
	t.Cleanup(func() { _ = r.rng.Close() })
	r.rng.Thaw()
	r.Driver = virtiotest.Find(r.Guest, 1)
	r.Start(0, 64)
	r.ask(t, 16)
	r.Rings[0].AwaitUsed()
}

// A device is refused by one of another configuration.
func TestLoadRefusesAnotherConfiguration(t *testing.T) {
	a, b := newNet(t, 0), newNet(t, 0)
	t.Cleanup(func() { _ = errors.Join(a.net.Close(), b.net.Close()) })
	other, err := virtio.NewNet("net0", virtio.NetConfig{MAC: [6]byte{2, 1}, Backend: newWire(0)}, testHost(b.Guest, &faults{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	withMTU, err := virtio.NewNet("net0", virtio.NetConfig{MAC: testMAC, MTU: 1400, Backend: newWire(0)}, testHost(b.Guest, &faults{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = withMTU.Close() })
	saved := saveBytes(a.net)
	for what, c := range map[string]struct {
		device *virtio.Net
		want   string
	}{
		"another MAC": {other, "MAC"},
		"an MTU":      {withMTU, "features"},
	} {
		if err := loadBytes(c.device, saved); err == nil || !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
			t.Errorf("%s: %v, want an error about the %s", what, err, c.want)
		}
	}
	// BARs lie where they did, so the twin attaches its devices in the same order: this one did.
	if err := loadBytes(b.net, saved); err != nil {
		t.Errorf("the same configuration: %v", err)
	}
}
