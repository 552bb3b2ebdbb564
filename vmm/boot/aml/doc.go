// Package aml encodes the small part of the ACPI Machine Language that describes a virtual machine's devices (ACPI 6.5
// §20): scopes, devices, names, constants, packages, and resource templates.
//
// Every function returns the encoding of one term; terms nest by passing them on. What goes in is the VMM's own
// constants, never input: a name that cannot be is a bug, and panics.
//
// Only vmm/boot/acpi uses it.
package aml
