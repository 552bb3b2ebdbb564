package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/pollux-ha/pollux/vmm"
)

// Spec is a machine as its operator describes it on one host.
type Spec struct {
	Name                    string
	MemoryBytes             uint64
	CPUs                    int
	Kernel, Initrd, Cmdline string // read by Boot only
	Disks                   []Disk
	Nets                    []Net
	KVM                     string // path of KVM's device; empty: /dev/kvm
}

// Disk is a raw file or block device on this host.
type Disk struct {
	Path     string
	ReadOnly bool
}

// Net is a network interface of the machine and where it is attached on this host: a tap (the kernel names it when empty), as a port
// of a bridge if one is given.
type Net struct {
	Tap, Bridge string
	MAC         [6]byte
}

// shape is what the twin must build alike: it travels in the description, in front of vmm's own. Where things are
// attached and stored is each host's own business.
type shape struct {
	MACs    []string `json:"macs"`
	Disks   int      `json:"disks"`
	Machine []byte   `json:"machine"` // vmm.Machine.Description
}

// maxShape bounds a description that a peer sends: 254 vCPUs' worth of CPUID is far below it.
const maxShape = 1 << 20

func describe(s Spec, machine []byte) ([]byte, error) {
	d := shape{Disks: len(s.Disks), Machine: machine}
	for _, n := range s.Nets {
		d.MACs = append(d.MACs, net.HardwareAddr(n.MAC[:]).String())
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("describe machine %q: %w", s.Name, err)
	}
	return b, nil
}

// twin is the Spec that a described machine needs on this host, whose own part is local: its Nets say where the machine's
// interfaces are attached here, in order.
func twin(local Spec, description []byte) (Spec, vmm.Description, error) {
	var d shape
	if len(description) > maxShape {
		return Spec{}, vmm.Description{}, fmt.Errorf("the machine's description has %d bytes, at most %d are possible", len(description), maxShape)
	}
	if err := json.Unmarshal(description, &d); err != nil {
		return Spec{}, vmm.Description{}, fmt.Errorf("read the machine's description: %w", err)
	}
	machine, err := vmm.ParseDescription(d.Machine)
	if err != nil {
		return Spec{}, vmm.Description{}, fmt.Errorf("read the machine's description: %w", err)
	}
	if d.Disks != 0 {
		return Spec{}, vmm.Description{}, errNoMirror
	}
	if len(d.MACs) != len(local.Nets) {
		return Spec{}, vmm.Description{}, fmt.Errorf("the machine has %d network interfaces, this host was given %d with --net", len(d.MACs), len(local.Nets))
	}
	s := local
	s.MemoryBytes, s.CPUs = machine.MemoryBytes, machine.CPUs
	s.Nets = append([]Net(nil), local.Nets...)
	for i, text := range d.MACs {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != len(s.Nets[i].MAC) {
			return Spec{}, vmm.Description{}, fmt.Errorf("network interface %d: %q is not a MAC address", i, text)
		}
		copy(s.Nets[i].MAC[:], mac)
	}
	return s, machine, nil
}

var errNoMirror = errors.New("a machine with disks can't be protected yet: disks are not mirrored; run it without --protect, or without --disk")
