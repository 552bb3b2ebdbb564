package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vishvananda/netlink"
)

// nicTimeout bounds the wait for an interface to appear; virtio probes take well under a second even in emulation.
const nicTimeout = 20 * time.Second

// bringUp sets the calling node's network up: loopback, then every NIC with its name, bridge and address.
func bringUp(ctx context.Context, nics []NIC) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	for _, nic := range nics {
		if err := bringUpNIC(ctx, nic); err != nil {
			return fmt.Errorf("interface %s: %w", nic.Name, err)
		}
	}
	return nil
}

func bringUpNIC(ctx context.Context, nic NIC) error {
	var link netlink.Link
	err := waitFor(ctx, nicTimeout, func() (err error) {
		link, err = linkByMAC(nic.MAC)
		return err
	})
	if err != nil {
		return err
	}
	if link.Attrs().Name != nic.Name {
		if err := netlink.LinkSetName(link, nic.Name); err != nil {
			return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
		}
	}
	addr, err := netlink.ParseAddr(nic.Addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", nic.Addr, err)
	}
	owner := link
	if nic.Bridge != "" {
		if owner, err = bridgeOver(nic.Bridge, link); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := netlink.AddrReplace(owner, addr); err != nil {
		return fmt.Errorf("set address %s: %w", nic.Addr, err)
	}
	return nil
}

// bridgeOver makes a bridge with port as its first port. The bridge takes the port's MAC address, so that it does not change when
// taps with lower addresses join.
func bridgeOver(name string, port netlink.Link) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name = name
	a.HardwareAddr = port.Attrs().HardwareAddr
	bridge := &netlink.Bridge{LinkAttrs: a}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return nil, fmt.Errorf("join bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("bring bridge %s up: %w", name, err)
	}
	return bridge, nil
}

// linkByMAC returns the interface with a MAC address; fs.ErrNotExist if there is none (yet).
func linkByMAC(mac string) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Attrs().HardwareAddr.String() == mac && l.Type() != "bridge" {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no interface has the MAC address %s: %w", mac, fs.ErrNotExist)
}
