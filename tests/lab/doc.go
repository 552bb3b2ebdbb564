// Package lab runs a pair of hosts on one machine: host-a, host-b, a witness and a client, in networks of their own, with real
// power loss. It is what `pollux lab` and `make demo` are made of, and what the lab-tier tests stand on.
//
// # What a lab is
//
// Everything of a lab lives in its own network namespaces (named pollux-<id>-…, id from the state directory) and never touches the
// host's network. The namespace pollux-<id>-lab holds one bridge per network:
//
//	manage  10.76.0.0/24  the lab reaches its nodes here, and hosts reach the witness
//	client  10.77.0.0/24  where guests and clients are
//	link1   10.78.0.0/24  checkpoint link
//	link2   10.79.0.0/24  checkpoint link
//
// Nodes come in two kinds. A namespace node is a tree of processes in a network, mount and PID namespace of its own: killing its
// first process kills everything in it at once. An emulated node is QEMU in software emulation with a stock kernel: a whole host with
// its own KVM, which dies like a real one when QEMU is killed. On hardware KVM the hosts are namespace nodes, elsewhere emulated
// ones (Choose); the witness and the client are namespace nodes always.
//
// The first process of every node is NodeMain: it sets the node up and serves the agent (exec, files, connections, heartbeat)
// on the manage network.
//
// # What must stay true
//
//   - Nothing outside of the lab's own namespaces, its state directory and its processes is changed.
//   - Down needs nothing but the state directory's path: it removes what it finds in the lab's namespaces, so it also cleans up
//     after a lab that crashed half-way, and a PID in a stale state file is never trusted.
//   - A power loss cuts the node's interfaces before its processes die, so that no FIN or RST escapes, as with a real one.
//   - A node that dies without having been killed by the lab is a *NodeDied, with a cause read from its console, and never looks
//     like a failure, or a success, of Pollux.
//
// Users of the package: cmd/pollux (thin commands), tests/e2e, tests/chaos. The package knows nothing of checkpointing; only
// the demo knows Pollux's command line.
package lab
