// Package boot puts a kernel into a fresh guest's memory and says in which state its first processor begins.
//
// It takes what Linux distributions ship (bzImage, entered in 64-bit mode by the Linux boot protocol, version 2.12 and
// later) and PVH kernels (ELF with a XEN_ELFNOTE_PHYS32_ENTRY note, entered in 32-bit mode), and gives either the memory
// map, the command line, the initial RAM disk and the ACPI tables (package acpi).
//
// Package vmm calls Load and turns the Entry into KVM's registers; nothing here knows KVM. The kernel and the disk are
// files that the operator names, and may be anything: every field is checked before it is used, and nothing is written
// outside of the guest's memory.
//
// What must stay true:
//   - Load is a function of its input: the twin never boots, but a machine that is reset boots as it did before.
//   - Everything that Load writes goes through guestmem, which marks it dirty.
//   - The structures that it places (layout.go) overlap neither each other nor the kernel nor the disk.
//
// References: Documentation/arch/x86/boot.rst and Documentation/arch/x86/zero-page.rst in Linux; "x86/HVM direct boot
// ABI" (pvh) and public/arch-x86/hvm/start_info.h in Xen.
package boot
