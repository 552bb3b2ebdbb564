package netbuffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/testtier"
)

const testBridge = "br0"

// enterNamespace moves the test into a network namespace of its own, with a bridge at 10.77.0.1 that has a carrier: one
// that comes and goes would clear the host's neighbour table.
func enterNamespace(t *testing.T) {
	t.Helper()
	testtier.Lab(t)
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	own, err := netns.New()
	must(t, err)
	t.Cleanup(func() {
		must(t, netns.Set(home))
		must(t, errors.Join(own.Close(), home.Close()))
		runtime.UnlockOSThread()
	})
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: testBridge}}
	must(t, netlink.LinkAdd(bridge))
	address, err := netlink.ParseAddr("10.77.0.1/24")
	must(t, err)
	must(t, netlink.AddrAdd(bridge, address))
	must(t, netlink.LinkSetUp(bridge))
	other := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other", MasterIndex: bridge.Index}, PeerName: "peer"}
	must(t, netlink.LinkAdd(other))
	for _, end := range []string{"other", "peer"} {
		link, err := netlink.LinkByName(end)
		must(t, err)
		must(t, netlink.LinkSetUp(link))
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		link, err := netlink.LinkByIndex(bridge.Index)
		must(t, err)
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the bridge is %v after 10 s", link.Attrs().OperState)
		}
	}
}

func openPort(t *testing.T, tap string) *Port {
	t.Helper()
	p, err := OpenPort(PortConfig{Tap: tap, Bridge: testBridge, MAC: guestMAC, Logger: quiet})
	must(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// numberedUDP is a frame from the guest to everybody with a number that shows in a capture.
func numberedUDP(n uint64) []byte {
	f := make([]byte, VnetHeader+ethernetHeader+50)
	e := f[VnetHeader:]
	copy(e, bytes.Repeat([]byte{0xff}, 6))
	copy(e[6:], guestMAC)
	binary.BigEndian.PutUint16(e[12:], 0x88b5) // local experiments, IEEE 802
	binary.BigEndian.PutUint64(e[14:], n)
	return f
}

func TestTapErrors(t *testing.T) {
	enterNamespace(t)
	p := openPort(t, "tap0")
	tests := []struct {
		name string
		c    PortConfig
		is   error
		says string
	}{
		{"taken", PortConfig{Tap: "tap0", MAC: guestMAC}, unix.EBUSY, "taken by another process"},
		{"no bridge", PortConfig{Bridge: "br9", MAC: guestMAC}, nil, `no bridge "br9"`},
		{"not a bridge", PortConfig{Bridge: "tap0", MAC: guestMAC}, nil, "not a bridge"},
		{"not a tap", PortConfig{Tap: testBridge, MAC: guestMAC}, unix.EINVAL, "no tap"},
		{"impossible name", PortConfig{Tap: "a/b", MAC: guestMAC}, unix.EINVAL, "impossible"},
	}
	for _, tt := range tests {
		// No subtests: they would run on another thread, in another namespace.
		tt.c.Logger = quiet
		_, err := OpenPort(tt.c)
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	must(t, p.Close())
	openPort(t, "tap0") // free again
}

func TestReceive(t *testing.T) {
	enterNamespace(t)
	p := openPort(t, "tap0")
	must(t, p.SetOffloads(true, true, true, true))
	must(t, p.SetOffloads(false, false, false, false))
	buf := make([]byte, MaxFrame)
	got := make(chan []byte)
	go func() {
		defer close(got)
		for {
			n, err := p.Receive(buf)
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("receive: %v", err)
				}
				return
			}
			got <- bytes.Clone(buf[:n])
		}
	}()
	host := openPort(t, "tap1")
	must(t, host.Activate())
	must(t, host.Buffer().Passthrough())
	host.Send([][]byte{numberedUDP(1)})
	select {
	case f := <-got:
		t.Fatalf("an inactive port received %x", f)
	case <-time.After(50 * time.Millisecond):
	}
	must(t, p.Activate())
	must(t, p.Activate())
	host.Send([][]byte{numberedUDP(2)})
	for f := range got {
		if f := f[VnetHeader:]; bytes.Equal(f[6:12], guestMAC) {
			if n := binary.BigEndian.Uint64(f[14:]); n != 2 {
				t.Errorf("received frame %d", n)
			}
			break
		}
	}
	must(t, p.Deactivate())
	must(t, p.Close())
	for range got {
	}
	if err := p.Activate(); !errors.Is(err, ErrClosed) {
		t.Errorf("activate after close: %v", err)
	}
}

// What a recorder on the bridge sees is what was released, in order, and never before its release.
func TestNoFrameOfAnUncommittedEpochLeaves(t *testing.T) {
	enterNamespace(t)
	p := openPort(t, "tap0")
	must(t, p.Activate())
	var capture bytes.Buffer
	r, err := Record(testBridge, &capture)
	must(t, err)
	const epochs, perEpoch = 40, 25
	releasedAt := make([]time.Time, epochs)
	var n uint64
	for epoch := range uint64(epochs) {
		for range perEpoch {
			if !p.Send([][]byte{numberedUDP(n)}) {
				t.Fatal("the buffer is full")
			}
			n++
		}
		must(t, p.Buffer().CloseEpoch(epoch))
		if epoch >= 2 {
			releasedAt[epoch-2] = time.Now()
			must(t, p.Buffer().Release(epoch-2))
		}
		time.Sleep(200 * time.Microsecond)
	}
	p.Buffer().settles(t)
	p.Buffer().Fence() // the last two epochs are lost with the host
	frames, dropped, err := r.Stop()
	must(t, err)
	if dropped > 0 {
		t.Fatalf("the recorder missed %d frames", dropped)
	}
	pcap, err := pcapgo.NewReader(&capture)
	must(t, err)
	var next, all uint64
	for {
		f, info, err := pcap.ReadPacketData()
		if err != nil {
			break
		}
		all++
		if !bytes.Equal(f[6:12], guestMAC) {
			continue
		}
		number := binary.BigEndian.Uint64(f[14:])
		if number != next {
			t.Fatalf("frame %d on the bridge, frame %d was next", number, next)
		}
		next++
		if at := releasedAt[number/perEpoch]; at.IsZero() || info.Timestamp.Before(at) {
			t.Errorf("frame %d was on the bridge at %v, its epoch %d was released at %v", number, info.Timestamp, number/perEpoch, at)
		}
	}
	if next != (epochs-2)*perEpoch || all != frames {
		t.Errorf("%d of the guest's frames on the bridge, want %d; %d frames in the file, %d recorded", next, (epochs-2)*perEpoch, all, frames)
	}
}

// A tap that goes down puts the writer off; nothing is lost and the order stays.
func TestTapGoesDownAndUp(t *testing.T) {
	enterNamespace(t)
	p := openPort(t, "tap0")
	var capture bytes.Buffer
	r, err := Record(testBridge, &capture)
	must(t, err)
	must(t, p.Buffer().Passthrough())
	for n := range uint64(20) {
		p.Send([][]byte{numberedUDP(n)}) // down: not activated yet
	}
	time.Sleep(10 * time.Millisecond)
	if s := p.Buffer().Snapshot(); s.Retries == 0 || s.ReleasedFrames != 0 {
		t.Errorf("stats of a tap that is down: %+v", s)
	}
	must(t, p.Activate())
	p.Buffer().settles(t)
	_, _, err = r.Stop()
	must(t, err)
	pcap, err := pcapgo.NewReader(&capture)
	must(t, err)
	var next uint64
	for {
		f, _, err := pcap.ReadPacketData()
		if err != nil {
			break
		}
		if bytes.Equal(f[6:12], guestMAC) {
			if n := binary.BigEndian.Uint64(f[14:]); n != next {
				t.Fatalf("frame %d on the bridge, frame %d was next", n, next)
			}
			next++
		}
	}
	if next != 20 {
		t.Errorf("%d frames on the bridge", next)
	}
}

// A takeover from one tap to another: the host's neighbour table and the bridge follow the announcement.
func TestAnnouncementMovesTheGuest(t *testing.T) {
	enterNamespace(t)
	address := netip.MustParseAddr("10.77.0.10")
	first, second := openPort(t, "tap0"), openPort(t, "tap1")
	must(t, first.Activate())
	must(t, first.Buffer().Passthrough())
	// The host asks for the guest; the answer teaches the port.
	bridge, err := netlink.LinkByName(testBridge)
	must(t, err)
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: address.AsSlice(), HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}, State: netlink.NUD_STALE}))
	first.Send([][]byte{arpFrame(t, guestMAC, guestMAC, address.String())})
	if got := first.Learner().Addresses(); len(got) != 1 || got[0] != address {
		t.Fatalf("learnt %v", got)
	}
	first.Buffer().Fence()
	second.Learner().add(address)
	must(t, second.Activate())
	must(t, second.Buffer().Passthrough())
	must(t, second.Announce(t.Context()))
	neighbours, err := netlink.NeighList(bridge.Attrs().Index, netlink.FAMILY_V4)
	must(t, err)
	found := false
	for _, n := range neighbours {
		found = found || n.IP.Equal(address.AsSlice()) && bytes.Equal(n.HardwareAddr, guestMAC)
	}
	if !found {
		t.Errorf("the host's neighbours are %v", neighbours)
	}
	tap, err := netlink.LinkByName("tap1")
	must(t, err)
	table, err := netlink.NeighList(tap.Attrs().Index, unix.AF_BRIDGE)
	must(t, err)
	found = false
	for _, n := range table {
		found = found || bytes.Equal(n.HardwareAddr, guestMAC)
	}
	if !found {
		t.Errorf("the bridge's table for tap1 is %v", table)
	}
}

func TestRecorderErrors(t *testing.T) {
	if _, err := Record("no-such-if", &bytes.Buffer{}); err == nil {
		t.Error("an interface that does not exist is recorded")
	}
}
