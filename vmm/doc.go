// Package vmm is one virtual machine on this host: guest memory, vCPUs, devices, boot, the run loop, and everything that
// a checkpoint asks of them: freeze and thaw, saving and loading state, the dirty log.
//
// A Machine goes through three phases. It is fresh after New: memory, vCPUs and devices exist and are still; Boot or LoadState
// says where the guest begins. Run makes it live. It is over when Run returns; Close gives everything back. A standby's
// machine stays fresh until takeover, so that takeover costs no construction.
//
// Package checkpoint drives a Machine through small interfaces of its own; cmd builds its Config. The package knows KVM
// only through vmm/kvm, and the hardware that a guest sees through devices.
//
// What must stay true:
//   - A vCPU belongs to one goroutine locked to one OS thread. Nobody else touches its KVM state while it runs.
//   - Between Freeze and Thaw nothing executes: every vCPU has left the guest with its last port or memory access complete,
//     and every device is still. What SaveState wrote, and memory, are then the whole machine.
//   - Every page that changes while the dirty log is on is reported by a later CollectDirty: KVM's log is or-ed with what
//     devices marked, and an error of either is an error, never a clean page.
//   - State and snapshots come from a peer or a file. They are checked against this machine before anything changes, and a
//     Machine whose LoadState failed is only good for Close.
package vmm
