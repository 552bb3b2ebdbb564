package virtio_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/devicestest"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

func TestNetTransmitsInOrder(t *testing.T) {
	for _, features := range []uint64{0, virtiotest.FeatureEventIdx, allFeatures} {
		t.Run(fmt.Sprintf("features %#x", features), func(t *testing.T) {
			r := startNet(t, 1000, features)
			var want [][]byte
			for i := range 200 {
				f := frame(byte(i), 100+i)
				want = append(want, f)
				r.send(t, f, []int{12, 12 + 14, 5}[i%3])
				r.tx().Kick()
				if i%20 == 19 {
					for range 20 {
						r.tx().AwaitUsed()
					}
				}
			}
			got := r.awaitSent(len(want))
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("frame %d is\n%x, want\n%x", i, got[i], want[i])
				}
			}
			if n, err := r.faults.seen(); n != 0 {
				t.Errorf("%d faults, the last: %v", n, err)
			}
		})
	}
}

func TestNetStopsWhenTheBackendIsFull(t *testing.T) {
	r := startNet(t, 2, allFeatures)
	var want [][]byte
	for i := range 5 {
		want = append(want, frame(byte(i), 60))
		r.send(t, want[i])
	}
	r.tx().Kick()
	r.tx().AwaitUsed()
	r.tx().AwaitUsed()
	time.Sleep(10 * time.Millisecond)
	if _, _, ok := r.tx().Used(); ok {
		t.Error("a frame that the backend did not take was answered")
	}
	r.wire.makeRoom(2)
	r.awaitSent(4)
	r.wire.makeRoom(2)
	got := r.awaitSent(5)
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("frame %d differs", i)
		}
	}
	for range 3 {
		r.tx().AwaitUsed()
	}
}

func TestNetReceivesMergedBuffers(t *testing.T) {
	r := startNet(t, 0, allFeatures)
	at := r.post(t, 8, 1000)
	for _, size := range []int{60, 1000, 3500} {
		f := frame(byte(size), size)
		f[10] = 77 // num_buffers of the backend means nothing
		r.wire.in <- f
		got, buffers := r.receive(at)
		if want := (len(f) + 999) / 1000; buffers != want {
			t.Errorf("%d bytes: %d buffers, want %d", len(f), buffers, want)
		}
		if !bytes.Equal(got[12:], f[12:]) {
			t.Errorf("%d bytes: contents differ", len(f))
		}
	}
}

func TestNetReceiveWaitsForBuffers(t *testing.T) {
	for _, features := range []uint64{netMergeable, netMergeable | virtiotest.FeatureEventIdx} {
		r := startNet(t, 0, features)
		at := r.post(t, 2, 1000)
		f := frame(1, 3500)
		r.wire.in <- f
		time.Sleep(5 * time.Millisecond)
		if _, _, ok := r.rx().Used(); ok {
			t.Fatal("part of a frame was delivered")
		}
		for head, addr := range r.post(t, 1, 1000) {
			at[head] = addr
		}
		for head, addr := range r.post(t, 1, 1000) {
			at[head] = addr
		}
		got, buffers := r.receive(at)
		if buffers != 4 || !bytes.Equal(got[12:], f[12:]) {
			t.Errorf("features %#x: %d buffers, contents equal %v", features, buffers, bytes.Equal(got[12:], f[12:]))
		}
	}
}

func TestNetReceivesWithoutMerging(t *testing.T) {
	r := startNet(t, 0, netGuestCsum)
	at := r.post(t, 2, 1500)
	r.wire.in <- frame(1, 2000) // does not fit: lost
	r.wire.in <- frame(2, 1400)
	got, buffers := r.receive(at)
	if want := frame(2, 1400); buffers != 1 || !bytes.Equal(got[12:], want[12:]) {
		t.Errorf("%d buffers, %d bytes", buffers, len(got))
	}
	if n, _ := r.faults.seen(); n != 1 {
		t.Errorf("%d faults, want one for the frame that was lost", n)
	}
}

func TestNetTellsOffloads(t *testing.T) {
	r := startNet(t, 0, netGuestCsum|netGuestTSO4)
	if want := [4]bool{true, true, false, false}; r.wire.offloads != want {
		t.Errorf("offloads %v, want %v", r.wire.offloads, want)
	}
}

func TestNetRefusesFeatureCombinations(t *testing.T) {
	r := startNet(t, 0, 0)
	for _, c := range []struct {
		features uint64
		ok       bool
	}{
		{0, false}, // without VERSION_1
		{virtiotest.FeatureVersion1, true},
		{virtiotest.FeatureVersion1 | netHostTSO4, false},
		{virtiotest.FeatureVersion1 | netHostTSO4 | netCsum, true},
		{virtiotest.FeatureVersion1 | netCsum | netHostECN, false},
		{virtiotest.FeatureVersion1 | netAnnounce, false},
		{virtiotest.FeatureVersion1 | netAnnounce | netCtrlVQ, true},
		{virtiotest.FeatureVersion1 | 1<<40, false}, // not offered
	} {
		r.Reset()
		if ok := r.Accept(c.features); ok != c.ok {
			t.Errorf("features %#x accepted: %v, want %v", c.features, ok, c.ok)
		}
	}
}

func TestNetChecksTransmitHeaders(t *testing.T) {
	header := func(flags, gso byte, hdrLen, gsoSize, start, offset uint16) []byte {
		f := frame(3, 200)
		f[0], f[1] = flags, gso
		for i, v := range []uint16{hdrLen, gsoSize, start, offset, 9} {
			binary.LittleEndian.PutUint16(f[2+2*i:], v)
		}
		return f
	}
	for _, c := range []struct {
		name     string
		features uint64
		frame    []byte
		want     []byte // header; nil: the frame is dropped
	}{
		{"unknown flags are cleared", netCsum, header(0xfe, 0, 5, 5, 5, 5), make([]byte, 12)},
		{"checksum", netCsum, header(1, 0, 5, 5, 34, 16), []byte{1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0}},
		{"checksum not negotiated", 0, header(1, 0, 0, 0, 34, 16), nil},
		{"checksum at the end", netCsum, header(1, 0, 0, 0, 200, 12), []byte{1, 0, 0, 0, 0, 0, 200, 0, 12, 0, 0, 0}},
		{"checksum beyond the end", netCsum, header(1, 0, 0, 0, 200, 13), nil},
		{"checksum wraps", netCsum, header(1, 0, 0, 0, 0xffff, 0xffff), nil},
		{
			"segments", netCsum | netHostTSO4, header(1, 1, 54, 1448, 34, 16),
			[]byte{1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0},
		},
		{
			"header length is bounded", netCsum | netHostTSO4, header(1, 1, 0xffff, 1448, 34, 16),
			[]byte{1, 1, 214, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0},
		},
		{"segments without checksum", netCsum | netHostTSO4, header(0, 1, 54, 1448, 34, 16), nil},
		{"segments of no size", netCsum | netHostTSO4, header(1, 1, 54, 0, 34, 16), nil},
		{"segments not negotiated", netCsum | netHostTSO6, header(1, 1, 54, 1448, 34, 16), nil},
		{"ECN not negotiated", netCsum | netHostTSO4, header(1, 0x81, 54, 1448, 34, 16), nil},
		{"UDP segments", allFeatures, header(1, 3, 54, 1448, 34, 16), nil},
		{"too short", allFeatures, make([]byte, 12+13), nil},
		{"too long", allFeatures, make([]byte, virtio.NetFrameMax+1), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := startNet(t, 10, c.features)
			r.send(t, c.frame)
			marker := frame(99, 60)
			r.send(t, marker)
			r.tx().Kick()
			r.tx().AwaitUsed()
			r.tx().AwaitUsed()
			sent := r.wire.frames()
			if !bytes.Equal(sent[len(sent)-1], marker) {
				t.Fatal("the frame after it was not sent")
			}
			if c.want == nil {
				if n, _ := r.faults.seen(); len(sent) != 1 || n != 1 {
					t.Errorf("%d frames sent and %d faults, want it dropped and reported", len(sent), n)
				}
				return
			}
			if len(sent) != 2 || !bytes.Equal(sent[0][:12], c.want) {
				t.Errorf("sent header %x, want %x", sent[0][:12], c.want)
			}
		})
	}
}

func TestNetDropsWhatTheGuestCannotTake(t *testing.T) {
	r := startNet(t, 0, netMergeable)
	at := r.post(t, 4, 1600)
	csum := frame(1, 100)
	csum[0] = 1
	tso := frame(1, 100)
	tso[1] = 1
	for _, f := range [][]byte{csum, tso, make([]byte, 20)} {
		r.wire.in <- f
	}
	valid := frame(2, 100)
	valid[0] = 2 // DATA_VALID, which only a driver with GUEST_CSUM knows
	r.wire.in <- valid
	got, _ := r.receive(at)
	if got[0] != 0 || !bytes.Equal(got[12:], valid[12:]) {
		t.Errorf("received %x", got)
	}
	if n, _ := r.faults.seen(); n != 3 {
		t.Errorf("%d faults, want 3", n)
	}
}

func TestNetAnnounces(t *testing.T) {
	r := startNet(t, 0, allFeatures)
	generation := r.CommonRead(virtiotest.RegGeneration, 1)
	r.net.Announce()
	r.Await("the configuration interrupt", func() bool { return r.ConfigInterrupts() == 1 })
	if s := r.Read(r.Device+6, 2); s != 3 {
		t.Errorf("link status %#x, want up and announce", s)
	}
	if g := r.CommonRead(virtiotest.RegGeneration, 1); g == generation {
		t.Error("the configuration's generation did not change")
	}
	ask := func(class, command byte) byte {
		at := r.Alloc(3, 1)
		copy(r.Bytes(at, 3), []byte{class, command, 0xaa})
		r.ctrl().Add([]virtiotest.Buffer{{Addr: at, Len: 2}}, []virtiotest.Buffer{{Addr: at + 2, Len: 1}})
		r.ctrl().Kick()
		r.ctrl().AwaitUsed()
		return r.Bytes(at+2, 1)[0]
	}
	if a := ask(1, 0); a != 1 {
		t.Errorf("an unknown command was answered with %d", a)
	}
	if a := ask(3, 0); a != 0 {
		t.Errorf("the acknowledgement was answered with %d", a)
	}
	if s := r.Read(r.Device+6, 2); s != 1 {
		t.Errorf("link status %#x after the acknowledgement", s)
	}
	r.net.SetLink(false)
	r.Await("the configuration interrupt", func() bool { return r.ConfigInterrupts() == 2 })
	if s := r.Read(r.Device+6, 2); s != 0 {
		t.Errorf("link status %#x after the link went down", s)
	}
}

func TestNetConfig(t *testing.T) {
	g := virtiotest.NewGuest(t)
	for _, c := range []virtio.NetConfig{
		{MAC: [6]byte{1}, Backend: newWire(0)},
		{Backend: newWire(0)},
		{MAC: testMAC, MTU: 67, Backend: newWire(0)},
	} {
		if _, err := virtio.NewNet("net0", c, testHost(g, &faults{})); err == nil {
			t.Errorf("configuration %+v was taken", c)
		}
	}
}

// netConformance has traffic in both directions before and after the save, and a frame that the backend had no room for.
func netConformance(t testing.TB) *devicestest.Rig {
	n := newNet(t, 3)
	rig := &devicestest.Rig{Device: n.net, Guest: n}
	var at map[uint16]uint64
	rig.Prepare = func(t testing.TB) {
		n.Driver = virtiotest.Find(n.Guest, 1)
		n.Start(allFeatures, 64)
		for i := range 4 {
			n.send(t, frame(byte(i), 100))
		}
		n.tx().Kick()
		n.awaitSent(3)
		for range 3 {
			n.tx().AwaitUsed()
		}
		at = n.post(t, 6, 200)
		n.wire.in <- frame(50, 300)
		n.receive(at)
	}
	rig.Inherit = func(t testing.TB, from *devicestest.Rig) {
		old := from.Guest.(*netRig)
		n.Inherit(old.Guest)
		n.Driver = old.MoveTo(n.Guest)
		at = map[uint16]uint64{}
	}
	rig.CarryOn = func(t testing.TB) {
		n.wire.makeRoom(10)
		n.send(t, frame(4, 100))
		n.tx().Kick()
		n.Await("the frame that waited, and the one after", func() bool {
			s := n.wire.frames()
			return len(s) >= 2 && bytes.Equal(s[len(s)-2], frame(3, 100)) && bytes.Equal(s[len(s)-1], frame(4, 100))
		})
		n.tx().AwaitUsed()
		n.tx().AwaitUsed()
		// Buffers that were posted before are still there: three of six, of 200 bytes.
		n.wire.in <- frame(60, 500)
		total := 0
		for range 3 {
			_, size := n.rx().AwaitUsed()
			total += int(size)
		}
		if total != len(frame(60, 500)) {
			t.Errorf("received %d bytes", total)
		}
	}
	return rig
}

func TestNetConformance(t *testing.T) { devicestest.Run(t, netConformance) }
