package vmm

import (
	"fmt"
	"strings"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// register is one of the four that a CPUID leaf fills.
type register int

const (
	eax register = iota
	ebx
	ecx
	edx
)

func (r register) String() string { return [...]string{"EAX", "EBX", "ECX", "EDX"}[r] }

func (r register) of(c *kvm.CPUIDEntry) uint32 {
	return [...]uint32{c.Eax, c.Ebx, c.Ecx, c.Edx}[r]
}

// featureWord is a register whose bits each stand for a feature: a guest that was told of one may use it at any time.
type featureWord struct {
	leaf, index uint32
	register    register
	names       string // from bit 0 on, separated by spaces; "-" where there is none
}

var featureWords = []featureWord{
	{1, 0, ecx, "sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cnxt-id sdbg fma cx16 xtpr pdcm - pcid dca sse4.1 " +
		"sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor"},
	{1, 0, edx, "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 psn clfsh - ds acpi mmx fxsr sse sse2 " +
		"ss ht tm ia64 pbe"},
	{6, 0, eax, "- - arat"},
	{7, 0, ebx, "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm rdt-m zero-fcs-fds mpx rdt-a " +
		"avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni " +
		"avx512bw avx512vl"},
	{7, 0, ecx, "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 cet-ss gfni vaes vpclmulqdq avx512vnni avx512bitalg " +
		"tme avx512vpopcntdq - la57 - - - - - rdpid kl bus-lock-detect cldemote - movdiri movdir64b enqcmd sgx-lc pks"},
	{7, 0, edx, "- sgx-keys avx512-4vnniw avx512-4fmaps fsrm uintr - - avx512-vp2intersect srbds-ctrl md-clear " +
		"rtm-always-abort - tsx-force-abort serialize hybrid tsxldtrk - pconfig arch-lbr cet-ibt - amx-bf16 avx512-fp16 " +
		"amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capabilities ssbd"},
	{7, 1, eax, "sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 hreset " +
		"avx-ifma - - lam"},
	{7, 1, edx, "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchi - - - - avx10"},
	{7, 2, edx, "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"},
	{0xd, 0, eax, "xcr0-x87 xcr0-sse xcr0-avx xcr0-bndregs xcr0-bndcsr xcr0-opmask xcr0-zmm-hi256 xcr0-hi16-zmm - xcr0-pkru"},
	{0xd, 0, edx, ""},
	{0xd, 1, eax, "xsaveopt xsavec xgetbv1 xsaves xfd"},
	{0x8000_0001, 0, ecx, "lahf-lm cmp-legacy svm extapic cr8-legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt " +
		"- lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb - dbx perftsc perfctr-llc mwaitx"},
	{0x8000_0001, 0, edx, "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - - nx - mmxext mmx fxsr " +
		"fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
	{0x8000_0008, 0, ebx, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - stibp-always-on - - - - - - " +
		"amd-ssbd virt-ssbd amd-ssb-no - amd-psfd"},
	{0x8000_0021, 0, eax, "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs"},
	{0x4000_0001, 0, eax, "kvmclock kvm-nopiodelay - kvmclock2 - - - kvm-pv-unhalt - - - kvm-pv-ipi kvm-poll-control " +
		"kvm-pv-sched-yield - - - - - - - - - - kvmclock-stable-bit"},
}

// name is the name of a bit, or its place where it has none.
func (w *featureWord) name(bit int) string {
	if names := strings.Fields(w.names); bit < len(names) && names[bit] != "-" {
		return names[bit]
	}
	return fmt.Sprintf("CPUID %#x.%d %v bit %d", w.leaf, w.index, w.register, bit)
}

// entry finds a leaf, nil if there is none.
func (b Baseline) entry(leaf, index uint32) *kvm.CPUIDEntry {
	for i := range b {
		if b[i].Function == leaf && b[i].Index == index {
			return &b[i]
		}
	}
	return nil
}

func (b Baseline) word(leaf, index uint32, r register) uint32 {
	if c := b.entry(leaf, index); c != nil {
		return r.of(c)
	}
	return 0
}

// runsOn reports why a guest that sees b can't run on a host that offers host: an error that wraps ErrMismatch and names the
// first missing features.
func (b Baseline) runsOn(host Baseline) error {
	if b.entry(0, 0) == nil || b.entry(1, 0) == nil {
		return fmt.Errorf("%w: a CPU baseline without leaves 0 and 1", ErrMismatch)
	}
	if theirs, ours := b.vendor(), host.vendor(); theirs != ours {
		return fmt.Errorf("%w: the guest's CPU is %s, this host's is %s", ErrMismatch, theirs, ours)
	}
	if missing := b.missing(host); len(missing) > 0 {
		return fmt.Errorf("%w: this host's CPU lacks %s", ErrMismatch, strings.Join(missing, ", "))
	}
	theirs, ours := b.word(0x8000_0008, 0, eax)&0xff, host.word(0x8000_0008, 0, eax)&0xff
	if theirs > ours {
		return fmt.Errorf("%w: the guest's CPU has %d physical address bits, this host's %d", ErrMismatch, theirs, ours)
	}
	return nil
}

// missing names the features of b that host lacks.
func (b Baseline) missing(host Baseline) []string {
	var names []string
	for i := range featureWords {
		w := &featureWords[i]
		lacking := b.word(w.leaf, w.index, w.register) &^ host.word(w.leaf, w.index, w.register)
		for bit := range 32 {
			if lacking&(1<<bit) != 0 {
				names = append(names, w.name(bit))
			}
		}
	}
	return names
}

// vendor is the vendor's name, "GenuineIntel" or the like, with what can't be printed replaced.
func (b Baseline) vendor() string {
	c := b.entry(0, 0)
	if c == nil {
		return ""
	}
	var name []byte
	for _, w := range [...]uint32{c.Ebx, c.Edx, c.Ecx} {
		for shift := 0; shift < 32; shift += 8 {
			letter := byte(w >> shift)
			if letter < ' ' || letter > '~' {
				letter = '?'
			}
			name = append(name, letter)
		}
	}
	return string(name)
}
