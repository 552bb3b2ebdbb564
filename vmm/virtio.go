package vmm

import (
	"fmt"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/pci"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// virtioDevice is what all of virtio's devices are.
type virtioDevice interface {
	devices.Device
	Function() *pci.Function
	Close() error
}

// addVirtio makes the entropy device, the disks and the network devices, and puts them on the PCI bus in that order, from
// slot 1 on.
func (m *Machine) addVirtio(cfg Config) error {
	host := virtio.Host{
		Memory: m.memory, MSI: messages{m.vm, m.log}, Notifier: notifier{m.vm}, Logger: m.log,
	}
	rng, err := virtio.NewRng("rng0", host)
	if err != nil {
		return fmt.Errorf("build entropy device: %w", err)
	}
	if err := m.attach(rng); err != nil {
		return err
	}
	for i, d := range cfg.Disks {
		blk, err := virtio.NewBlk(fmt.Sprintf("disk%d", i), virtio.BlkConfig{Backend: d.Backend, ID: d.ID}, host)
		if err != nil {
			return fmt.Errorf("build disk %d: %w", i, err)
		}
		if err := m.attach(blk); err != nil {
			return err
		}
	}
	for i, n := range cfg.Nets {
		net, err := virtio.NewNet(fmt.Sprintf("net%d", i), virtio.NetConfig{MAC: n.MAC, MTU: n.MTU, Backend: n.Backend}, host)
		if err != nil {
			return fmt.Errorf("build network device %d: %w", i, err)
		}
		if err := m.attach(net); err != nil {
			return err
		}
	}
	return nil
}

// attach puts a device into the next slot of the PCI bus; from then on it is the machine's, which closes it.
func (m *Machine) attach(d virtioDevice) error {
	m.devices = append(m.devices, d)
	m.board.slots++
	return m.board.pci.Attach(m.board.slots, d.Function())
}

// notifier lets KVM turn the guest's notifications into eventfds. It implements virtio.Notifier.
type notifier struct {
	vm *kvm.VM
}

// Attach implements virtio.Notifier.
func (n notifier) Attach(address uint64, length, fd int) error {
	return n.vm.AttachIOEvent(kvm.IOEvent{Address: address, Length: uint32(length), FD: fd})
}

// Detach implements virtio.Notifier.
func (n notifier) Detach(address uint64, length, fd int) error {
	return n.vm.DetachIOEvent(kvm.IOEvent{Address: address, Length: uint32(length), FD: fd})
}
