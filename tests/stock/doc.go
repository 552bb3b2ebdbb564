// Package stock holds the tests of unmodified Linux kernels as guests of Pollux: they boot to a shell with one and with four
// processors, obey the power button, have a network and a disk, and go on from a snapshot as if nothing had been. They run
// inside an emulated host of the lab, because this machine's KVM may be one that runs no Linux guests.
package stock
