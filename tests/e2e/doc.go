// Package e2e holds tests of a whole protected pair on one machine: witness, primary and standby are processes of their own, the guest is
// the bare one (guests/bare) on /dev/kvm, and clients talk to it over a bridge. Faults are what they are outside: a process is
// killed, or stopped.
//
// All of it happens in a network namespace that the test binary puts itself into when it starts, and that vanishes with it. The
// processes are the test binary too, called anew with a job in its environment, so that the binary is all that is needed to run
// the tests elsewhere, such as inside an emulated host.
package e2e
