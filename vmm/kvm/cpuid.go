package kvm

import (
	"errors"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// CPUIDEntry is one leaf, or one subleaf, of the CPUID table that a vCPU shows to its guest (KVM API §4.46).
type CPUIDEntry = gokvm.CPUIDEntry2

// CPUIDSignificantIndex is the flag of an entry whose Index (the guest's ECX) counts.
const CPUIDSignificantIndex = 1

// maxCPUIDEntries is KVM_MAX_CPUID_ENTRIES.
const maxCPUIDEntries = 256

// SupportedCPUID is what this host and its KVM can show to a guest (KVM API §4.46, KVM_GET_SUPPORTED_CPUID).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	table := gokvm.CPUID{Nent: maxCPUIDEntries, Entries: make([]CPUIDEntry, maxCPUIDEntries)}
	if err := gokvm.GetSupportedCPUID(s.file.Fd(), &table); err != nil {
		return nil, fmt.Errorf("get supported CPUID: %w", err)
	}
	return table.Entries, nil
}

// SetCPUID gives the vCPU its table. It must come before the first Run (KVM API §4.20, KVM_SET_CPUID2).
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) == 0 || len(entries) > maxCPUIDEntries {
		return fmt.Errorf("set CPUID of vCPU %d: %d entries, KVM takes 1 to %d", c.id, len(entries), maxCPUIDEntries)
	}
	table := gokvm.CPUID{Nent: uint32(len(entries)), Entries: entries}
	if err := gokvm.SetCPUID2(c.fd, &table); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("set CPUID of vCPU %d: this KVM refuses the table: %w", c.id, err)
		}
		return fmt.Errorf("set CPUID of vCPU %d: %w", c.id, err)
	}
	return nil
}
