package role

// guard names one condition that the protocol needs. Every such condition in
// the code goes through need, so that the mutation check can leave out one at
// a time and see a test fail; docs/roles.md lists which.
type guard uint8

const (
	guardNone guard = iota

	guardStale     // records never go back
	guardSettled   // a read of the same revision doesn't settle a swap
	guardStall     // after a stall, hear the arbiter before releasing
	guardFresh     // and only an answer to a question asked after the stall counts
	guardFreshTwin // or a twin that stands by, if it says so after hearing of the stall
	guardGrant     // without an arbiter a twin needs an operator to take over
	guardAddressee // a status for an earlier run of this node is not for this one
	guardSequence  // statuses don't overtake each other

	guardHoldFinal   // all output is held from before the final round is captured
	guardAckFinal    // the twin is entitled only once it holds the final round
	guardReverting   // nothing is released while a handover may still succeed
	guardHoldUnpair  // output stays held while the twin may still be entitled
	guardAckSession  // acknowledgements of another session count for nothing
	guardAckBound    // nor do those of epochs that were never captured
	guardFence       // a copy that the record doesn't name is destroyed
	guardLastAcked   // the guest is handed over only after the last epoch
	guardAwake       // and only by a node that knows that it hasn't been replaced in its sleep
	guardAskFirst    // and only if the arbiter has just answered
	guardReverted    // and only a newer record says that it can't any more
	guardHandRevert  // an unanswered handover is made impossible before going on
	guardDuel        // a copy that lost to another process of its own host stays out
	guardGrey        // a twin that doesn't acknowledge is lost
	guardTwinDropped // a twin that says it has no copy is lost
	guardOffer       // a sync starts only with a peer that offers itself

	guardTwinAcks    // only a twin acknowledges
	guardClaimAcks   // and not once it has asked for the right to run
	guardTwinSession // a checkpoint of another sync isn't one of this copy
	guardTwinEpoch   // a checkpoint never goes back
	guardEntitled    // only a twin that the record names claims
	guardGranted     // only one that the record names as active takes over
	guardPollLost    // a copy whose active node is gone finds out whether it is entitled
	guardActGone     // an active node that runs nothing is lost, connected or not
	guardHasCopy     // a takeover needs a whole checkpoint
	guardDropStale   // a copy that the record doesn't name any more is dropped
	guardJoinKnown   // a twin joins only the node that the newest record names
	guardBooted      // a node boots only when the record names it for that
	guardOrphan      // a lone restart asks the twin before booting from disks
	guardWitness     // and believes only that it has no copy
	guardEcho        // if it says so after hearing that nothing runs here
	guardFault       // a failed copy is gone, whatever the role was
	guardForceOnce   // an operator's force ends when the record changes

	guardCount
)

// need returns ok, unless a test has switched the guard g off: then the
// condition counts as met.
func (m *Machine) need(g guard, ok bool) bool { return ok || m.off == g }

// on reports whether the guard g is in force, for guards that are an action
// and not a condition.
func (m *Machine) on(g guard) bool { return m.off != g }
