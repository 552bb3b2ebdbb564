package netbuffer

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/pollux-ha/pollux/devices/state"
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

func newLearner(t testing.TB) *Learner {
	t.Helper()
	l, err := NewLearner(guestMAC)
	must(t, err)
	return l
}

func frameOf(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	f, err := serialize(ls...)
	must(t, err)
	return f
}

func arpFrame(t testing.TB, ether, sender net.HardwareAddr, address string) []byte {
	t.Helper()
	return frameOf(t,
		&layers.Ethernet{SrcMAC: ether, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPReply,
			SourceHwAddress: sender, SourceProtAddress: netip.MustParseAddr(address).AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: make([]byte, 4),
		})
}

func ndFrame(t testing.TB, source string, hops uint8, kind uint8) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: hops, SrcIP: net.ParseIP(source), DstIP: net.ParseIP("ff02::1:ff00:1")}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	must(t, icmp.SetNetworkLayerForChecksum(ip))
	return frameOf(t,
		&layers.Ethernet{SrcMAC: guestMAC, DstMAC: net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6},
		ip, icmp, gopacket.Payload(make([]byte, 20)))
}

func TestLearning(t *testing.T) {
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	udp := frameOf(t,
		&layers.Ethernet{SrcMAC: guestMAC, DstMAC: other, EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{192, 0, 2, 1}, DstIP: net.IP{192, 0, 2, 2}},
		gopacket.Payload(make([]byte, 20)))
	tests := []struct {
		name  string
		frame []byte
		want  string // empty: nothing is learnt
	}{
		{"ARP", arpFrame(t, guestMAC, guestMAC, "10.77.0.10"), "10.77.0.10"},
		{"ARP probe", arpFrame(t, guestMAC, guestMAC, "0.0.0.0"), ""},
		{"ARP from a broadcast address", arpFrame(t, guestMAC, guestMAC, "255.255.255.255"), ""},
		{"ARP for another station", arpFrame(t, guestMAC, other, "10.77.0.11"), ""},
		{"another station's ARP", arpFrame(t, other, other, "10.77.0.11"), ""},
		{"cut ARP", arpFrame(t, guestMAC, guestMAC, "10.77.0.10")[:VnetHeader+ethernetHeader+arpLength-1], ""},
		{"neighbour advertisement", ndFrame(t, "fe80::1", 255, 136), "fe80::1"},
		{"neighbour solicitation", ndFrame(t, "2001:db8::5", 255, 135), "2001:db8::5"},
		{"address that is still being tested", ndFrame(t, "::", 255, 135), ""},
		{"forwarded", ndFrame(t, "2001:db8::5", 254, 136), ""},
		{"echo request", ndFrame(t, "2001:db8::5", 255, 128), ""},
		{"cut neighbour advertisement", ndFrame(t, "fe80::1", 255, 136)[:VnetHeader+ethernetHeader+ipv6Header], ""},
		{"forwarded or other traffic", udp, ""},
		{"runt", make([]byte, VnetHeader+ethernetHeader-1), ""},
		{"nothing", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for cut := 0; cut <= len(tt.frame); cut += 7 {
				l := newLearner(t)
				l.Sent([][]byte{tt.frame[:cut], tt.frame[cut:]})
				var want []netip.Addr
				if tt.want != "" {
					want = []netip.Addr{netip.MustParseAddr(tt.want)}
				}
				if got := l.Addresses(); !slices.Equal(got, want) {
					t.Errorf("cut at %d: learnt %v, want %v", cut, got, want)
				}
			}
		})
	}
}

func TestLearningIsBounded(t *testing.T) {
	l := newLearner(t)
	first := netip.MustParseAddr("10.0.0.1")
	for i, a := 0, first; i < maxAddresses+5; i, a = i+1, a.Next() {
		l.add(a)
		l.add(first) // seen again and again
	}
	got := l.Addresses()
	if len(got) != maxAddresses || got[maxAddresses-1] != first {
		t.Errorf("%d addresses, the last one %v", len(got), got[len(got)-1])
	}
	if n := testing.AllocsPerRun(100, func() { l.add(first) }); n > 0 {
		t.Errorf("%v allocations to see an address again", n)
	}
}

func TestLearnerState(t *testing.T) {
	l := newLearner(t)
	l.add(netip.MustParseAddr("10.0.0.1"))
	l.add(netip.MustParseAddr("fe80::1"))
	var e state.Encoder
	l.Save(&e)
	got := newLearner(t)
	got.add(netip.MustParseAddr("10.9.9.9"))
	must(t, got.Load(state.NewDecoder(e.Bytes())))
	if !slices.Equal(got.Addresses(), l.Addresses()) {
		t.Errorf("loaded %v", got.Addresses())
	}
	for n := range e.Bytes() {
		if err := got.Load(state.NewDecoder(e.Bytes()[:n])); err == nil {
			t.Errorf("state cut to %d bytes is accepted", n)
		}
	}
	bad := func(addresses ...string) {
		t.Helper()
		var e state.Encoder
		s := e.Begin(learnerState, 1)
		e.U8(uint8(len(addresses)))
		for _, a := range addresses {
			b := netip.MustParseAddr(a).As16()
			e.Raw(b[:])
		}
		e.End(s)
		if err := got.Load(state.NewDecoder(e.Bytes())); err == nil {
			t.Errorf("%v is accepted", addresses)
		}
	}
	bad("::")
	bad("ff02::1")
	bad("224.0.0.1")
	bad("10.0.0.1", "10.0.0.1")
	bad(slices.Repeat([]string{"10.0.0.1"}, maxAddresses+1)...)
	if !slices.Equal(got.Addresses(), l.Addresses()) {
		t.Errorf("a refused state changed the learner: %v", got.Addresses())
	}
}

func TestBadMAC(t *testing.T) {
	for _, mac := range []net.HardwareAddr{nil, {1, 2, 3}, {1, 0, 0, 0, 0, 0}, make(net.HardwareAddr, 8)} {
		if _, err := NewLearner(mac); err == nil {
			t.Errorf("%v is accepted", mac)
		}
	}
}

func FuzzLearner(f *testing.F) {
	f.Add(arpFrame(f, guestMAC, guestMAC, "10.77.0.10"), 20)
	f.Add(ndFrame(f, "fe80::1", 255, 136), 30)
	f.Fuzz(func(t *testing.T, frame []byte, cut int) {
		cut = max(0, min(cut, len(frame)))
		l := newLearner(t)
		l.Sent([][]byte{frame[:cut], frame[cut:]})
		for _, a := range l.Addresses() {
			if _, ok := usable(a); !ok {
				t.Errorf("learnt %v", a)
			}
		}
		if _, err := Announcements(guestMAC, l.Addresses()); err != nil {
			t.Error(err)
		}
		_ = l.Load(state.NewDecoder(frame)) // any outcome but a panic
	})
}

func TestAnnouncements(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.77.0.10"), netip.MustParseAddr("2001:db8::5")
	frames, err := Announcements(guestMAC, []netip.Addr{v4, v6})
	must(t, err)
	if len(frames) != 2 {
		t.Fatalf("%d frames", len(frames))
	}
	decode := func(frame []byte) gopacket.Packet {
		t.Helper()
		p := gopacket.NewPacket(frame[VnetHeader:], layers.LayerTypeEthernet, gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Fatal(p.ErrorLayer().Error())
		}
		return p
	}
	arp, _ := decode(frames[0]).Layer(layers.LayerTypeARP).(*layers.ARP)
	if arp == nil || !slices.Equal(arp.SourceProtAddress, v4.AsSlice()) || !slices.Equal(arp.DstProtAddress, v4.AsSlice()) || !slices.Equal(arp.SourceHwAddress, guestMAC) {
		t.Errorf("ARP is %+v", arp)
	}
	p := decode(frames[1])
	na, _ := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if na == nil || !na.TargetAddress.Equal(v6.AsSlice()) || na.Flags != 0x20 || len(na.Options) != 1 || !slices.Equal(na.Options[0].Data, guestMAC) {
		t.Errorf("advertisement is %+v", na)
	}
	// What the learner of another host would conclude from them.
	l := newLearner(t)
	l.Sent(frames[:1])
	l.Sent(frames[1:])
	if !slices.Equal(l.Addresses(), []netip.Addr{v4, v6}) {
		t.Errorf("announced %v", l.Addresses())
	}
	frames, err = Announcements(guestMAC, nil)
	must(t, err)
	if len(frames) != 1 || frames[0][VnetHeader+12] != 0x80 || frames[0][VnetHeader+13] != 0x35 {
		t.Errorf("without addresses: %x", frames)
	}
}

func TestFencedBufferAnnouncesNothing(t *testing.T) {
	w := &wire{}
	b := newBuffer(t, 1<<20, w)
	b.Fence()
	sent := 0
	must(t, announce(t.Context(), newLearner(t), func(frame []byte) bool {
		sent++
		return b.Send([][]byte{frame})
	}))
	b.settles(t)
	if sent != len(announceAt) || len(w.got()) != 0 {
		t.Errorf("tried %d times, %d frames left", sent, len(w.got()))
	}
}

func TestTapNames(t *testing.T) {
	if _, err := OpenTap("a-name-that-is-too-long"); err == nil {
		t.Error("a name of 23 characters is accepted")
	}
	if _, err := OpenPort(PortConfig{MAC: net.HardwareAddr{1}, Logger: quiet}); err == nil || errors.Is(err, ErrClosed) {
		t.Errorf("a port without a MAC: %v", err)
	}
}
