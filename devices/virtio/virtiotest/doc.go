// Package virtiotest is the guest's side of virtio for tests: a machine without CPUs (Guest), and a driver that finds a device
// on the PCI bus, negotiates, sets up queues and exchanges buffers as a kernel's driver does (Driver, Ring).
//
// It uses a device only through configuration ports, memory-mapped registers and guest memory, as a guest must. A driver
// lives on across a load: Driver.MoveTo continues it on the guest that inherited its memory.
//
// Only tests import this package. Its functions fail the test when the device does not follow the specification.
package virtiotest
