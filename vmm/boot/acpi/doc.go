// Package acpi builds the ACPI tables of a machine (ACPI 6.5): RSDP, XSDT, FADT, FACS, MADT and DSDT, as one block of
// bytes for a given guest physical address.
//
// The tables are the only description of the platform that a guest gets, so they must agree with what package devices
// and vmm put there: ports and interrupts come from the constants of package devices, and what the tables call absent is
// absent.
//
// vmm/boot places the block. Build is a function of its arguments, so that a machine and its twin have the same tables.
package acpi
