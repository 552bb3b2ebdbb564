package kvm

import "unsafe"

// Plain are the structures that KVM fills: numbers without pointers, in a layout that the kernel keeps for ever.
type Plain interface {
	Regs | Sregs | DebugRegs | XCRs | LAPIC | Events | MPState | IRQChip | PIT | Clock
}

// Bytes is p itself as bytes, little endian, padding included. Saved state holds these structures as they are: they are
// KVM's ABI, so a twin on another kernel reads them just the same.
func Bytes[T Plain](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// Bytes is the list as KVM transfers it: a count, then an index and a value for each register, eight bytes each.
func (m *MSRs) Bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&m.words[0])), 8*len(m.words))
}
