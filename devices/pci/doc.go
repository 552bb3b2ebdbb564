// Package pci is the guest's PCI bus: configuration space, base address registers, MSI-X, and the host bridge.
//
// There is one bus with up to 32 single-function devices. A Function is the configuration space of one device; devices
// (devices/virtio) build one, give it their registers as a Region behind a BAR, and signal through its MSIX. The Root is
// the bus itself: the host bridge at 00:00.0, configuration mechanism #1 at ports 0xCF8 and 0xCFC, and the one place that
// decides which BAR answers where. Package vmm builds the Root, registers its ports and attaches the functions.
//
// Not offered, because nothing needs them: INTx (Interrupt Pin is 0 everywhere), I/O BARs, 64-bit BARs, bridges,
// multi-function devices, the memory-mapped configuration mechanism.
//
// A Function's configuration is part of its device's state: the device saves and loads it together with its own. The
// Root saves what belongs to the bus.
//
// What must stay true:
//   - Where BARs answer is a function of the configuration spaces alone (slot order decides between BARs that the guest
//     put on top of each other), so that it is the same after Load, in whatever order the devices are loaded.
//   - A BAR answers only inside the PCI window: the guest cannot put one over RAM, the interrupt controllers or another device.
//   - Locks are taken in this order: a device's own, Root.mu, MSIX.mu, Function.mu. Regions, windows and command hooks of a
//     device are called with none of them held, except Region.Moved, which holds Root.mu.
//
// References: PCI Local Bus Specification 3.0 (PCI), virtio 1.2.
package pci
