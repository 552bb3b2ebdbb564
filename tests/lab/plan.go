package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// The nodes of a full lab.
const (
	HostA   = "host-a"
	HostB   = "host-b"
	Witness = "witness"
	Client  = "client"
)

// The networks of a lab. Inside a node the interface has the network's name, except on hosts for NetClient, see ClientBridge.
const (
	NetManage = "manage"
	NetClient = "client"
	NetLink1  = "link1"
	NetLink2  = "link2"
)

const (
	// ClientBridge is the bridge on each host that guests' taps join; the host's client interface is its port and its
	// address is on the bridge.
	ClientBridge = "br0"
	// AgentPort is where every node's agent listens, on the node's manage address.
	AgentPort = 7700
	// WorkDir is the directory in every node for what the lab and its users put there. It is empty when a node starts.
	WorkDir = "/run/pollux"
)

var networks = []string{NetManage, NetClient, NetLink1, NetLink2}

var nodeNames = []string{HostA, HostB, Witness, Client}

// hostNumbers are the last octets of the nodes' addresses on every network.
var hostNumbers = map[string]byte{HostA: 11, HostB: 12, Witness: 13, Client: 100}

const (
	controllerNumber = 1  // the lab itself, on the manage bridge
	guestNumber      = 20 // the first protected guest, on the client network
	firstNetOctet    = 76 // 10.76.0.0/24 is the first network
	prefixBits       = 24
)

// Nodes returns the names of all nodes that a full lab has.
func Nodes() []string { return slices.Clone(nodeNames) }

// Networks returns the names of all networks of a lab.
func Networks() []string { return slices.Clone(networks) }

// Addr returns a node's address on a network with the prefix length of the network.
func Addr(node, network string) (netip.Prefix, error) {
	n, ok := hostNumbers[node]
	if !ok {
		return netip.Prefix{}, fmt.Errorf("lab: no node %q; there are %v", node, nodeNames)
	}
	return addrOf(network, n)
}

// GuestAddr is the address of the lab's protected guest on the client network.
func GuestAddr() netip.Prefix {
	p, err := addrOf(NetClient, guestNumber)
	if err != nil {
		panic(err) // the constant network exists
	}
	return p
}

// GuestMAC is the MAC address of the lab's protected guest.
func GuestMAC() net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0x00, firstNetOctet + 1, 0x00, guestNumber}
}

func controllerAddr() netip.Prefix {
	p, err := addrOf(NetManage, controllerNumber)
	if err != nil {
		panic(err) // the constant network exists
	}
	return p
}

func addrOf(network string, number byte) (netip.Prefix, error) {
	i := slices.Index(networks, network)
	if i < 0 {
		return netip.Prefix{}, fmt.Errorf("lab: no network %q; there are %v", network, networks)
	}
	a := netip.AddrFrom4([4]byte{10, byte(firstNetOctet + i), 0, number})
	return netip.PrefixFrom(a, prefixBits), nil
}

// nodeMAC is the locally administered MAC address of a node's interface on a network.
func nodeMAC(node, network string) net.HardwareAddr {
	i := slices.Index(networks, network)
	return net.HardwareAddr{0x02, 'p', 'x', byte(firstNetOctet + i), 0x00, hostNumbers[node]}
}

// networksOf returns the networks that a node is attached to.
func networksOf(node string) []string {
	switch node {
	case Witness:
		return []string{NetManage}
	case Client:
		return []string{NetManage, NetClient}
	default:
		return networks
	}
}

// nicsOf is a node's network configuration as its NodeMain applies it.
func nicsOf(node string) []NIC {
	var nics []NIC
	for _, network := range networksOf(node) {
		p, err := Addr(node, network)
		if err != nil {
			panic(err) // networksOf gives networks that exist, for nodes that exist
		}
		nic := NIC{Name: network, MAC: nodeMAC(node, network).String(), Addr: p.String()}
		if network == NetClient && isHost(node) {
			nic.Bridge = ClientBridge
		}
		nics = append(nics, nic)
	}
	return nics
}

func isHost(node string) bool { return node == HostA || node == HostB }

// agentAddr is where a node's agent listens.
func agentAddr(node string) (netip.AddrPort, error) {
	p, err := Addr(node, NetManage)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(p.Addr(), AgentPort), nil
}

// labID tells labs on one machine apart: it is derived from the state directory, so that Down finds the namespaces of a lab
// whose state file is lost.
func labID(absDir string) string {
	sum := sha256.Sum256([]byte(absDir))
	return hex.EncodeToString(sum[:4])
}

// namespaceName is the name under /run/netns of one of the lab's network namespaces: "lab" for the bridges, else a node.
func namespaceName(id, what string) string { return "pollux-" + id + "-" + what }

const switchNamespace = "lab"

// portName is the name, in the lab's namespace, of the bridge port that leads to a node: at most 15 bytes, the kernel's bound.
func portName(node, network string) string { return node + "-" + network }
