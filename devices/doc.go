// Package devices is the hardware that a guest sees, apart from the processors and the interrupt controllers, which are
// KVM's.
//
// Here live the contract that every device keeps (Device), the buses that carry the guest's accesses to them (Bus), and the
// legacy platform: serial port, clock, power management. Below it: pci (configuration space, MSI-X), virtio (queues and
// the devices that matter), guestmem (guest physical memory as devices see it), state (how state is written down), and
// devicestest (the suite that every device passes).
//
// Package vmm assembles the devices into a machine; nothing here knows about it, or about KVM, or about checkpoints.
//
// What must stay true:
//   - Every value that comes from the guest or from saved state is checked before it is used: no access of a guest makes
//     a device panic, hang, or touch memory that is not the guest's.
//   - A device writes guest memory only through guestmem, which remembers the page as dirty: KVM's log does not see
//     the VMM's writes, and a page that is missed is lost at takeover.
//   - Between Freeze and Thaw a device is still, and what Save wrote is all that a fresh device needs to carry on.
package devices
