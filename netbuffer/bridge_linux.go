package netbuffer

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// join brings the interface up as a port of bridge, or on its own if bridge is empty.
func join(name, bridge string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", name, err)
	}
	if bridge != "" {
		master, err := findBridge(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, master); err != nil {
			return fmt.Errorf("join %q to bridge %q: %w", name, bridge, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %q up: %w", name, err)
	}
	return nil
}

// findBridge looks a bridge up and tells the ways in which it can be wrong apart.
func findBridge(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("no bridge %q: create it with \"ip link add %s type bridge\": %w", name, name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %q: %w", name, err)
	}
	if _, ok := link.(*netlink.Bridge); !ok {
		return nil, fmt.Errorf("interface %q is a %s, not a bridge", name, link.Type())
	}
	return link, nil
}

// part takes the interface down and out of its bridge: nothing arrives at it any more.
func part(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", name, err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("take %q down: %w", name, err)
	}
	if err := netlink.LinkSetNoMaster(link); err != nil {
		return fmt.Errorf("take %q out of its bridge: %w", name, err)
	}
	return nil
}

// prepare makes the interface, which is down, a quiet end for the guest with Ethernet address guest.
//
// Its own address is the guest's with a first byte of 0xfe: a bridge without a fixed address takes the lowest of its
// ports', and if a tap that joins changed that, the host would forget its neighbours at a takeover. And it has no IPv6
// addresses, so that the host doesn't talk to the guest on its own (router solicitations, multicast reports).
func prepare(name string, guest net.HardwareAddr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %q: %w", name, err)
	}
	own := bytes.Clone(guest)
	own[0] = 0xfe
	if bytes.Equal(own, guest) {
		own[5] ^= 1
	}
	if err := netlink.LinkSetHardwareAddr(link, own); err != nil {
		return fmt.Errorf("set the address of %q to %v: %w", name, own, err)
	}
	const addrGenNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	// A kernel without IPv6 has nothing to silence.
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("turn IPv6 addresses off on %q: %w", name, err)
	}
	return nil
}
