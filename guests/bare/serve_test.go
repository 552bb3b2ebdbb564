package bare_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/pollux-ha/pollux/guests/register"
)

var (
	hostMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	guestMAC  = net.HardwareAddr{0x52, 0x54, 0, 0xab, 0xcd, 0xef}
	broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	hostIP    = net.IPv4(10, 9, 0, 1).To4()
	guestIP   = net.IPv4(10, 9, 0, 2).To4()
)

const (
	addressOptions = " ip=10.9.0.2/24 gw=10.9.0.1 port=7000"
	clientPort     = 5555
)

// wire carries Ethernet frames to and from a guest.
type wire interface {
	send(frame []byte) error
	// receive waits for a frame until a time; its error is then os.ErrDeadlineExceeded.
	receive(until time.Time) ([]byte, error)
}

// cable is a network whose other end is the guest.
type cable struct {
	t testing.TB
	wire
}

// socketWire is a wire to QEMU: one datagram on a Unix socket is one frame.
type socketWire struct {
	conn  *net.UnixConn
	guest *net.UnixAddr
}

// newSocketCable plugs into a virtio-net device with further properties ("" or ",key=value..."), which the arguments for
// QEMU define.
func newSocketCable(t *testing.T, properties string) (c cable, args []string) {
	t.Helper()
	dir := shortDir(t)
	host := &net.UnixAddr{Name: filepath.Join(dir, "host"), Net: "unixgram"}
	guest := &net.UnixAddr{Name: filepath.Join(dir, "guest"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return cable{t, &socketWire{conn, guest}}, []string{
		"-netdev", fmt.Sprintf("dgram,id=net,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s", guest, host),
		"-device", fmt.Sprintf("virtio-net-pci,disable-legacy=on,netdev=net,mac=%s%s", guestMAC, properties),
	}
}

func (w *socketWire) send(frame []byte) error {
	_, err := w.conn.WriteToUnix(frame, w.guest)
	return err
}

func (w *socketWire) receive(until time.Time) ([]byte, error) {
	if err := w.conn.SetReadDeadline(until); err != nil {
		return nil, err
	}
	frame := make([]byte, 2048)
	n, err := w.conn.Read(frame)
	return frame[:n], err
}

func (c cable) put(frame []byte) {
	c.t.Helper()
	if err := c.send(frame); err != nil {
		c.t.Fatal(err)
	}
}

// await returns the next frame that match accepts and skips others.
func (c cable) await(what string, match func(gopacket.Packet) bool) gopacket.Packet {
	c.t.Helper()
	for until := time.Now().Add(patience); ; {
		frame, err := c.receive(until)
		if err != nil {
			c.t.Fatalf("waiting for %s: %v", what, err)
		}
		if p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default); match(p) {
			return p
		}
	}
}

// silent expects no frame for a while.
func (c cable) silent(d time.Duration) {
	c.t.Helper()
	if frame, err := c.receive(time.Now().Add(d)); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("an unexpected frame % x (%v)", frame, err)
	}
}

func frameOf(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	o := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, o, parts...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ethernet(to net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: hostMAC, DstMAC: to, EthernetType: kind}
}

func arp(t *testing.T, op uint16, to net.HardwareAddr) []byte {
	return frameOf(t, ethernet(to, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: op, SourceHwAddress: hostMAC, SourceProtAddress: hostIP,
		DstHwAddress: make([]byte, 6), DstProtAddress: guestIP,
	})
}

func ipv4(protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 9, Protocol: protocol, SrcIP: hostIP, DstIP: guestIP}
}

func udp(t testing.TB, payload []byte) []byte {
	t.Helper()
	ip := ipv4(layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: clientPort, DstPort: 7000}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return frameOf(t, ethernet(guestMAC, layers.EthernetTypeIPv4), ip, u, gopacket.Payload(payload))
}

// answer waits for the next UDP datagram, checks its headers and checksums, and decodes it.
func (c cable) answer() register.Answer {
	c.t.Helper()
	p := c.await("a UDP answer", func(p gopacket.Packet) bool { return p.Layer(layers.LayerTypeUDP) != nil })
	ip, u := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ip.SrcIP.Equal(guestIP) || !ip.DstIP.Equal(hostIP) || u.SrcPort != 7000 || u.DstPort != clientPort {
		c.t.Fatalf("an answer from %v:%v to %v:%v", ip.SrcIP, u.SrcPort, ip.DstIP, u.DstPort)
	}
	// Serialising it again computes the checksums that it should have.
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		c.t.Fatal(err)
	}
	again := frameOf(c.t, p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), ip, u, gopacket.Payload(u.Payload))
	if sum := again[40:42]; sum[0] == 0 && sum[1] == 0 {
		copy(sum, "\xff\xff") // a sum of zero is sent as all ones (RFC 768), which the library leaves out
	}
	if !bytes.HasPrefix(again, p.Data()) {
		c.t.Fatalf("headers or checksums are wrong: % x, want % x", p.Data(), again)
	}
	a, err := register.ParseAnswer(u.Payload)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c cable) ask(r register.Request) register.Answer {
	c.t.Helper()
	c.put(udp(c.t, register.AppendRequest(nil, r)))
	return c.answer()
}

func isARP(op uint16) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && a.Operation == op && bytes.Equal(a.SourceHwAddress, guestMAC) &&
			guestIP.Equal(net.IP(a.SourceProtAddress)) && hostIP.Equal(net.IP(a.DstProtAddress))
	}
}

func TestServe(t *testing.T) {
	for _, tt := range []struct{ name, options, properties string }{
		{"event index", "", ""},
		{"no event index", "", ",event_idx=off"},
		{"polled", " irq=poll", ""},
		{"no MSI-X", "", ",vectors=0"},
		{"small queues", "", ",rx_queue_size=256,tx_queue_size=256,mrg_rxbuf=off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, args := newSocketCable(t, tt.properties)
			g := boot(t, "mode=serve+dirty rate=500"+addressOptions+tt.options, args...)
			testServer(t, &g.console, c)
		})
	}
}

// testServer holds a guest that has just been started to account.
func testServer(t *testing.T, g *console, c cable) {
	g.line("ready")
	c.await("a question for the gateway", isARP(layers.ARPRequest))
	c.put(arp(t, layers.ARPReply, guestMAC))
	c.put(arp(t, layers.ARPRequest, broadcast))
	c.await("an ARP answer", isARP(layers.ARPReply))
	testEcho(t, c)
	testRegisters(t, c)
	testBurst(t, c)
	for counters(t, g.line("tick="))["answers"] < 6+burst { // lines may be older than the answers
	}
}

func testEcho(t *testing.T, c cable) {
	payload := bytes.Repeat([]byte("echo!"), 291) // with its headers 1497 bytes, nearly a full frame; and an odd length
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 77, Seq: 3}
	ip := ipv4(layers.IPProtocolICMPv4)
	c.put(frameOf(t, ethernet(guestMAC, layers.EthernetTypeIPv4), ip, icmp, gopacket.Payload(payload)))
	p := c.await("an echo", func(p gopacket.Packet) bool { return p.Layer(layers.LayerTypeICMPv4) != nil })
	got := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if got.TypeCode.Type() != layers.ICMPv4TypeEchoReply || got.Id != 77 || got.Seq != 3 || !bytes.Equal(got.Payload, payload) {
		t.Errorf("echo answer %v", got)
	}
}

func testRegisters(t *testing.T, c cable) {
	first := c.ask(register.Request{Op: register.Write, Register: 255, Client: 1<<63 | 5, ID: 10, Value: 1<<63 | 42})
	if first.Sequence != 1 || first.Boot == 0 {
		t.Errorf("first answer %+v, want sequence 1 and a boot number", first)
	}
	want := first
	check := func(name string, got register.Answer) {
		t.Helper()
		want.Sequence++
		if got != want {
			t.Errorf("%s: answer %+v, want %+v", name, got, want)
		}
	}
	want.Value, want.Status = 1<<63|42, register.OK
	want.Op, want.ID = register.Read, 11
	check("read", c.ask(register.Request{Op: register.Read, Register: 255, Client: 1<<63 | 5, ID: 11, Value: 9}))
	want.Op, want.Status, want.ID = register.CompareAndSwap, register.Mismatch, 12
	check("mismatch", c.ask(register.Request{
		Op: register.CompareAndSwap, Register: 255, Client: 1<<63 | 5, ID: 12, Value: 9, Expect: 8,
	}))
	want.Status, want.Value = register.OK, 9
	check("swap", c.ask(register.Request{
		Op: register.CompareAndSwap, Register: 255, Client: 1<<63 | 5, ID: 12, Value: 9, Expect: 1<<63 | 42,
	}))
	want.Op, want.Register, want.Status, want.Value = register.Read, 256, register.BadRequest, 0
	check("no such register", c.ask(register.Request{Op: register.Read, Register: 256, Client: 1<<63 | 5, ID: 12}))

	good := udp(t, register.AppendRequest(nil, register.Request{Op: register.Read}))
	badSum := bytes.Clone(good)
	badSum[len(badSum)-1] ^= 1
	otherHost := bytes.Clone(good)
	copy(otherHost, hostMAC)
	for _, frame := range [][]byte{
		badSum, otherHost, good[:len(good)-1], good[:20], good[:10],
		udp(t, []byte("PLXQ")), udp(t, make([]byte, register.RequestSize)), udp(t, nil),
	} {
		c.put(frame)
	}
	c.silent(200 * time.Millisecond)
}

const burst = 2000

// testBurst keeps more frames under way than the rings have buffers; every answer arrives, in order.
func testBurst(t *testing.T, c cable) {
	base := c.ask(register.Request{Op: register.Read}).Sequence
	sent := make(chan struct{}, 100) // requests without an answer: QEMU drops what a full receive ring can't take
	go func() {
		for id := range uint64(burst) {
			sent <- struct{}{}
			frame := udp(t, register.AppendRequest(nil, register.Request{Op: register.Write, Register: 3, ID: id, Value: id}))
			if err := c.send(frame); err != nil {
				t.Errorf("request %d: %v", id, err)
				return
			}
		}
	}()
	for id := range uint64(burst) {
		a := c.answer()
		if a.ID != id || a.Value != id || a.Sequence != base+1+id {
			t.Fatalf("answer %+v, want id and value %d and sequence %d", a, id, base+1+id)
		}
		<-sent
	}
}

// TestSurvivesSaveAndRestore stops a guest in the middle of its work and carries on in another QEMU: memory checks, the
// server's state and the devices are what they were.
func TestSurvivesSaveAndRestore(t *testing.T) {
	t.Parallel()
	const options = "mode=dirty+serve pattern=random ws=3000 rate=5000" + addressOptions
	dir := shortDir(t)
	state, socket := filepath.Join(dir, "state"), filepath.Join(dir, "qmp")
	c, args := newSocketCable(t, "")
	g := boot(t, options, append(monitorArgs(socket), args...)...)
	g.line("ready")
	g.line("tick=")
	before := c.ask(register.Request{Op: register.Write, Register: 7, Value: 4711})
	dialMonitor(t, socket).saveTo(state)
	g.kill()

	g = boot(t, options, append([]string{"-incoming", "exec:cat " + state}, args...)...)
	restored := counters(t, g.line("tick="))
	if restored["tick"] < 2 || restored["dirtied"] == 0 {
		t.Errorf("first line after the restore: %v; it starts over", restored)
	}
	after := c.ask(register.Request{Op: register.Read, Register: 7})
	if after.Value != 4711 || after.Boot != before.Boot || after.Sequence != before.Sequence+1 {
		t.Errorf("answers before and after: %+v, %+v", before, after)
	}
	// Far enough for every page written before to be checked after.
	for counters(t, g.line("tick="))["dirtied"] < restored["dirtied"]+3000 {
	}
}
