package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// minXSAVE is the size of struct kvm_xsave, which is all there is unless KVM_CAP_XSAVE2 reports more. KVM fills it on a
// processor without XSAVE too, with what FXSAVE gives.
const minXSAVE = 4096

// Regs reads the general registers into r.
func (c *VCPU) Regs(r *Regs) error {
	_, err := ioctl(c.fd, ioctlGetRegs, unsafe.Pointer(r))
	return c.wrap("get registers", err)
}

// Sregs reads segments and control registers into r.
func (c *VCPU) Sregs(r *Sregs) error {
	_, err := ioctl(c.fd, ioctlGetSregs, unsafe.Pointer(r))
	return c.wrap("get special registers", err)
}

// XSAVESize is the length in bytes that XSAVE and SetXSAVE take (KVM API §4.134): the host's state, not the guest's.
func (c *VCPU) XSAVESize() int { return c.xsaveSize }

// XSAVE fills p, XSAVESize bytes long, with the extended processor state in the standard format of the XSAVE instruction.
func (c *VCPU) XSAVE(p []byte) error {
	if len(p) != c.xsaveSize {
		return fmt.Errorf("get extended state of vCPU %d: buffer of %d bytes, need %d", c.id, len(p), c.xsaveSize)
	}
	op := ioctlGetXSAVE
	if c.wideXSAVE {
		op = ioctlGetXSAVE2
	}
	_, err := ioctl(c.fd, op, unsafe.Pointer(&p[0]))
	return c.wrap("get extended state", err)
}

// SetXSAVE sets the extended processor state.
func (c *VCPU) SetXSAVE(p []byte) error {
	if len(p) != c.xsaveSize {
		return fmt.Errorf("set extended state of vCPU %d: %d bytes, this host has %d", c.id, len(p), c.xsaveSize)
	}
	_, err := ioctl(c.fd, ioctlSetXSAVE, unsafe.Pointer(&p[0]))
	return c.wrap("set extended state", err)
}

// MSRs is a list of model-specific registers in the layout that KVM transfers (struct kvm_msrs): it is made once and
// used for every checkpoint.
type MSRs struct {
	words []uint64 // count and padding, then two words for each entry
}

// NewMSRs makes a list of the registers with these numbers, of value 0.
func NewMSRs(indexes []uint32) *MSRs {
	m := &MSRs{words: make([]uint64, 1+2*len(indexes))}
	m.words[0] = uint64(len(indexes))
	for i, index := range indexes {
		m.words[1+2*i] = uint64(index)
	}
	return m
}

// Len is the number of registers.
func (m *MSRs) Len() int { return len(m.words) / 2 }

// Index is the number of the i-th register.
func (m *MSRs) Index(i int) uint32 { return uint32(m.words[1+2*i]) }

// Value is the value of the i-th register.
func (m *MSRs) Value(i int) uint64 { return m.words[2+2*i] }

// SetValue sets what SetMSRs will write to the i-th register.
func (m *MSRs) SetValue(i int, v uint64) { m.words[2+2*i] = v }

// MSRError says which register of a list KVM refused, and whether to read or to write it. The registers after it were
// not transferred.
type MSRError struct {
	VCPU  int
	Write bool
	Index uint32
	Value uint64 // that was to be written
}

func (e *MSRError) Error() string {
	if e.Write {
		return fmt.Sprintf("set MSR %#x of vCPU %d to %#x: KVM refused", e.Index, e.VCPU, e.Value)
	}
	return fmt.Sprintf("get MSR %#x of vCPU %d: KVM refused", e.Index, e.VCPU)
}

// MSRs reads the values of m (KVM API §4.18). When KVM stops at one, the error is an *MSRError.
func (c *VCPU) MSRs(m *MSRs) error {
	n, err := ioctl(c.fd, ioctlGetMSRs, unsafe.Pointer(&m.words[0]))
	if err != nil {
		return c.wrap("get MSRs", err)
	}
	if int(n) < m.Len() {
		return &MSRError{VCPU: c.id, Index: m.Index(int(n))}
	}
	return nil
}

// SetMSRs writes the values of m in order (KVM API §4.19). When KVM stops at one, the error is an *MSRError.
func (c *VCPU) SetMSRs(m *MSRs) error {
	n, err := ioctl(c.fd, ioctlSetMSRs, unsafe.Pointer(&m.words[0]))
	if err != nil {
		return c.wrap("set MSRs", err)
	}
	if int(n) < m.Len() {
		i := int(n)
		return &MSRError{VCPU: c.id, Write: true, Index: m.Index(i), Value: m.Value(i)}
	}
	return nil
}

// MSRIndexes is the list of the MSRs that hold guest state on this host (KVM API §4.3, KVM_GET_MSR_INDEX_LIST).
func (s *System) MSRIndexes() ([]uint32, error) {
	list := make([]uint32, 1+1024) // a count, then the indexes
	for {
		list[0] = uint32(len(list) - 1)
		_, err := ioctl(s.file.Fd(), ioctlGetMSRIndexList, unsafe.Pointer(&list[0]))
		if err == nil {
			return list[1 : 1+list[0]], nil
		}
		if !errors.Is(err, unix.E2BIG) || list[0] < uint32(len(list)) || list[0] > 1<<20 {
			return nil, fmt.Errorf("get list of MSRs: %w", err)
		}
		list = make([]uint32, 1+list[0])
	}
}

// KVMClockCtrl tells a guest that uses kvmclock that it was stopped, so that its watchdogs don't take the pause for a
// hang (KVM API §4.67). For a guest that doesn't use it, it does nothing.
func (c *VCPU) KVMClockCtrl() error {
	_, err := ioctlValue(c.fd, ioctlKVMClockCtrl, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return c.wrap("announce a pause to the clock", err)
}
