package vmm

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// Config describes a machine. Two machines with the same memory, CPUs, devices in the same order and the same Baseline can
// take over each other's state.
type Config struct {
	Name        string // for people and logs
	MemoryBytes uint64 // see guestmem.New for what is allowed
	CPUs        int    // 1 to 254

	// Kernel is the path of a bzImage or a PVH ELF, Initrd that of an initial RAM disk or empty, Cmdline the kernel's
	// command line. They are read by Boot only.
	Kernel, Initrd, Cmdline string

	// Disks and Nets become virtio devices, in this order. A disk's backend stays the caller's, who closes it after the
	// machine; a network device closes its backend.
	Disks []Disk
	Nets  []Net

	// Serial takes what the guest prints on COM1, and stays the caller's.
	Serial devices.SerialSink

	// Baseline is the CPU that the guest sees: that of the machine whose state will be loaded (Description.Baseline). Nil
	// takes everything of this host that can be carried to another one.
	Baseline Baseline

	// KVM is the path of the device node; empty means /dev/kvm.
	KVM string

	Logger *slog.Logger // required
}

// Disk is a virtio block device.
type Disk struct {
	Backend virtio.BlockBackend
	ID      string // what the guest reads as the serial number, at most 20 bytes
}

// Net is a virtio network device.
type Net struct {
	Backend virtio.NetBackend
	MAC     [6]byte
	MTU     uint16 // what the guest is told to use at most; 0: nothing
}

var errConfig = errors.New("machine configuration")

// check refuses what New cannot build, before anything is opened.
func (c *Config) check() error {
	switch {
	case c.Logger == nil:
		return fmt.Errorf("%w: a logger is needed", errConfig)
	case c.CPUs < 1 || c.CPUs > maxCPUs:
		return fmt.Errorf("%w: %d CPUs, must be 1 to %d", errConfig, c.CPUs, maxCPUs)
	case c.MemoryBytes < guestmem.MinSize:
		return fmt.Errorf("%w: %d bytes of memory, must be at least %d MiB", errConfig, c.MemoryBytes, guestmem.MinSize>>20)
	}
	for i, d := range c.Disks {
		if d.Backend == nil {
			return fmt.Errorf("%w: disk %d has no backend", errConfig, i)
		}
	}
	for i, n := range c.Nets {
		if n.Backend == nil {
			return fmt.Errorf("%w: network device %d has no backend", errConfig, i)
		}
		if n.MAC[0]&1 != 0 || n.MAC == [6]byte{} {
			return fmt.Errorf("%w: network device %d: %x is not the MAC address of one station", errConfig, i, n.MAC)
		}
	}
	return nil
}

func (c *Config) kvmPath() string {
	if c.KVM == "" {
		return kvm.Path
	}
	return c.KVM
}
