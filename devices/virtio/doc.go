// Package virtio is the paravirtual devices of a guest: network (Net), disk (Blk) and entropy (Rng), over the modern PCI
// transport (virtio 1.2 §4.1).
//
// The transport is common to all: PCI capabilities and registers, feature negotiation, the status machine, reset, MSI-X,
// notification, freezing, saving. What differs between devices is behind the class interface, one file group each. Virtqueues
// are in the package queue below. Package vmm builds the devices from a Host, attaches their Function to the PCI bus, and gives
// them backends: netbuffer or anything else that is a NetBackend, a File or anything else that is a BlockBackend.
//
// A device runs on the goroutines that it starts: one for each queue that the driver notifies, one for frames that arrive,
// some for disk requests. They wait outside of the device's lock (for a notification, a frame, a disk) and take it for each bounded
// batch of work. Close stops them and waits.
//
// What must stay true:
//   - All of a device's state, and guest memory on its behalf, is touched with the device's lock held and the device not
//     frozen. The one exception is the data of disk requests in flight: see Blk.
//   - Everything written to guest memory is marked dirty before the lock is released.
//   - The guest is hostile: what the rings, the buffers and the registers hold is checked, and read once. A driver that breaks the
//     rules loses its device (DEVICE_NEEDS_RESET), not more.
//   - No allocation on the data path.
package virtio
