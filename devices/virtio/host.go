package virtio

import (
	"log/slog"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Host is what a machine provides to each of its virtio devices.
type Host struct {
	Memory *guestmem.Memory
	MSI    devices.MSISender
	// Notifier makes the guest's notifications arrive without a trip through the VMM. Nil: they come as register writes.
	Notifier Notifier
	Logger   *slog.Logger
	// OnFault is told when a driver breaks its device or a backend fails. It may be called with the device's lock held: it
	// must neither block nor call the device. Nil: faults are only logged.
	OnFault func(device string, err error)
}

// Notifier binds eventfds to guest writes (KVM API §4.59, KVM_IOEVENTFD). Guest writes of exactly length bytes, of whatever
// value, at the guest physical address add 1 to the eventfd fd, and do not reach the MMIO bus any more.
type Notifier interface {
	Attach(address uint64, length int, fd int) error
	Detach(address uint64, length int, fd int) error
}
