// Package kvm is everything that Pollux asks of /dev/kvm, and the only place that does.
//
// It is a shim over github.com/bobuhiro11/gokvm/kvm: that library's structures, ioctl numbers and calls where they are
// right (registers, local APIC, interrupt controllers, timer, clock, CPUID), and our own for what it lacks or gets wrong:
// counted MSR transfers, XSAVE of any size, a dirty log that never reports a slot without logging as clean, interrupts of
// devices, and a run loop that is told EINTR apart from an exit.
//
// Package vmm is its only caller. References are to the kernel's Documentation/virt/kvm/api.rst ("KVM API").
//
// What must stay true:
//   - Unsafe code is in the files named *_unsafe.go. Memory that an ioctl reads or writes is passed as an unsafe.Pointer
//     down to the system call itself, or lives on the heap inside a VM or VCPU: a pointer hidden in a uintptr does not
//     follow a stack that grows.
//   - After a KVM_RUN that failed, the run page holds the exit before it. Nothing here shows an exit then.
//   - A call that transfers less than it was asked to is an error which says where it stopped.
//   - The calls made in every checkpoint's pause (registers, MSRs, local APIC, dirty log, clock) do not allocate.
package kvm
