package vmm

import (
	"errors"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// bootFiles is what Boot reads.
type bootFiles struct {
	kernel, initrd, cmdline string
}

// Boot loads the kernel into memory and makes the first vCPU begin there; the others wait to be started. The machine must
// be fresh. Errors wrap boot.ErrNotKernel, boot.ErrTooLittleMemory or what the file system says.
func (m *Machine) Boot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phaseFresh || m.started {
		return fmt.Errorf("boot machine: %w", ErrNotFresh)
	}
	entry, err := boot.Load(m.memory, boot.Config{
		Kernel: m.boot.kernel, Initrd: m.boot.initrd, Cmdline: m.boot.cmdline, CPUs: len(m.vcpus),
	})
	if err != nil {
		return fmt.Errorf("boot machine: %w", err)
	}
	m.started = true
	for _, v := range m.vcpus {
		if err := v.enableMTRRs(); err != nil {
			return fmt.Errorf("boot machine: %w", err)
		}
	}
	if err := m.vcpus[0].enter(entry); err != nil {
		return fmt.Errorf("boot machine: %w", err)
	}
	return nil
}

// enableMTRRs does what a firmware does before it starts a kernel: memory is write-back unless the kernel says otherwise.
// Without it, kernels take the memory types for broken and stop using them. A KVM that has no such register is left alone.
func (v *vcpu) enableMTRRs() error {
	const enabled, writeBack = 1 << 11, 6
	m := kvm.NewMSRs([]uint32{msrMTRRDefault})
	m.SetValue(0, enabled|writeBack)
	var refused *kvm.MSRError
	if err := v.cpu.SetMSRs(m); err != nil && !errors.As(err, &refused) {
		return err
	}
	return nil
}

// enter makes the vCPU begin at e. What e doesn't name stays as KVM creates a vCPU: as after reset.
func (v *vcpu) enter(e boot.Entry) error {
	s := &v.state
	if err := v.cpu.Sregs(&s.sregs); err != nil {
		return err
	}
	s.sregs.CR0, s.sregs.CR3, s.sregs.CR4, s.sregs.EFER = e.CR0, e.CR3, e.CR4, e.EFER
	data := segment(e.Data)
	s.sregs.CS = segment(e.Code)
	s.sregs.DS, s.sregs.ES, s.sregs.FS, s.sregs.GS, s.sregs.SS = data, data, data, data, data
	s.sregs.TR = segment(e.Task)
	s.sregs.LDT = kvm.Segment{Typ: 2, Unusable: 1}
	s.sregs.GDT = gokvm.Descriptor{Base: e.GDTBase, Limit: e.GDTLimit}
	s.sregs.IDT = gokvm.Descriptor{}
	s.regs = kvm.Regs{RIP: e.RIP, RSP: e.RSP, RBX: e.RBX, RSI: e.RSI, RFLAGS: e.RFLAGS}
	if err := v.cpu.SetSregs(&s.sregs); err != nil {
		return err
	}
	return v.cpu.SetRegs(&s.regs)
}

// segment is a boot segment in KVM's terms.
func segment(s boot.Segment) kvm.Segment {
	flag := func(on bool) uint8 {
		if on {
			return 1
		}
		return 0
	}
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Typ: s.Type, Present: 1,
		S: flag(!s.System), DB: flag(s.Big), L: flag(s.Long), G: flag(s.Granular),
	}
}
