package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/testtier"
)

// The numbers encode the size of what is passed, so that a structure of another size than the kernel's shows here.
func TestIoctlNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"KVM_GET_MSR_INDEX_LIST", ioctlGetMSRIndexList, 0xc004ae02},
		{"KVM_SET_USER_MEMORY_REGION", ioctlSetUserMemoryRegion, 0x4020ae46},
		{"KVM_GET_DIRTY_LOG", ioctlGetDirtyLog, 0x4010ae42},
		{"KVM_SET_IDENTITY_MAP_ADDR", ioctlSetIdentityMapAddr, 0x4008ae48},
		{"KVM_IRQ_LINE", ioctlIRQLine, 0x4008ae61},
		{"KVM_SET_GSI_ROUTING", ioctlSetGSIRouting, 0x4008ae6a},
		{"KVM_IRQFD", ioctlIRQFD, 0x4020ae76},
		{"KVM_CREATE_PIT2", ioctlCreatePIT2, 0x4040ae77},
		{"KVM_IOEVENTFD", ioctlIOEventFD, 0x4040ae79},
		{"KVM_ENABLE_CAP", ioctlEnableCap, 0x4068aea3},
		{"KVM_SIGNAL_MSI", ioctlSignalMSI, 0x4020aea5},
		{"KVM_CLEAR_DIRTY_LOG", ioctlClearDirtyLog, 0xc018aec0},
		{"KVM_RUN", ioctlRun, 0xae80},
		{"KVM_GET_REGS", ioctlGetRegs, 0x8090ae81},
		{"KVM_GET_SREGS", ioctlGetSregs, 0x8138ae83},
		{"KVM_GET_MSRS", ioctlGetMSRs, 0xc008ae88},
		{"KVM_SET_MSRS", ioctlSetMSRs, 0x4008ae89},
		{"KVM_GET_XSAVE", ioctlGetXSAVE, 0x9000aea4},
		{"KVM_SET_XSAVE", ioctlSetXSAVE, 0x5000aea5},
		{"KVM_GET_XSAVE2", ioctlGetXSAVE2, 0x9000aecf},
		{"KVM_KVMCLOCK_CTRL", ioctlKVMClockCtrl, 0xaead},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#x, want %#x", c.name, c.got, c.want)
		}
	}
	if n := unsafe.Sizeof(routingEntry{}); n != 48 {
		t.Errorf("an interrupt route has %d bytes, KVM's has 48", n)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), file, "/dev/null"} {
		s, err := OpenPath(path)
		if !errors.Is(err, ErrNoKVM) {
			t.Errorf("OpenPath(%s) = %v, %v; want ErrNoKVM", path, s, err)
		}
	}
}

// newVM makes a VM with 1 MiB of memory and one vCPU.
func newVM(t *testing.T) (*VM, *VCPU) {
	t.Helper()
	testtier.Machine(t)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s.Close)
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, func() error { return unix.Munmap(memory) })
	closeAtEnd(t, vm.Close)
	if _, err := vm.EnableManualDirtyLog(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		vm.SetIdentityMapAddress(0xfffbc000), vm.SetTSSAddress(0xfffbd000), vm.CreateIRQChip(), vm.CreatePIT(),
		vm.SetMemoryRegion(MemoryRegion{Memory: memory}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, cpu.Close)
	return vm, cpu
}

func closeAtEnd(t *testing.T, f func() error) {
	t.Cleanup(func() {
		if err := f(); err != nil {
			t.Error(err)
		}
	})
}

// A register that doesn't exist, in the middle of a list, is an error that names it.
func TestMSRErrorsNameTheRegister(t *testing.T) {
	_, cpu := newVM(t)
	const sysenterESP, missing = 0x175, 0xdead
	m := NewMSRs([]uint32{sysenterESP, missing, 0x176})
	m.SetValue(0, 0x1234)
	var refused *MSRError
	if err := cpu.SetMSRs(m); !errors.As(err, &refused) || refused.Index != missing || !refused.Write {
		t.Errorf("SetMSRs: %v", err)
	}
	if err := cpu.MSRs(m); !errors.As(err, &refused) || refused.Index != missing || refused.Write {
		t.Errorf("MSRs: %v", err)
	}
	one := NewMSRs([]uint32{sysenterESP})
	if err := cpu.MSRs(one); err != nil || one.Value(0) != 0x1234 {
		t.Errorf("the register before it: %#x, %v", one.Value(0), err)
	}
}

func TestMSRList(t *testing.T) {
	testtier.Machine(t)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.MSRIndexes()
	if err != nil || len(list) < 10 {
		t.Errorf("MSR list: %#x, %v", list, err)
	}
}

// A slot without a log is never clean.
func TestDirtyLogOfASlotWithoutOne(t *testing.T) {
	vm, _ := newVM(t)
	bitmap := make([]uint64, 4)
	if err := vm.DirtyLog(0, 256, bitmap); !errors.Is(err, ErrNotLogged) {
		t.Errorf("DirtyLog: %v", err)
	}
	if err := vm.DirtyLog(7, 256, bitmap); err == nil {
		t.Error("DirtyLog of a slot that does not exist: no error")
	}
	if err := vm.ClearDirtyLog(0, 0, 256, bitmap); !errors.Is(err, ErrNotLogged) {
		t.Errorf("ClearDirtyLog: %v", err)
	}
	if err := vm.DirtyLog(0, 257, bitmap); err == nil {
		t.Error("DirtyLog into a bitmap that is too short: no error")
	}
	if err := vm.ClearDirtyLog(0, 1, 64, bitmap); err == nil {
		t.Error("ClearDirtyLog from page 1: no error")
	}
}

func TestExtendedStateSizes(t *testing.T) {
	_, cpu := newVM(t)
	p := make([]byte, cpu.XSAVESize())
	if err := cpu.XSAVE(p); err != nil {
		t.Error(err)
	}
	if err := cpu.SetXSAVE(p); err != nil {
		t.Error(err)
	}
	if cpu.XSAVE(p[1:]) == nil || cpu.SetXSAVE(p[1:]) == nil {
		t.Error("a buffer of another size was taken")
	}
}

// Several routes at once, of both kinds, are all in force.
func TestRoutes(t *testing.T) {
	vm, _ := newVM(t)
	routes := []Route{
		{GSI: 4, Chip: IOAPIC, Pin: 4},
		{GSI: 24, MSI: true, Address: 0xfee00000, Data: 0x31},
		{GSI: 25, MSI: true, Address: 0xfee00000, Data: 0x32},
	}
	if err := vm.SetGSIRouting(routes); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := vm.AttachIRQFD(fd, 25); err != nil {
		t.Error(err)
	}
	if err := vm.DetachIRQFD(fd, 25); err != nil {
		t.Error(err)
	}
	if err := vm.SetIRQLine(4, true); err != nil {
		t.Error(err)
	}
	chip := &IRQChip{ChipID: IOAPIC}
	if err := vm.IRQChip(chip); err != nil {
		t.Error(err)
	}
	if err := vm.SetGSIRouting([]Route{{GSI: 4, Chip: 9, Pin: 4}}); err == nil {
		t.Error("a route to a controller that does not exist was taken")
	}
}

func TestIOEvents(t *testing.T) {
	vm, _ := newVM(t)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, e := range []IOEvent{
		{Address: 0xd0000000, Length: 2, FD: fd},
		{Address: 0xd0000000, Length: 2, FD: fd, Match: true, Value: 3},
		{Address: 0x1000, Length: 4, Port: true, FD: fd},
	} {
		if err := vm.AttachIOEvent(e); err != nil {
			t.Fatal(err)
		}
		if err := vm.AttachIOEvent(e); err == nil {
			t.Errorf("%+v was attached twice", e)
		}
		if err := vm.DetachIOEvent(e); err != nil {
			t.Error(err)
		}
	}
	if err := vm.DetachIOEvent(IOEvent{Address: 0xd0000000, Length: 2, FD: fd}); err == nil {
		t.Error("what is not attached was detached")
	}
}

// A vCPU that is told to leave at once leaves without executing anything, and says so as often as it is asked.
func TestImmediateExit(t *testing.T) {
	_, cpu := newVM(t)
	before, after := new(Regs), new(Regs)
	if err := cpu.Regs(before); err != nil {
		t.Fatal(err)
	}
	cpu.SetImmediateExit(true)
	for range 3 {
		if err := cpu.Run(); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("Run: %v", err)
		}
	}
	if err := cpu.Regs(after); err != nil || *before != *after {
		t.Errorf("registers %+v, before %+v, %v", after, before, err)
	}
}

func TestStateCallsDoNotAllocate(t *testing.T) {
	vm, cpu := newVM(t)
	var (
		regs   = new(Regs)
		sregs  = new(Sregs)
		lapic  = new(LAPIC)
		events = new(Events)
		clock  = new(Clock)
		msrs   = NewMSRs([]uint32{0x174, 0x175, 0x176})
		xsave  = make([]byte, cpu.XSAVESize())
	)
	if n := testing.AllocsPerRun(10, func() {
		for _, err := range [...]error{
			cpu.Regs(regs), cpu.Sregs(sregs), cpu.LAPIC(lapic), cpu.Events(events), cpu.MSRs(msrs), cpu.XSAVE(xsave),
			vm.Clock(clock), vm.SetIRQLine(4, true), vm.SetIRQLine(4, false),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := vm.SignalMSI(0xfee00000, 0x31); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{ExitMMIO.String(), "EXITMMIO"},
		{ExitSystemEvent.String(), "system event"},
		{ExitReason(99).String(), "exit 99"},
		{ErrorEmulation.String(), "KVM cannot emulate an instruction"},
		{InternalError(99).String(), "internal error 99"},
		{gokvm.CapIRQChip.String(), "CapIRQChip"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
