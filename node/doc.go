// Package node puts a machine together on this host out of what the host has (taps and bridges, files, a console, a
// control socket) and runs it, alone or as one of a protected pair.
//
// Here live the operator's description of a machine (Spec), the Guest built from it (vmm machine, network ports, disks, console),
// and the Host through which checkpoint/member builds guests when the role machine says so. cmd calls it; it calls checkpoint, vmm,
// devices and netbuffer, and is the only place that knows all of them.
//
// What must stay true: everything by which the outside can observe the guest (network and console) goes through a netbuffer that the
// role machine's actions hold, release and fence; nothing here lets a byte past it. Whatever was opened is closed on
// every path.
package node
