//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// cardTimeout is how long a network card may take to appear: drivers probe in the background.
const cardTimeout = 10 * time.Second

// configureNetwork brings loopback and the cards up and returns the addresses for people.
func configureNetwork(o options) (string, error) {
	errs := []error{linkUp("lo")}
	var shown []string
	for _, a := range o.addresses {
		if err := configureCard(a); err != nil {
			errs = append(errs, err)
			continue
		}
		shown = append(shown, a.prefix.String())
	}
	if o.gateway.IsValid() {
		if err := netlink.RouteAdd(&netlink.Route{Gw: o.gateway.AsSlice()}); err != nil {
			errs = append(errs, fmt.Errorf("add a default route by %v: %w", o.gateway, err))
		}
	}
	if len(shown) == 0 {
		return "none", errors.Join(errs...)
	}
	return strings.Join(shown, ","), errors.Join(errs...)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

func configureCard(a address) error {
	card, err := waitForCard(a.card)
	if err != nil {
		return err
	}
	if err := linkUp(card.Attrs().Name); err != nil {
		return err
	}
	net := &net.IPNet{IP: a.prefix.Addr().AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.prefix.Addr().BitLen())}
	if err := netlink.AddrAdd(card, &netlink.Addr{IPNet: net}); err != nil {
		return fmt.Errorf("give %s the address %v: %w", card.Attrs().Name, a.prefix, err)
	}
	return nil
}

// waitForCard waits until the card name, or any one if name is empty, is there.
func waitForCard(name string) (netlink.Link, error) {
	for deadline := time.Now().Add(cardTimeout); ; time.Sleep(5 * time.Millisecond) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("list network cards: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.EncapType == "ether" && a.ParentDev != "" && (name == "" || a.Name == name) {
				return l, nil
			}
		}
		if time.Now().After(deadline) {
			if name == "" {
				return nil, fmt.Errorf("no network card after %v", cardTimeout)
			}
			return nil, fmt.Errorf("no network card %s after %v", name, cardTimeout)
		}
	}
}

// describeNetwork lists the interfaces with their addresses.
func describeNetwork() (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", fmt.Errorf("list network cards: %w", err)
	}
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&b, "%s %s mtu %d %v", a.Name, a.OperState, a.MTU, a.HardwareAddr)
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return "", fmt.Errorf("list the addresses of %s: %w", a.Name, err)
		}
		for _, x := range addresses {
			fmt.Fprintf(&b, " %v", x.IPNet)
		}
		if s := a.Statistics; s != nil {
			fmt.Fprintf(&b, " rx %d tx %d", s.RxPackets, s.TxPackets)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// ping sends three echo requests and returns the round trips.
func ping(to netip.Addr) (string, error) {
	if !to.Is4() {
		return "", fmt.Errorf("ping %v: only IPv4", to)
	}
	conn, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return "", fmt.Errorf("ping %v: %w", to, err)
	}
	defer conn.Close()
	var b strings.Builder
	for n := range byte(3) {
		request := []byte{8, 0, 0, 0, 'P', 'X', 0, n} // echo request, RFC 792
		sum := ^(uint16(8)<<8 + uint16('P')<<8 + uint16('X') + uint16(n))
		request[2], request[3] = byte(sum>>8), byte(sum)
		start := time.Now()
		if _, err := conn.Write(request); err != nil {
			return b.String(), fmt.Errorf("ping %v: %w", to, err)
		}
		if err := awaitEcho(conn, n, start.Add(time.Second)); err != nil {
			return b.String(), fmt.Errorf("ping %v: %w", to, err)
		}
		fmt.Fprintf(&b, "%v answered after %v\n", to, time.Since(start).Round(time.Microsecond))
	}
	return b.String(), nil
}

func awaitEcho(conn *net.IPConn, n byte, deadline time.Time) error {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	var b [1500]byte
	for {
		// Unlike Read, ReadFromIP leaves out the IP header.
		size, _, err := conn.ReadFromIP(b[:])
		if err != nil {
			return err
		}
		// All that comes over ICMP is seen here, also what is for others.
		if size >= 8 && b[0] == 0 && b[4] == 'P' && b[5] == 'X' && b[7] == n {
			return nil
		}
	}
}
