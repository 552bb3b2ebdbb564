package vmm

import (
	"math/bits"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// Baseline is the CPU that a guest sees: a CPUID table that is the same for all vCPUs but for their place in the topology,
// which forCPU fills in. It is fixed when the guest boots and goes where the guest goes.
type Baseline []kvm.CPUIDEntry

// maxCPUIDEntries bounds a baseline from a peer; KVM takes no more than 256.
const maxCPUIDEntries = 128

// The last leaves that a guest sees. Above are descriptions of this very host (frequencies, cache partitions, trace units,
// tiles, topology by other names) which would be wrong on the twin; features that need them are hidden too.
const (
	lastBasicLeaf    = 0xd
	lastExtendedLeaf = 0x8000_0021
	lastKVMLeaf      = 0x4000_0001
)

// hostBaseline is what this host can show to a guest that shall be able to leave it.
func hostBaseline(system *kvm.System) (Baseline, error) {
	entries, err := system.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	deadline, err := system.Check(gokvm.CapTSCDeadlineTimer)
	if err != nil {
		return nil, err
	}
	b := make(Baseline, 0, len(entries))
	for _, c := range entries {
		if !maskEntry(&c) {
			continue
		}
		if c.Function == 1 && deadline > 0 {
			c.Ecx |= leaf1ECXTSCDeadline // older kernels don't list what their local APIC can do
		}
		b = append(b, c)
	}
	return b.withTopologyLeaf(), nil
}

// maskEntry applies the policy to one entry of what KVM supports; false drops the entry.
func maskEntry(c *kvm.CPUIDEntry) bool {
	c.Padding = [3]uint32{}
	switch c.Function {
	case 0:
		c.Eax = min(c.Eax, lastBasicLeaf)
	case 1:
		maskLeaf1(c)
	case 2, 4, 0xd:
		// Cache descriptions, and the layout of the extended state.
	case 6:
		c.Eax, c.Ebx, c.Ecx, c.Edx = c.Eax&leaf6ARAT, 0, 0, 0
	case 7:
		maskLeaf7(c)
	case 0x4000_0000:
		c.Eax = lastKVMLeaf
	case 0x4000_0001:
		// EDX hints that vCPUs are never descheduled, which a checkpoint does.
		c.Eax, c.Ebx, c.Ecx, c.Edx = c.Eax&kvmFeatures, 0, 0, 0
	case 0x8000_0000:
		c.Eax = min(c.Eax, lastExtendedLeaf)
	case 0x8000_0001:
		c.Ecx &^= extended1Hidden
	case 0x8000_0007:
		// Only the invariant TSC would be left. It is a promise that holds within one host: a guest that doesn't get it
		// takes its time from kvmclock, which is carried over.
		c.Eax, c.Ebx, c.Ecx, c.Edx = 0, 0, 0, 0
	case 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006, 0x8000_0008, 0x8000_001d, 0x8000_001e,
		0x8000_0021:
	default:
		return false
	}
	return true
}

const (
	// Leaf 1 ECX: what is not virtualized, or cannot be carried: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, PDCM.
	leaf1ECXHidden = 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<15
	// What the in-kernel local APIC adds to any CPU, and that there is a hypervisor.
	leaf1ECXX2APIC      = 1 << 21
	leaf1ECXTSCDeadline = 1 << 24
	leaf1ECXHypervisor  = 1 << 31

	leaf6ARAT = 1 << 2 // the local APIC's timer never stops

	// Leaf 7 EBX: SGX, both kinds of resource director, processor trace.
	leaf7EBXHidden = 1<<2 | 1<<12 | 1<<15 | 1<<25
	// ECX: WAITPKG (a host MSR bounds the wait), key locker (hidden key), bus-lock detect, ENQCMD, SGX launch control, PKS.
	leaf7ECXHidden = 1<<5 | 1<<23 | 1<<24 | 1<<29 | 1<<30 | 1<<31
	// EDX: PCONFIG, architectural LBR, AMX (BF16, TILE, INT8: KVM needs a permission, and their leaves are hidden), core
	// capabilities.
	leaf7EDXHidden = 1<<18 | 1<<19 | 1<<22 | 1<<24 | 1<<25 | 1<<30
	// Subleaf 1 EDX: AVX10, whose leaf is hidden.
	leaf71EDXHidden = 1 << 19

	// Leaf 0x80000001 ECX: SVM (nested state is not carried), IBS, SKINIT, WDT, LWP, all performance counters, MWAITX.
	extended1Hidden = 1<<2 | 1<<10 | 1<<12 | 1<<13 | 1<<15 | 1<<23 | 1<<24 | 1<<27 | 1<<28 | 1<<29

	// KVM's features that write nothing behind our back: the clock (both MSR pairs, stable bit), no I/O delay, unhalting by
	// hypercall, sending IPIs, polling control, yielding. Hidden: steal time and the TLB flush that builds on it,
	// asynchronous page faults, PV EOI, and those which need the VMM's cooperation.
	kvmFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<7 | 1<<11 | 1<<12 | 1<<13 | 1<<24
)

func maskLeaf1(c *kvm.CPUIDEntry) {
	c.Ecx &^= leaf1ECXHidden
	c.Ecx |= leaf1ECXX2APIC | leaf1ECXHypervisor
	c.Ebx &= 0x0000_ff00 // the CLFLUSH line; the rest is the place in the topology
}

func maskLeaf7(c *kvm.CPUIDEntry) {
	switch c.Index {
	case 0:
		c.Ebx &^= leaf7EBXHidden
		c.Ecx &^= leaf7ECXHidden
		c.Edx &^= leaf7EDXHidden
	case 1:
		c.Edx &^= leaf71EDXHidden
	}
}

// withTopologyLeaf adds the entries of leaf 0xB (extended topology), which forCPU fills in.
func (b Baseline) withTopologyLeaf() Baseline {
	for _, c := range b {
		if c.Function == 0 && c.Eax < 0xb {
			return b // a CPU from before there was one
		}
	}
	for index := range uint32(3) {
		b = append(b, kvm.CPUIDEntry{Function: 0xb, Index: index, Flags: kvm.CPUIDSignificantIndex})
	}
	return b
}

// forCPU is the table of one vCPU: one socket, one thread per core, the APIC ID being the number of the core.
func (b Baseline) forCPU(id, cpus int) []kvm.CPUIDEntry {
	table := make([]kvm.CPUIDEntry, len(b))
	copy(table, b)
	apicID := uint32(id)
	width := uint32(bits.Len(uint(cpus - 1))) // bits of the APIC ID that tell cores apart
	for i := range table {
		c := &table[i]
		switch c.Function {
		case 1:
			c.Ebx |= apicID<<24 | min(uint32(1)<<width, 0xff)<<16 // APIC IDs in this package
			if cpus > 1 {
				c.Edx |= 1 << 28 // HTT: that number counts
			}
		case 4:
			topologyLeaf4(c, width)
		case 0xb:
			topologyLeafB(c, apicID, width, uint32(cpus))
		case 0x8000_0008:
			c.Ecx = width<<12 | uint32(cpus-1)
		case 0x8000_001d:
			if c.Eax&0x1f != 0 {
				c.Eax = c.Eax&^(0xfff<<14) | sharing(c, width)<<14
			}
		case 0x8000_001e:
			c.Eax, c.Ebx, c.Ecx = apicID, apicID&0xff, 0
		}
	}
	return table
}

// topologyLeaf4 says who shares a cache (Intel SDM vol. 2A, CPUID leaf 4).
func topologyLeaf4(c *kvm.CPUIDEntry, width uint32) {
	if c.Eax&0x1f == 0 {
		return // no more caches
	}
	cores := min(uint32(1)<<width-1, 0x3f)
	c.Eax = c.Eax&0x3fff | sharing(c, width)<<14 | cores<<26
}

// sharing is one less than the number of APIC IDs that share a cache: level 3 belongs to the package, others to a core.
func sharing(c *kvm.CPUIDEntry, width uint32) uint32 {
	if level := c.Eax >> 5 & 7; level < 3 {
		return 0
	}
	return 1<<width - 1
}

// topologyLeafB describes a level of the APIC ID (Intel SDM vol. 2A, CPUID leaf 0BH): threads, cores, then the end.
func topologyLeafB(c *kvm.CPUIDEntry, apicID, width, cpus uint32) {
	const levelThreads, levelCores = 1, 2
	c.Edx = apicID
	switch c.Index {
	case 0:
		c.Eax, c.Ebx, c.Ecx = 0, 1, levelThreads<<8|c.Index
	case 1:
		c.Eax, c.Ebx, c.Ecx = width, cpus, levelCores<<8|c.Index
	default:
		c.Eax, c.Ebx, c.Ecx = 0, 0, c.Index
	}
}
