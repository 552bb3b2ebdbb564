package vmm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/tests/testtier"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// intelTable and amdTable are cut-down tables of what KVM supports.
var (
	intelTable = []kvm.CPUIDEntry{
		{Function: 0, Eax: 0x20, Ebx: 0x756e6547, Ecx: 0x6c65746e, Edx: 0x49656e69},
		{Function: 1, Eax: 0xc06f2, Ebx: 0x05200800, Ecx: 0xffffffff, Edx: 0x0f8bfbff},
		{Function: 4, Index: 0, Flags: 1, Eax: 0x0c004121, Ebx: 0x02c0003f, Ecx: 63},
		{Function: 4, Index: 3, Flags: 1, Eax: 0x0c004163, Ebx: 0x04c0003f, Ecx: 0x3bfff},
		{Function: 4, Index: 4, Flags: 1},
		{Function: 5, Eax: 0x40, Ebx: 0x40, Ecx: 3},
		{Function: 7, Index: 0, Flags: 1, Eax: 2, Ebx: 0xffffffff, Ecx: 0xffffffff, Edx: 0xffffffff},
		{Function: 0xa, Eax: 0x07300404},
		{Function: 0xb, Index: 0, Flags: 1, Eax: 1, Ebx: 2, Ecx: 0x100, Edx: 7},
		{Function: 0x1f, Index: 0, Flags: 1, Eax: 1},
		{Function: 0x40000000, Eax: 0x40000001, Ebx: 0x4b4d564b, Ecx: 0x564b4d56, Edx: 0x4d},
		{Function: 0x40000001, Eax: 0xffffffff, Edx: 1},
		{Function: 0x80000000, Eax: 0x80000008},
		{Function: 0x80000001, Ecx: 0x121, Edx: 0x2c100800},
		{Function: 0x80000007, Edx: 0x100},
		{Function: 0x80000008, Eax: 0x392e},
	}
	amdTable = []kvm.CPUIDEntry{
		{Function: 0, Eax: 0x10, Ebx: 0x68747541, Ecx: 0x444d4163, Edx: 0x69746e65},
		{Function: 1, Eax: 0xa20f10, Ebx: 0x05200800, Ecx: 0x80202000, Edx: 0x178bfbff},
		{Function: 0x80000000, Eax: 0x80000028},
		{Function: 0x80000001, Ecx: 0xffffffff, Edx: 0x2fd3fbff},
		{Function: 0x80000008, Eax: 0x3030, Ebx: 0x1000, Ecx: 0x700f},
		{Function: 0x8000000a, Eax: 1, Ebx: 16},
		{Function: 0x8000001d, Index: 0, Flags: 1, Eax: 0x4121},
		{Function: 0x8000001d, Index: 3, Flags: 1, Eax: 0x3c163},
		{Function: 0x8000001e, Eax: 5, Ebx: 0x102, Ecx: 3},
		{Function: 0x80000022, Eax: 1},
	}
)

// policy is what hostBaseline does, for a table.
func policy(entries []kvm.CPUIDEntry) Baseline {
	var b Baseline
	for _, c := range entries {
		if maskEntry(&c) {
			b = append(b, c)
		}
	}
	return b.withTopologyLeaf()
}

func TestCPUIDPolicy(t *testing.T) {
	intel, amd := policy(intelTable), policy(amdTable)
	for _, c := range []struct {
		what      string
		table     Baseline
		leaf, sub uint32
		register  register
		mask      uint32
		want      uint32
	}{
		{"the hypervisor is announced", intel, 1, 0, ecx, 1 << 31, 1 << 31},
		{"x2APIC", intel, 1, 0, ecx, 1 << 21, 1 << 21},
		{"no MONITOR", intel, 1, 0, ecx, 1 << 3, 0},
		{"no VMX", intel, 1, 0, ecx, 1 << 5, 0},
		{"no performance MSR", intel, 1, 0, ecx, 1 << 15, 0},
		{"no AMX", intel, 7, 0, edx, 1<<22 | 1<<24 | 1<<25, 0},
		{"no WAITPKG", intel, 7, 0, ecx, 1 << 5, 0},
		{"no processor trace", intel, 7, 0, ebx, 1 << 25, 0},
		{"AVX2 stays", intel, 7, 0, ebx, 1 << 5, 1 << 5},
		{"last basic leaf", intel, 0, 0, eax, 0xff, 0xd},
		{"no invariant TSC", intel, 0x80000007, 0, edx, 1 << 8, 0},
		{"kvmclock stays", intel, 0x40000001, 0, eax, 1<<3 | 1<<24, 1<<3 | 1<<24},
		{"no steal time, async PF, PV EOI, PV TLB flush", intel, 0x40000001, 0, eax, 1<<4 | 1<<5 | 1<<6 | 1<<9 | 1<<10 | 1<<14, 0},
		{"no realtime hint", intel, 0x40000001, 0, edx, 1, 0},
		{"no SVM", amd, 0x80000001, 0, ecx, 1 << 2, 0},
		{"no MWAITX", amd, 0x80000001, 0, ecx, 1 << 29, 0},
		{"last extended leaf", amd, 0x80000000, 0, eax, 0xff, 0x21},
	} {
		if got := c.table.word(c.leaf, c.sub, c.register) & c.mask; got != c.want {
			t.Errorf("%s: leaf %#x.%d %v & %#x = %#x, want %#x", c.what, c.leaf, c.sub, c.register, c.mask, got, c.want)
		}
	}
	for _, leaf := range []uint32{5, 0xa, 0x1f} {
		if intel.entry(leaf, 0) != nil {
			t.Errorf("leaf %#x is shown", leaf)
		}
	}
	for _, leaf := range []uint32{0x8000000a, 0x80000022} {
		if amd.entry(leaf, 0) != nil {
			t.Errorf("leaf %#x is shown", leaf)
		}
	}
}

// Every vCPU sees itself as the core of its number, and all agree on how many there are, in all leaves that tell.
func TestTopology(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cpus := rapid.IntRange(1, maxCPUs).Draw(t, "cpus")
		id := rapid.IntRange(0, cpus-1).Draw(t, "id")
		intel, amd := Baseline(policy(intelTable).forCPU(id, cpus)), Baseline(policy(amdTable).forCPU(id, cpus))
		width := intel.word(0xb, 1, eax)
		if 1<<width < cpus || (cpus > 1 && 1<<(width-1) >= cpus) {
			t.Fatalf("%d CPUs with APIC IDs of %d bits", cpus, width)
		}
		for _, c := range []struct {
			what      string
			got, want uint32
		}{
			{"leaf 1 APIC ID", intel.word(1, 0, ebx) >> 24, uint32(id)},
			{"leaf 1 IDs in the package", intel.word(1, 0, ebx) >> 16 & 0xff, min(uint32(1)<<width, 0xff)},
			{"leaf 1 CLFLUSH", intel.word(1, 0, ebx) & 0xffff, 0x0800},
			{"leaf 4 sharing L1", intel.word(4, 0, eax) >> 14 & 0xfff, 0},
			{"leaf 4 sharing L3", intel.word(4, 3, eax) >> 14 & 0xfff, 1<<width - 1},
			{"leaf 4 cores", intel.word(4, 0, eax) >> 26, min(uint32(1)<<width-1, 63)},
			{"leaf 4 end", intel.word(4, 4, eax), 0},
			{"leaf 0xB threads", intel.word(0xb, 0, ebx), 1},
			{"leaf 0xB cores", intel.word(0xb, 1, ebx), uint32(cpus)},
			{"leaf 0xB level types", intel.word(0xb, 0, ecx)<<16 | intel.word(0xb, 1, ecx), 0x100<<16 | 0x201},
			{"leaf 0xB end", intel.word(0xb, 2, ebx), 0},
			{"leaf 0xB APIC ID", intel.word(0xb, 1, edx), uint32(id)},
			{"leaf 0x80000008 cores", amd.word(0x80000008, 0, ecx) & 0xff, uint32(cpus - 1)},
			{"leaf 0x80000008 width", amd.word(0x80000008, 0, ecx) >> 12 & 0xf, width},
			{"leaf 0x8000001D sharing L3", amd.word(0x8000001d, 3, eax) >> 14 & 0xfff, 1<<width - 1},
			{"leaf 0x8000001E APIC ID", amd.word(0x8000001e, 0, eax), uint32(id)},
			{"leaf 0x8000001E threads", amd.word(0x8000001e, 0, ebx) >> 8 & 0xff, 0},
		} {
			if c.got != c.want {
				t.Fatalf("vCPU %d of %d: %s = %#x, want %#x", id, cpus, c.what, c.got, c.want)
			}
		}
		if intel.word(1, 0, edx)>>28&1 != 1 && cpus > 1 {
			t.Fatal("several CPUs without HTT")
		}
	})
}

func TestMissingFeaturesAreNamed(t *testing.T) {
	full := policy(intelTable)
	without := func(leaf uint32, r register, bit int) Baseline {
		b := slices.Clone(full)
		c := b.entry(leaf, 0)
		*[...]*uint32{&c.Eax, &c.Ebx, &c.Ecx, &c.Edx}[r] &^= 1 << bit
		return b
	}
	for _, c := range []struct {
		host Baseline
		want string
	}{
		{without(1, ecx, 28), "lacks avx"},
		{without(7, ebx, 5), "lacks avx2"},
		{without(7, ebx, 16), "lacks avx512f"},
		{without(1, ecx, 16), "lacks CPUID 0x1.0 ECX bit 16"},
		{without(0x80000001, edx, 29), "lacks lm"},
		{without(0x40000001, eax, 3), "lacks kvmclock2"},
		{policy(amdTable), "GenuineIntel, this host's is AuthenticAMD"},
		{Baseline{}, "this host's is"},
	} {
		err := full.runsOn(c.host)
		if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
		if len(c.host) == len(full) {
			if err := c.host.runsOn(full); err != nil {
				t.Errorf("the lesser CPU on the greater: %v", err)
			}
		}
	}
	if err := (Baseline{}).runsOn(full); !errors.Is(err, ErrMismatch) {
		t.Errorf("an empty baseline: %v", err)
	}
	if err := full.runsOn(full); err != nil {
		t.Errorf("a CPU on itself: %v", err)
	}
	narrow := slices.Clone(full)
	narrow.entry(0x80000008, 0).Eax = 0x3027
	if err := full.runsOn(narrow); err == nil || !strings.Contains(err.Error(), "46 physical address bits, this host's 39") {
		t.Errorf("fewer address bits: %v", err)
	}
}

// This host's own baseline fits it, and a machine with a lesser one shows the lesser CPU.
func TestMachineWithALesserCPU(t *testing.T) {
	testtier.Machine(t)
	system, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	host, err := hostBaseline(system)
	if err != nil {
		t.Fatal(err)
	}
	lesser := slices.Clone(host)
	lesser.entry(1, 0).Ecx &^= 1 << 30 // RDRAND
	cfg := testConfig(t, 1)
	cfg.Baseline = lesser
	m, _ := newTestMachine(t, cfg)
	if m.Baseline().word(1, 0, ecx)&(1<<30) != 0 {
		t.Error("RDRAND is shown")
	}
	own, err := ParseDescription(m.Description())
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Matches(Description{MemoryBytes: guestMemory, CPUs: 1, Devices: own.Devices, Baseline: host}); err == nil &&
		host.word(1, 0, ecx)&(1<<30) != 0 {
		t.Error("another CPU matches")
	}
	cfg.Baseline = slices.Clone(host)
	cfg.Baseline.entry(1, 0).Edx = ^uint32(0)
	if m, err := New(cfg); !errors.Is(err, ErrMismatch) {
		t.Errorf("New with a greater CPU: %v, %v", m, err)
	}
}

func TestDescriptionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Description{
			MemoryBytes: rapid.Uint64Range(guestmem.MinSize, guestmem.MaxSize).Draw(t, "memory"),
			CPUs:        rapid.IntRange(1, maxCPUs).Draw(t, "cpus"),
			Devices:     rapid.SliceOfN(rapid.StringN(0, 10, 200), 0, 20).Draw(t, "devices"),
			Baseline:    policy(intelTable),
		}
		b := d.encode()
		got, err := ParseDescription(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.Matches(d); err != nil {
			t.Fatal(err)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := ParseDescription(b[:cut]); err == nil {
			t.Fatalf("a description cut to %d of %d bytes was taken", cut, len(b))
		}
	})
}

func FuzzParseDescription(f *testing.F) {
	d := Description{MemoryBytes: guestMemory, CPUs: 2, Devices: []string{"serial0", "net0"}, Baseline: policy(intelTable)}
	f.Add(d.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDescription(b)
		if err != nil {
			return
		}
		if again, err := ParseDescription(d.encode()); err != nil || again.Matches(d) != nil {
			t.Errorf("%v does not come back: %v", d, err)
		}
	})
}

func TestExitNames(t *testing.T) {
	for reason := ExitPowerOff; reason <= ExitStopped; reason++ {
		if s := (Exit{reason, "why"}).String(); !strings.HasSuffix(s, ": why") || strings.Contains(s, "reason") {
			t.Errorf("exit %d: %q", reason, s)
		}
	}
	if s := (Exit{}).String(); s != fmt.Sprintf("exit reason %d", 0) {
		t.Errorf("no exit: %q", s)
	}
}
