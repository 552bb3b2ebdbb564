package vmm

// bootFiles is what Boot reads.
type bootFiles struct {
	kernel, initrd, cmdline string
}
