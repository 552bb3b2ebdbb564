package lab

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// switchboard makes and changes the lab's bridges and ports. It works in the lab's own namespace only.
type switchboard struct {
	id string
	h  *netlink.Handle
}

func openSwitchboard(id string) (*switchboard, error) {
	name := namespaceName(id, switchNamespace)
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, name))
	if err != nil {
		return nil, fmt.Errorf("lab: open network namespace %s: %w", name, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("lab: open netlink in %s: %w", name, err)
	}
	return &switchboard{id: id, h: h}, nil
}

func (s *switchboard) close() { s.h.Close() }

// bridges makes the bridges that don't exist yet and gives the lab its address on the manage network.
func (s *switchboard) bridges() error {
	if lo, err := s.h.LinkByName("lo"); err != nil {
		return fmt.Errorf("lab: find lo: %w", err)
	} else if err := s.h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lab: bring lo up: %w", err)
	}
	for _, network := range networks {
		link, err := s.ensure(network, func() error { return s.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(network)}) })
		if err != nil {
			return err
		}
		if network != NetManage {
			continue
		}
		p := controllerAddr()
		addr, err := netlink.ParseAddr(p.String())
		if err != nil {
			return fmt.Errorf("lab: address %s: %w", p, err)
		}
		if err := s.h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("lab: set %s on bridge %s: %w", p, network, err)
		}
	}
	return nil
}

// tapPort makes the tap that an emulated node's QEMU opens, as a port of the network's bridge.
func (s *switchboard) tapPort(node, network string) error {
	name := portName(node, network)
	link, err := s.ensure(name, func() error {
		tap := &netlink.Tuntap{LinkAttrs: attrs(name), Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		// A tap is made through /dev/net/tun in the namespace of the calling thread, whatever the handle's is.
		return inNamespace(namespaceName(s.id, switchNamespace), func() error { return netlink.LinkAdd(tap) })
	})
	if err != nil {
		return err
	}
	return s.join(link, network)
}

// vethPort makes a cable between the network's bridge and a namespace node, replacing one that is left.
func (s *switchboard) vethPort(node, network string) error {
	name := portName(node, network)
	nodeNS := namespaceName(s.id, node)
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, nodeNS))
	if err != nil {
		return fmt.Errorf("lab: open network namespace %s: %w", nodeNS, err)
	}
	defer ns.Close()
	if old, err := s.h.LinkByName(name); err == nil {
		if err := s.h.LinkDel(old); err != nil {
			return fmt.Errorf("lab: remove the old %s: %w", name, err)
		}
	}
	link, err := s.ensure(name, func() error {
		return s.h.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs(name), PeerName: network,
			PeerHardwareAddr: nodeMAC(node, network), PeerNamespace: netlink.NsFd(ns),
		})
	})
	if err != nil {
		return err
	}
	return s.join(link, network)
}

// cut takes a node's ports down, all of them before anything else happens to the node.
func (s *switchboard) cut(node string) error {
	var errs []error
	for _, network := range networksOf(node) {
		errs = append(errs, s.SetPort(node, network, false))
	}
	return errors.Join(errs...)
}

// SetPort plugs (up) or pulls the cable between a node and a network.
func (s *switchboard) SetPort(node, network string, up bool) error {
	name := portName(node, network)
	link, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("lab: find port %s: %w", name, err)
	}
	if up {
		err = s.h.LinkSetUp(link)
	} else {
		err = s.h.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("lab: set port %s up=%t: %w", name, up, err)
	}
	return nil
}

func (s *switchboard) join(port netlink.Link, network string) error {
	bridge, err := s.h.LinkByName(network)
	if err != nil {
		return fmt.Errorf("lab: find bridge %s: %w", network, err)
	}
	if err := s.h.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("lab: join %s to bridge %s: %w", port.Attrs().Name, network, err)
	}
	return nil
}

// ensure returns the named link, made by add if it isn't there, and up.
func (s *switchboard) ensure(name string, add func() error) (netlink.Link, error) {
	link, err := s.h.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		if err := add(); err != nil {
			return nil, fmt.Errorf("lab: create %s: %w", name, err)
		}
		link, err = s.h.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: find %s: %w", name, err)
	}
	if err := s.h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("lab: bring %s up: %w", name, err)
	}
	return link, nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}
