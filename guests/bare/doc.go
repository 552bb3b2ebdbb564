// Package bare builds the bare-metal test guest: a PVH ELF in C and assembly (src/) that needs no operating system, boots
// in a fraction of a second and does measurable, self-checking work by its command line.
//
// It is what machine-tier tests and benchmarks run, because it runs on any /dev/kvm. A paravirtual one executes only ring
// 3 at full speed and interprets ring 0 slowly and incompletely, so the guest enters ring 3 at once and stays there: its
// drivers reach ports through an all-zero I/O bitmap and registers through user mappings, and only the interrupt stubs of
// trap.S run in ring 0. It never executes INT or SYSCALL, and idles by a HLT that faults. All of that is right on
// hardware too, and under other VMMs that boot PVH (QEMU's -kernel).
//
// # Platform
//
// PVH start info of version 1 with a memory map; 8259 and 8254 (100 Hz on IRQ 0), local APIC in xAPIC mode, 16550 at 0x3F8,
// PCI configuration at 0xCF8, ACPI PM timer at 0x608 (calibrates the TSC; the tick does where there is none), PM1a_CNT
// at 0x604, pvpanic at 0x505. One CPU is used. Memory BARs that nobody has placed are put into 0xC0000000 to 0xDFFFFFFF.
//
// # Command line
//
// Words key=value, separated by spaces. One that isn't understood is a panic that names it.
//
//	mode=M[+M...]   idle (default), dirty, serve, block, compute
//	seed=N          seeds contents, the boot number and a missing MAC (1)
//	irq=msix|poll   how virtio devices tell of their answers; poll never sleeps, and is also the
//	                fallback when a device has no MSI-X (msix)
//
//	dirty: writes pages at a pace, and panics when one does not hold what was last written to it
//	ws=N            working set in pages of 4096 bytes (1024)
//	rate=N          pages written a second, 0 as many as the CPU can (1000)
//	checkrate=N     pages checked a second, besides each one that is about to be written (1000)
//	pattern=P       counter: a few words a page; random: all of it, incompressible; zero: all of it,
//	                every second round zeroes (counter)
//	order=O         linear, or scattered over the working set (linear)
//	lose=N          leaves out the N-th write, to prove that the check sees it
//
//	serve: ARP, ICMP echo, and the protocol of package register over UDP, on the first virtio-net
//	ip=A/PREFIX     own address (10.0.0.2/24)
//	gw=A            a gateway to greet by ARP (none)
//	port=N          (7777)
//
//	block: writes, flushes, reads back and compares blocks of 4096 bytes on the first virtio-blk
//	blocks=N        (1024)
//	blockrate=N     requests a second, 0 unlimited (0)
//	depth=N         requests in flight, up to 16 (4)
//	flush=N         a flush after every N writes besides the one that ends a round, 0 none (64)
//	round=N         the first round; one more than the highest that check found carries on (1)
//	disk=write|check  check instead reads once what an earlier start left: every block whole, no two
//	                more than a round apart (write)
//
//	compute: counts turns of a register-only loop
//
//	Limits; whichever is reached first powers the machine off (none):
//	count=N         progress lines      pages=N   pages written
//	answers=N       register answers    rounds=N  rounds of block, or checks finished
//
// # Console
//
// Lines end in CR LF. Before "ready" come one line that starts with "bare: " and one for each kind of work that has devices
// or memory ("dirty: ", "net: ", "disk: "). Then, once a second:
//
//	tick=N ms=N [dirtied=N verified=N]
//	    [answers=N echoes=N arps=N frames_in=N frames_out=N dropped=N gateway=none|unknown|known]
//	    [blocks_written=N flushes=N blocks_verified=N rounds=N] [computed=N] irqs=N
//
// all on one line, counters since the start, the groups of the modes that run. It ends with a last such line and "done"
// before a power-off, or with "panic: " and the reason, after which bit 0 of the pvpanic port is set. With disk=check, a
// line "disk: checked blocks=N valid=N unwritten=N lowest=ROUND highest=ROUND" tells the outcome.
//
// The guest's clock moves only forward, whatever the TSC does: it may be paused, saved, restored and moved at any point.
package bare
