package netbuffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/pollux-ha/pollux/devices/state"
)

// maxAddresses bounds the addresses of one guest that are remembered; the one that was not seen for longest makes room.
const maxAddresses = 32

const (
	macLength      = 6
	ethernetHeader = 14
	arpLength      = 28
	ipv6Header     = 40
	// enough of a frame to see everything that learn looks at
	learnLength = VnetHeader + ethernetHeader + ipv6Header + 8
)

// Learner collects the addresses by which others know the guest, from what the guest says about itself: the senders of
// its ARP and the sources of its neighbour discovery. Sources of other packets don't count: a guest that forwards sends
// other hosts' packets, and claiming their addresses would take them down.
//
// A guest can't talk to anybody over IPv4 or IPv6 without either, so nothing is missed. Tagged frames are not looked at.
type Learner struct {
	mac [macLength]byte

	mu        sync.Mutex
	addresses []netip.Addr // the one seen last comes last
}

// NewLearner makes a learner for the guest with the given Ethernet address.
func NewLearner(mac net.HardwareAddr) (*Learner, error) {
	if len(mac) != macLength {
		return nil, fmt.Errorf("learn addresses of %q: not an Ethernet address", mac)
	}
	if mac[0]&1 != 0 {
		return nil, fmt.Errorf("learn addresses of %v: a group address can't be a card's", mac)
	}
	return &Learner{mac: [macLength]byte(mac), addresses: make([]netip.Addr, 0, maxAddresses)}, nil
}

// Sent looks at a frame of the guest, with its vnet header.
func (l *Learner) Sent(parts [][]byte) {
	var buf [learnLength]byte
	n := 0
	for _, p := range parts {
		n += copy(buf[n:], p)
	}
	if n < VnetHeader+ethernetHeader {
		return
	}
	if addr, ok := announced(buf[VnetHeader:n], l.mac); ok {
		l.add(addr)
	}
}

// announced is the address that a frame of the station mac says is its own.
func announced(frame []byte, mac [macLength]byte) (netip.Addr, bool) {
	if !bytes.Equal(frame[macLength:2*macLength], mac[:]) {
		return netip.Addr{}, false
	}
	payload := frame[ethernetHeader:]
	switch binary.BigEndian.Uint16(frame[2*macLength:]) {
	case 0x0806:
		return fromARP(payload, mac)
	case 0x86dd:
		return fromND(payload)
	}
	return netip.Addr{}, false
}

// fromARP takes the sender of an ARP packet for IPv4 over Ethernet (RFC 826). Probes have none (RFC 5227 §2.1.1).
func fromARP(p []byte, mac [macLength]byte) (netip.Addr, bool) {
	if len(p) < arpLength || string(p[:6]) != "\x00\x01\x08\x00\x06\x04" || !bytes.Equal(p[8:14], mac[:]) {
		return netip.Addr{}, false
	}
	return usable(netip.AddrFrom4([4]byte(p[14:18])))
}

// fromND takes the source of a neighbour discovery message, types 133 to 137, which is valid only with a hop limit of 255
// (RFC 4861 §7.1). Duplicate address detection has no source.
func fromND(p []byte) (netip.Addr, bool) {
	const icmpv6 = 58
	if len(p) <= ipv6Header || p[0]>>4 != 6 || p[6] != icmpv6 || p[7] != 255 || p[ipv6Header] < 133 || p[ipv6Header] > 137 {
		return netip.Addr{}, false
	}
	return usable(netip.AddrFrom16([16]byte(p[8:24])))
}

// usable refuses what can't be one station's address.
func usable(a netip.Addr) (netip.Addr, bool) {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a, !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a != broadcast
}

func (l *Learner) add(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.addresses, a); i >= 0 {
		l.addresses = slices.Delete(l.addresses, i, i+1)
	} else if len(l.addresses) == maxAddresses {
		l.addresses = slices.Delete(l.addresses, 0, 1)
	}
	l.addresses = append(l.addresses, a)
}

// MAC is the guest's Ethernet address.
func (l *Learner) MAC() net.HardwareAddr { return slices.Clone(l.mac[:]) }

// Addresses are those learnt, the one seen last comes last.
func (l *Learner) Addresses() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.addresses)
}

const learnerState = "net-addresses"

// Save appends what was learnt, so that it can travel with a checkpoint.
func (l *Learner) Save(e *state.Encoder) {
	s := e.Begin(learnerState, 1)
	defer e.End(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	e.U8(uint8(len(l.addresses)))
	for _, a := range l.addresses {
		b := a.As16() // IPv4 in its mapped form
		e.Raw(b[:])
	}
}

// Load replaces what was learnt by what Save wrote. An error leaves the learner as it was.
func (l *Learner) Load(d *state.Decoder) error {
	_, s := d.Section(learnerState, 1)
	n := int(s.U8())
	if n > maxAddresses {
		return s.Failf("%d addresses, at most %d are kept", n, maxAddresses)
	}
	addresses := make([]netip.Addr, 0, maxAddresses)
	for range n {
		var b [16]byte
		s.Raw(b[:])
		if s.Err() != nil {
			return s.Err()
		}
		a, ok := usable(netip.AddrFrom16(b).Unmap())
		if !ok || slices.Contains(addresses, a) {
			return s.Failf("%v can't be an address of the guest, or is there twice", a)
		}
		addresses = append(addresses, a)
	}
	if err := s.Finish(); err != nil {
		return err
	}
	l.mu.Lock()
	l.addresses = addresses
	l.mu.Unlock()
	return nil
}
