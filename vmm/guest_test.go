package vmm

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/testtier"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// The programs that test guests run: 64-bit code in ring 3, which every kind of KVM executes, with interrupts off. They
// read and write ports of testPorts.
var (
	// progSequence reads port 0x100 for ever: each value must be one more than the one before (rbx); reports others to port
	// 0x104. It counts rounds at [rdi].
	progSequence = []byte{
		0x66, 0xba, 0x00, 0x01, // mov $0x100,%dx
		0xed,             // in (%dx),%eax
		0x8d, 0x4b, 0x01, // lea 1(%rbx),%ecx
		0x39, 0xc8, // cmp %ecx,%eax
		0x74, 0x09, // je +9
		0x66, 0xba, 0x04, 0x01, // mov $0x104,%dx
		0xef,                   // out %eax,(%dx)
		0x66, 0xba, 0x00, 0x01, // mov $0x100,%dx
		0x89, 0xc3, // mov %eax,%ebx
		0x48, 0xff, 0x07, // incq (%rdi)
		0xeb, 0xe8, // jmp to in
	}
	// progDirty writes pseudo-random pages, of number (x & rsi), from rdi on, and reports each to port 0x108 after.
	progDirty = []byte{
		0x66, 0xba, 0x08, 0x01, // mov $0x108,%dx
		0x69, 0xdb, 0x0d, 0x66, 0x19, 0x00, // imul $1664525,%ebx,%ebx
		0x81, 0xc3, 0x5f, 0xf3, 0x6e, 0x3c, // add $1013904223,%ebx
		0x89, 0xd8, // mov %ebx,%eax
		0xc1, 0xe8, 0x08, // shr $8,%eax
		0x21, 0xf0, // and %esi,%eax
		0x48, 0x89, 0xc1, // mov %rax,%rcx
		0x48, 0xc1, 0xe1, 0x0c, // shl $12,%rcx
		0x48, 0xff, 0x04, 0x0f, // incq (%rdi,%rcx)
		0xef,       // out %eax,(%dx)
		0xeb, 0xdf, // jmp to imul
	}
	// progSpin counts at [rdi] and never leaves the guest.
	progSpin = []byte{
		0x48, 0xff, 0x07, // incq (%rdi)
		0xeb, 0xfb, // jmp to incq
	}
	// progString reads 64 bytes at a time from port 0x110 with one instruction, to rbp: each must be one more than the
	// one before; reports others to port 0x104. It counts rounds at 0x800(rbp).
	progString = []byte{
		0x48, 0x89, 0xef, // mov %rbp,%rdi
		0xb9, 0x40, 0x00, 0x00, 0x00, // mov $64,%ecx
		0x66, 0xba, 0x10, 0x01, // mov $0x110,%dx
		0xf3, 0x6c, // rep insb
		0x48, 0x89, 0xee, // mov %rbp,%rsi
		0xb9, 0x40, 0x00, 0x00, 0x00, // mov $64,%ecx
		0xac,       // lodsb
		0xfe, 0xc3, // inc %bl
		0x38, 0xd8, // cmp %bl,%al
		0x74, 0x07, // je +7
		0x66, 0xba, 0x04, 0x01, // mov $0x104,%dx
		0xef,       // out %eax,(%dx)
		0x88, 0xc3, // mov %al,%bl
		0xe2, 0xf0, // loop to lodsb
		0x48, 0xff, 0x85, 0x00, 0x08, 0x00, 0x00, // incq 0x800(%rbp)
		0xeb, 0xd1, // jmp to the start
	}
	// progMMIO is progSequence with a register in memory, at [rbp], instead of the port.
	progMMIO = []byte{
		0x8b, 0x45, 0x00, // mov (%rbp),%eax
		0x8d, 0x4b, 0x01, // lea 1(%rbx),%ecx
		0x39, 0xc8, // cmp %ecx,%eax
		0x74, 0x05, // je +5
		0x66, 0xba, 0x04, 0x01, // mov $0x104,%dx
		0xef,       // out %eax,(%dx)
		0x89, 0xc3, // mov %eax,%ebx
		0x48, 0xff, 0x07, // incq (%rdi)
		0xeb, 0xea, // jmp to the start
	}
	// progWalk writes rsi pages from rdi on, again and again, and never leaves the guest. It counts rounds at 8(rdi).
	progWalk = []byte{
		0x48, 0x89, 0xf8, // mov %rdi,%rax
		0x48, 0x89, 0xf1, // mov %rsi,%rcx
		0x48, 0xff, 0x00, // incq (%rax)
		0x48, 0x05, 0x00, 0x10, 0x00, 0x00, // add $4096,%rax
		0x48, 0xff, 0xc9, // dec %rcx
		0x75, 0xf2, // jne to incq
		0x48, 0xff, 0x47, 0x08, // incq 8(%rdi)
		0xeb, 0xe6, // jmp to the start
	}
	// progUndefined is an undefined instruction, with no handler to go to.
	progUndefined = []byte{0x0f, 0x0b}
)

const (
	guestTables  = 0x1000   // page tables: five pages
	guestTSS     = 0x8000   // with an I/O permission bitmap of zeroes: every port is allowed in ring 3
	guestCode    = 0x10000  // 4 KiB for each vCPU
	guestData    = 0x200000 // what rdi points to, 1 MiB for each vCPU
	guestMMIO    = 0xd000_0000
	guestMemory  = 64 << 20
	guestStride  = 1 << 20
	guestTSSSize = 104 + 8192

	// iopl3 allows all ports in ring 3, too. Paravirtual KVM ignores it and looks at the TSS; QEMU's emulated processors
	// don't find the bitmap of a TSS that was not loaded by an instruction.
	iopl3 = 3 << 12
)

// testConfig is a machine for tests, whose guest's programs need no kernel.
func testConfig(t testing.TB, cpus int) Config {
	return Config{Name: t.Name(), MemoryBytes: guestMemory, CPUs: cpus, Logger: slog.New(slog.DiscardHandler)}
}

// testPorts is the device that the programs talk to. What it counts is state, and a takeover carries it over by hand.
type testPorts struct {
	next   atomic.Uint32 // the last value that port 0x100, 0x110 or the register gave
	errors atomic.Uint32 // reports on port 0x104

	mu      sync.Mutex
	written map[uint32]bool // reports on port 0x108
}

// Read implements devices.Handler.
func (p *testPorts) Read(_ uint64, b []byte) {
	n := p.next.Add(1)
	switch len(b) {
	case 1:
		b[0] = byte(n)
	case 4:
		binary.LittleEndian.PutUint32(b, n)
	}
}

// Write implements devices.Handler.
func (p *testPorts) Write(offset uint64, b []byte) {
	switch offset {
	case 4:
		p.errors.Add(1)
	case 8:
		p.mu.Lock()
		p.written[binary.LittleEndian.Uint32(b)] = true
		p.mu.Unlock()
	}
}

// newTestMachine makes a machine whose ports 0x100 to 0x113 and whose register at guestMMIO are the result.
func newTestMachine(t testing.TB, cfg Config) (*Machine, *testPorts) {
	t.Helper()
	testtier.Machine(t)
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &testPorts{written: map[uint32]bool{}}
	if err := m.ports.Register(0x100, 0x14, p); err != nil {
		t.Fatal(err)
	}
	if err := m.mmio.Register(guestMMIO, 4, p); err != nil {
		t.Fatal(err)
	}
	return m, p
}

// program puts a program into every vCPU: rdi points to its own data, rbp to the register in memory, unless change says
// otherwise.
func program(t testing.TB, m *Machine, code []byte, change func(id int, r *kvm.Regs)) {
	t.Helper()
	writePageTables(t, m)
	for id, v := range m.vcpus {
		if err := m.memory.WriteAt(code, guestCode+uint64(id)<<12); err != nil {
			t.Fatal(err)
		}
		s := &v.state
		if err := v.cpu.Sregs(&s.sregs); err != nil {
			t.Fatal(err)
		}
		setRing3(&s.sregs)
		s.regs = kvm.Regs{
			RIP: guestCode + uint64(id)<<12, RFLAGS: 2 | iopl3, RSP: guestCode,
			RDI: guestData + uint64(id)*guestStride, RBP: guestMMIO, RSI: 0xff,
		}
		if change != nil {
			change(id, &s.regs)
		}
		s.mp.State = 0 // an application processor otherwise waits for the first one to start it
		for _, err := range []error{
			v.cpu.SetMPState(&s.mp), v.cpu.SetSregs(&s.sregs), v.cpu.SetRegs(&s.regs),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// writePageTables maps the first and the fourth GiB one to one, for ring 3.
func writePageTables(t testing.TB, m *Machine) {
	t.Helper()
	const large = 0x80
	writeEntry(t, m, 0, 0, guestTables+1<<12)
	writeEntry(t, m, 1, 0, guestTables+2<<12)
	writeEntry(t, m, 1, 3, guestTables+3<<12)
	for i := range uint64(512) {
		writeEntry(t, m, 2, i, i<<21|large)
		writeEntry(t, m, 3, i, 3<<30|i<<21|large)
	}
	if err := m.memory.WriteAt([]byte{104}, guestTSS+102); err != nil { // where the I/O bitmap begins
		t.Fatal(err)
	}
}

// writeEntry sets an entry of one of the five page tables.
func writeEntry(t testing.TB, m *Machine, table, index, v uint64) {
	t.Helper()
	const present, writable, user = 1, 2, 4
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v|present|writable|user)
	if err := m.memory.WriteAt(b[:], guestTables+table<<12+index*8); err != nil {
		t.Fatal(err)
	}
}

func setRing3(s *kvm.Sregs) {
	const (
		cr0 = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<16 | 1<<31 // PE MP ET NE WP PG
		cr4 = 1<<5 | 1<<9 | 1<<10                       // PAE OSFXSR OSXMMEXCPT
		fer = 1<<0 | 1<<8 | 1<<10 | 1<<11               // SCE LME LMA NXE
	)
	s.CR0, s.CR3, s.CR4, s.EFER = cr0, guestTables, cr4, fer
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: 0x2b, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: 0x23, Typ: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = kvm.Segment{Base: guestTSS, Limit: guestTSSSize, Selector: 0x30, Typ: 11, Present: 1}
	s.LDT = kvm.Segment{Typ: 2, Present: 0, Unusable: 1}
}

// counter is what a program has counted.
func counter(t testing.TB, m *Machine, address uint64) uint64 {
	t.Helper()
	var b [8]byte
	if err := m.memory.ReadAt(b[:], address); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// running starts the machine; the result stops it, checks that it was ours to stop, and waits. It is called at the end of
// the test if not before.
func running(t testing.TB, m *Machine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		exit, err := m.Run(ctx)
		if err != nil || exit.Reason != ExitStopped {
			t.Errorf("Run: %v, %v", exit, err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// runToEnd runs the machine until it ends by itself.
func runToEnd(t testing.TB, m *Machine) (Exit, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return m.Run(ctx)
}

// eventually waits for a condition that a running guest brings about.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}
