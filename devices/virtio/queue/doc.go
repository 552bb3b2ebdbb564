// Package queue is the device's side of a split virtqueue (virtio 1.2 §2.7).
//
// A Queue hands out the chains of buffers that the driver made available, and gives them back as used. The devices in
// devices/virtio are its only callers; each holds its device lock while it calls, so a Queue has no lock of its own.
//
// Everything in the three rings is the guest's, who may be hostile and may write there at any moment. Every field is
// therefore read once and checked before use; an address becomes a slice only through guestmem; chains are bounded in
// number of descriptors and in bytes. Whatever a correct driver cannot have written is an error that wraps ErrBroken, after
// which the device stops using the queue and asks to be reset (§2.1.2, DEVICE_NEEDS_RESET).
//
// What must stay true:
//   - A used element is in memory before the index that publishes it, and the index before the driver's wish for
//     interrupts is read (§2.7.8.2, §2.7.10): the index and event fields are accessed with sync/atomic, in ring_unsafe.go.
//   - Everything written to guest memory is marked dirty before the device lock is released.
//   - No allocation per chain: Chain is reused by its owner.
package queue
