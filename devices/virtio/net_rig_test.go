package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

// Features of network devices (virtio 1.2 §5.1.3).
const (
	netCsum      = 1 << 0
	netGuestCsum = 1 << 1
	netGuestTSO4 = 1 << 7
	netHostTSO4  = 1 << 11
	netHostTSO6  = 1 << 12
	netHostECN   = 1 << 13
	netMergeable = 1 << 15
	netStatus    = 1 << 16
	netCtrlVQ    = 1 << 17
	netAnnounce  = 1 << 21

	allFeatures = ^uint64(0)
)

// wire is a NetBackend that remembers what was sent and gives what the test puts into in.
type wire struct {
	mu       sync.Mutex
	sent     [][]byte
	room     int // frames that Send still takes
	waiting  bool
	onSpace  func()
	offloads [4]bool

	in        chan []byte
	closed    chan struct{}
	closeOnce sync.Once
}

func newWire(room int) *wire {
	return &wire{room: room, in: make(chan []byte, 64), closed: make(chan struct{})}
}

func (w *wire) Send(parts [][]byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.room == 0 {
		w.waiting = true
		return false
	}
	w.room--
	w.sent = append(w.sent, bytes.Join(parts, nil))
	return true
}

func (w *wire) OnSpace(f func()) { w.onSpace = f }

// makeRoom lets n more frames through.
func (w *wire) makeRoom(n int) {
	w.mu.Lock()
	w.room += n
	call := w.waiting
	w.waiting = false
	w.mu.Unlock()
	if call {
		w.onSpace()
	}
}

func (w *wire) frames() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent)
}

func (w *wire) Receive(p []byte) (int, error) {
	select {
	case f := <-w.in:
		return copy(p, f), nil
	case <-w.closed:
		return 0, errors.New("closed")
	}
}

func (w *wire) SetOffloads(csum, tso4, tso6, ecn bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offloads = [4]bool{csum, tso4, tso6, ecn}
	return nil
}

func (w *wire) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	return nil
}

var testMAC = [6]byte{0x02, 0, 0, 0, 0, 7}

type netRig struct {
	*virtiotest.Driver
	net    *virtio.Net
	wire   *wire
	faults faults
}

// faults counts what a device reports.
type faults struct {
	mu    sync.Mutex
	count int
	last  error
}

func (f *faults) add(_ string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.last = f.count+1, err
}

func (f *faults) seen() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, f.last
}

func testHost(g *virtiotest.Guest, f *faults) virtio.Host {
	return virtio.Host{Memory: g.Memory, MSI: g, Logger: slog.New(slog.DiscardHandler), OnFault: f.add}
}

// newNet builds a frozen network device on a guest of its own. The caller closes it.
func newNet(t testing.TB, room int) *netRig {
	t.Helper()
	r := &netRig{wire: newWire(room)}
	g := virtiotest.NewGuest(t)
	var err error
	r.net, err = virtio.NewNet("net0", virtio.NetConfig{MAC: testMAC, Backend: r.wire}, testHost(g, &r.faults))
	if err != nil {
		t.Fatal(err)
	}
	g.Attach(1, r.net.Function())
	r.Driver = &virtiotest.Driver{Guest: g}
	return r
}

// startNet is newNet, running, with a driver that wants the features.
func startNet(t testing.TB, room int, features uint64) *netRig {
	t.Helper()
	r := newNet(t, room)
	t.Cleanup(func() {
		if err := r.net.Close(); err != nil {
			t.Error(err)
		}
	})
	r.net.Thaw()
	r.Driver = virtiotest.Find(r.Guest, 1)
	r.Start(features, 64)
	return r
}

func (r *netRig) rx() *virtiotest.Ring   { return r.Rings[0] }
func (r *netRig) tx() *virtiotest.Ring   { return r.Rings[1] }
func (r *netRig) ctrl() *virtiotest.Ring { return r.Rings[2] }

// frame is an empty header and an Ethernet frame with size bytes after its header.
func frame(seed byte, size int) []byte {
	f := make([]byte, virtio.NetHeaderSize+14+size)
	for i := virtio.NetHeaderSize; i < len(f); i++ {
		f[i] = seed + byte(i)
	}
	return f
}

// send makes a frame available, split at the given offsets.
func (r *netRig) send(t testing.TB, f []byte, cuts ...int) {
	t.Helper()
	var parts []virtiotest.Buffer
	at := r.Alloc(uint64(len(f)), 1)
	copy(r.Bytes(at, uint64(len(f))), f)
	from := 0
	for _, cut := range append(cuts, len(f)) {
		parts = append(parts, virtiotest.Buffer{Addr: at + uint64(from), Len: uint32(cut - from)})
		from = cut
	}
	if _, ok := r.tx().Add(parts, nil); !ok {
		t.Fatal("the transmit queue is full")
	}
}

func (r *netRig) awaitSent(n int) [][]byte {
	r.Await(fmt.Sprintf("frame %d", n), func() bool { return len(r.wire.frames()) >= n })
	return r.wire.frames()
}

// post makes n receive buffers of the given size available, and returns where they are.
func (r *netRig) post(t testing.TB, n int, size uint32) map[uint16]uint64 {
	t.Helper()
	at := map[uint16]uint64{}
	for range n {
		b := virtiotest.Buffer{Addr: r.Alloc(uint64(size), 1), Len: size}
		head, ok := r.rx().Add(nil, []virtiotest.Buffer{b})
		if !ok {
			t.Fatal("the receive queue is full")
		}
		at[head] = b.Addr
	}
	r.rx().Kick()
	return at
}

// receive takes one frame off the receive queue, and how many buffers it says that it takes.
func (r *netRig) receive(at map[uint16]uint64) (f []byte, buffers int) {
	for buffers = 1; buffers > 0; buffers-- {
		head, n := r.rx().AwaitUsed()
		f = append(f, r.Bytes(at[head], uint64(n))...)
		if len(f) == int(n) {
			buffers = int(binary.LittleEndian.Uint16(f[10:]))
		}
	}
	return f, int(binary.LittleEndian.Uint16(f[10:]))
}
