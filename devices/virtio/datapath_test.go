package virtio

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

// sink is a NetBackend that takes everything and looks at nothing.
type sink struct {
	frames int
	closed chan struct{}
}

func (s *sink) Send([][]byte) bool { s.frames++; return true }
func (s *sink) OnSpace(func())     {}
func (s *sink) Receive([]byte) (int, error) {
	<-s.closed
	return 0, errors.New("closed")
}
func (s *sink) SetOffloads(_, _, _, _ bool) error { return nil }
func (s *sink) Close() error                      { close(s.closed); return nil }

func internalHost(g *virtiotest.Guest) Host {
	return Host{Memory: g.Memory, MSI: g, Logger: slog.New(slog.DiscardHandler)}
}

// sinkNet is a running network device whose driver negotiated everything.
func sinkNet(t testing.TB) (*Net, *virtiotest.Driver, *sink) {
	t.Helper()
	g := virtiotest.NewGuest(t)
	s := &sink{closed: make(chan struct{})}
	n, err := NewNet("net0", NetConfig{MAC: [6]byte{2, 0, 0, 0, 0, 1}, Backend: s}, internalHost(g))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	g.Attach(1, n.Function())
	n.Thaw()
	d := virtiotest.Find(g, 1)
	d.Start(^uint64(0), 64)
	return n, d, s
}

// addFrame makes a frame of three buffers available, as Linux sends them: header, headers of the packet, a page's data.
func addFrame(t testing.TB, d *virtiotest.Driver) (head uint16) {
	t.Helper()
	at := d.Alloc(2000, 1)
	head, ok := d.Rings[txQueue].Add([]virtiotest.Buffer{{Addr: at, Len: 12}, {Addr: at + 12, Len: 66}, {Addr: at + 78, Len: 1400}}, nil)
	if !ok {
		t.Fatal("the queue is full")
	}
	return head
}

func TestNetTransmitDoesNotAllocate(t *testing.T) {
	n, d, s := sinkNet(t)
	n.mu.Lock() // this test is the worker
	defer n.mu.Unlock()
	head := addFrame(t, d)
	n.transmit()
	if allocs := testing.AllocsPerRun(100, func() {
		d.Rings[txQueue].Offer(head)
		n.transmit()
	}); allocs != 0 {
		t.Errorf("%v allocations per frame", allocs)
	}
	if s.frames < 100 {
		t.Errorf("only %d frames were sent", s.frames)
	}
}

func TestNetReceiveDoesNotAllocate(t *testing.T) {
	n, d, _ := sinkNet(t)
	n.mu.Lock()
	defer n.mu.Unlock()
	at := d.Alloc(4096, 1)
	var heads []uint16
	for range 3 {
		head, ok := d.Rings[rxQueue].Add(nil, []virtiotest.Buffer{{Addr: at, Len: 1500}})
		if !ok {
			t.Fatal("the queue is full")
		}
		heads = append(heads, head)
	}
	packet := make([]byte, 4000)
	if !n.tryDeliver(packet) {
		t.Fatal("the frame was not delivered")
	}
	if allocs := testing.AllocsPerRun(100, func() {
		for _, head := range heads {
			d.Rings[rxQueue].Offer(head)
		}
		if !n.tryDeliver(packet) {
			panic("the frame was not delivered")
		}
	}); allocs != 0 {
		t.Errorf("%v allocations per frame", allocs)
	}
}

func BenchmarkNetTransmit(b *testing.B) {
	n, d, _ := sinkNet(b)
	n.mu.Lock()
	defer n.mu.Unlock()
	head := addFrame(b, d)
	for b.Loop() {
		d.Rings[txQueue].Offer(head)
		n.transmit()
	}
}

// BenchmarkFreezeSaveThaw is what every checkpoint pays for an idle network device.
func BenchmarkFreezeSaveThaw(b *testing.B) {
	n, _, _ := sinkNet(b)
	var e state.Encoder
	buf := make([]byte, 0, 4096)
	for b.Loop() {
		n.Freeze()
		e.Reset(buf[:0])
		n.Save(&e)
		n.Thaw()
	}
	b.ReportMetric(float64(len(e.Bytes())), "state-bytes")
}
