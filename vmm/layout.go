package vmm

import "github.com/pollux-ha/pollux/devices/guestmem"

// The guest physical address space, beside RAM: guestmem keeps [HoleStart, HoleEnd) free.
const (
	// pciMMIOBase and pciMMIOSize are where PCI BARs live: the lower half of the hole.
	pciMMIOBase = guestmem.HoleStart
	pciMMIOSize = 0x2000_0000

	// identityMapAddress and tssAddress are what Intel's KVM needs to itself in order to run real mode: one page and three,
	// between the local APIC and the top of 4 GiB, where no RAM and no device is.
	identityMapAddress = 0xfffb_c000
	tssAddress         = 0xfffb_d000
)

// maxCPUs keeps every APIC ID below 255, so that no guest needs x2APIC with interrupt remapping.
const maxCPUs = 254
