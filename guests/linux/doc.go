// Package linux makes Linux guests out of nothing but a stock kernel: an initramfs with one static Go program in it, no
// distribution and no busybox.
//
// [Gokrazy] and [Debian] find the two kernels that everything here is tested with, [BuildInit] compiles the program of
// the directory init, and [BuildInitramfs] packs it, with the kernel's modules that a virtual machine needs. The guest
// takes its network from the kernel command line (pollux.ip, pollux.gw), serves the register protocol on port 7777, says
// "pollux-guest: ready" on its console, and has a small shell there. With pollux.dirty it also changes memory at a steady
// rate and notices if any of it is lost.
//
// The lab, the demo, the commands and tests call it; it depends on nothing else of Pollux but the register protocol.
//
// What must stay true: the same inputs give the same bytes, what is written has been read back, and a cached kernel is
// used only if its checksum is right.
package linux
