// Package role decides, for one VM on one host, whether this host may run the
// guest, whether the guest's output may leave, and what has to happen next. It
// is the part of Pollux that makes sure that exactly one copy survives.
//
// # What lives here
//
// Machine is a pure state machine: Step takes one Event and returns the
// Actions that the caller has to carry out. It has no I/O, clock, channel,
// goroutine, logger or random source; the same events in the same order give
// the same actions. Time is a number of ticks that the caller counts. All
// sockets, timers, netbuffers and virtual machines belong to the caller
// (checkpoint/primary and checkpoint/standby).
//
//	event.go     what goes in, and what it means
//	action.go    what comes out, with the ordering duty of each
//	phase.go     where a machine can stand
//	machine.go   New, Step and what all phases share
//	record.go    the arbiter's record and what makes a swap safe
//	arbiter.go   swaps, reads and unknown outcomes
//	active.go    the node that runs the guest
//	twin.go      the node that holds the guest's checkpoints
//	start.go     starting, booting from disks, faults and the operator
//	status.go    the one message that two nodes exchange, and its encoding
//	guard.go     the conditions that the tests leave out, one at a time
//
// # What may call it
//
// One goroutine. A Machine is not safe for concurrent use, and the slice that
// Step returns is valid until the next call of Step. Actions are carried out
// in the order of the slice, each one before the next, all of them before the
// next Step. Sends, swaps and reads are carried out by starting them: their
// results come back as events.
//
// # What must stay true
//
//	I1  no two copies release output in overlapping histories
//	I2  nothing of epoch n is released before n is committed or solo is granted
//	I3  a takeover starts from a checkpoint no older than any released output
//	I4  after any single fault, once messages flow again, exactly one copy runs
//	I5  after repair the pair is protected again
//
// The tests check these after every step of a randomised simulation and in
// every state of a small configuration. docs/roles.md argues why they hold and
// names, for each guard in the code, the test that fails without it.
package role
