// Package guestmem is guest physical memory: what vmm gives to KVM, what devices read and write, and what a checkpoint
// copies.
//
// Memory lies outside of the Go heap (anonymous mmap, huge pages advised), in one region below the MMIO hole and one above 4 GiB.
// Nothing hands out a slice without checking that it lies whole inside one region: addresses come from the guest.
//
// What must stay true: KVM's dirty log shows only what vCPUs wrote. Everything else that writes guest memory (devices, the
// boot loader, a standby applying an epoch) calls MarkDirty after it wrote and before the machine can be captured, or the
// twin's copy is silently old. Bitmap holds dirty pages from both sources, by guest frame number.
package guestmem
