package netbuffer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// announceAt is when, after a takeover, the guest's new place is announced: at once for the switches and neighbours that
// hear it, and again for links that come up late or lose a frame.
var announceAt = [...]time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 600 * time.Millisecond, 1500 * time.Millisecond}

// Announcements are the frames, with vnet headers, that tell a network where the station mac is: a gratuitous ARP
// (RFC 5227 §3) for each IPv4 address, an unsolicited neighbour advertisement (RFC 4861 §7.2.6) for each IPv6 address,
// and a RARP request, which moves the station in the bridges' tables only, if it has no known address.
func Announcements(mac net.HardwareAddr, addresses []netip.Addr) ([][]byte, error) {
	if len(addresses) == 0 {
		frame, err := rarp(mac)
		if err != nil {
			return nil, fmt.Errorf("build a RARP announcement of %v: %w", mac, err)
		}
		return [][]byte{frame}, nil
	}
	frames := make([][]byte, 0, len(addresses))
	for _, a := range addresses {
		build := neighbourAdvertisement
		if a.Is4() {
			build = gratuitousARP
		}
		frame, err := build(mac, a)
		if err != nil {
			return nil, fmt.Errorf("build an announcement of %v at %v: %w", a, mac, err)
		}
		frames = append(frames, frame)
	}
	return frames, nil
}

func gratuitousARP(mac net.HardwareAddr, a netip.Addr) ([]byte, error) {
	address := a.AsSlice()
	return serialize(
		&layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation:       layers.ARPRequest,
			SourceHwAddress: mac, SourceProtAddress: address,
			DstHwAddress: make([]byte, 6), DstProtAddress: address,
		},
	)
}

func rarp(mac net.HardwareAddr) ([]byte, error) {
	const (
		etherTypeRARP  = 0x8035
		reverseRequest = 3 // RFC 903
	)
	return serialize(
		&layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: etherTypeRARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation:       reverseRequest,
			SourceHwAddress: mac, SourceProtAddress: make([]byte, 4),
			DstHwAddress: mac, DstProtAddress: make([]byte, 4),
		},
	)
}

func neighbourAdvertisement(mac net.HardwareAddr, a netip.Addr) ([]byte, error) {
	allNodes := netip.MustParseAddr("ff02::1")
	ip := &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255,
		SrcIP: a.AsSlice(), DstIP: allNodes.AsSlice(),
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, err
	}
	const override = 0x20
	return serialize(
		&layers.Ethernet{SrcMAC: mac, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6},
		ip, icmp,
		&layers.ICMPv6NeighborAdvertisement{
			Flags: override, TargetAddress: a.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac}},
		},
	)
}

// serialize builds a frame behind an empty vnet header.
func serialize(ls ...gopacket.SerializableLayer) ([]byte, error) {
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, ls...); err != nil {
		return nil, err
	}
	return append(make([]byte, VnetHeader), buf.Bytes()...), nil
}

// announce sends the announcements of l's addresses through send several times, until ctx ends. What is learnt meanwhile
// is announced too.
func announce(ctx context.Context, l *Learner, send func(frame []byte) bool) error {
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, at := range announceAt {
		timer.Reset(time.Until(start.Add(at)))
		select {
		case <-ctx.Done():
			return fmt.Errorf("announce %v: %w", l.MAC(), context.Cause(ctx))
		case <-timer.C:
		}
		frames, err := Announcements(l.MAC(), l.Addresses())
		if err != nil {
			return err
		}
		for _, f := range frames {
			// A full buffer moves the bridge's table by what it is full of; the next round comes soon.
			if !send(f) {
				break
			}
		}
	}
	return nil
}
