package role

// Epoch numbers checkpoints: epoch n is the guest's execution between the
// captures n-1 and n, checkpoint n is the state at its end. Zero is before the
// first. Numbers only grow while a member runs; a member that takes over from
// n goes on with n+1.
type Epoch uint64

// EventKind says what an Event is about, and which of its fields count.
type EventKind uint8

// The events. Below, a function builds each, and says what it means.
const (
	EventStart        EventKind = iota + 1 // the first event of a machine
	EventTick                              // time has passed
	EventPeerUp                            // the other host is connected
	EventPeerLost                          // the other host doesn't answer on any link
	EventStatus                            // the other host's role has arrived
	EventSyncReady                         // active: all but the final round has been copied
	EventSyncFailed                        // active: copying can't go on
	EventCaptured                          // active: an epoch has ended
	EventAcked                             // active: the twin holds an epoch
	EventCompleted                         // twin: a whole checkpoint has arrived
	EventObserved                          // the arbiter told what the record is
	EventUnanswered                        // a request to the arbiter has no known result
	EventBufferFull                        // active: the bound of held output is reached
	EventGuestStopped                      // active: the guest has powered off
	EventFault                             // the copy of the VM on this host is unusable
	EventRepaired                          // the cause of a fault, or of a fence, is gone
	EventSwitchover                        // operator: let the twin run the guest
	EventFence                             // operator: give up the copy on this host
	EventForce                             // operator: run here, whatever may be lost
)

// Event is one input of a Machine. It is a plain value, so that passing one
// allocates nothing.
type Event struct {
	Kind    EventKind
	Ticks   uint64 // Tick
	Epoch   Epoch  // Captured, Acked, Completed
	Session uint64 // SyncReady, SyncFailed, Acked, Completed
	Request uint64 // Observed, Unanswered
	Asked   bool   // Captured
	Create  bool   // Start
	Boot    bool   // Start
	Force   bool   // Fence
	Peer    Member // PeerUp
	Record  Record // Observed
	Status  Status // Status
}

// Start is the first event. create allows this node to make the VM's first
// record and boot the guest; boot allows it to boot the guest from its disks
// again when the record names this node as active and no copy is left. A host
// that only stands by gives neither, or boot alone when it has the VM's
// configuration.
func Start(create, boot bool) Event {
	return Event{Kind: EventStart, Create: create, Boot: boot}
}

// Tick says that n ticks have passed since the last one, n counted from a
// clock that goes on while the process is stopped. After a stop, deliver it
// before anything that waited in sockets and queues: a large n is how a machine
// learns that it has been asleep and may have been replaced.
func Tick(n uint64) Event { return Event{Kind: EventTick, Ticks: n} }

// PeerUp says that a connection to the other host stands and that both ends
// have told their Member to each other on it. Every earlier connection is
// over; nothing that was sent on one may be delivered after this.
func PeerUp(peer Member) Event { return Event{Kind: EventPeerUp, Peer: peer} }

// PeerLost says that the other host is out of reach on every link, or silent
// for too long. It may be wrong; being wrong costs speed, not safety.
func PeerLost() Event { return Event{Kind: EventPeerLost} }

// StatusReceived delivers the other host's Status.
func StatusReceived(s Status) Event { return Event{Kind: EventStatus, Status: s} }

// SyncReady says that the copy begun by StartSync has got so far that the
// final round fits into the pause budget.
func SyncReady(session uint64) Event { return Event{Kind: EventSyncReady, Session: session} }

// SyncFailed says that the copy begun by StartSync, or the shipping of
// checkpoints after it, can't go on although the peer is connected.
func SyncFailed(session uint64) Event { return Event{Kind: EventSyncFailed, Session: session} }

// Captured says that epoch n has ended and will be shipped. asked is true for
// the capture that the action Capture asked for. Rounds of a sync before the
// final one are not epochs and are not reported.
func Captured(n Epoch, asked bool) Event {
	return Event{Kind: EventCaptured, Epoch: n, Asked: asked}
}

// Acked says that the twin of the given session holds checkpoint n and all
// before it.
func Acked(session uint64, n Epoch) Event {
	return Event{Kind: EventAcked, Session: session, Epoch: n}
}

// Completed says that checkpoint n of the given session has arrived whole, has
// been verified, and can be taken over from. The first one that is reported is
// the final round of the sync.
func Completed(session uint64, n Epoch) Event {
	return Event{Kind: EventCompleted, Session: session, Epoch: n}
}

// Observed is the answer to a Swap or a Read: the record as it is now. After a
// swap that succeeded it is the record that was written, otherwise the one
// that was found in its place; the zero Record if there is none. Reads must be
// linearizable. A watch may deliver further ones with request zero.
func Observed(request uint64, r Record) Event {
	return Event{Kind: EventObserved, Request: request, Record: r}
}

// Unanswered says that the caller has given up waiting for a Swap or Read. A
// swap may have succeeded all the same, or succeed later. When the answer
// arrives after all, it may still be delivered as Observed.
func Unanswered(request uint64) Event { return Event{Kind: EventUnanswered, Request: request} }

// BufferFull says that the bound of held output is reached.
func BufferFull() Event { return Event{Kind: EventBufferFull} }

// GuestStopped says that the guest has powered off by itself. The machine
// gives up protection first, so that the twin doesn't bring the guest back.
func GuestStopped() Event { return Event{Kind: EventGuestStopped} }

// Fault says that the copy on this host can't be used any more: the VMM failed,
// memory or disk is broken, a takeover couldn't be carried out.
func Fault() Event { return Event{Kind: EventFault} }

// Repaired says that this host can hold a copy again.
func Repaired() Event { return Event{Kind: EventRepaired} }

// Switchover asks the active node to hand the guest to its twin.
func Switchover() Event { return Event{Kind: EventSwitchover} }

// Fence asks this node to give up its copy and to stay out until Repaired.
// Without force it is refused when the copy is the only one.
func Fence(force bool) Event { return Event{Kind: EventFence, Force: force} }

// Force asks this node to run the guest although the protocol doesn't allow
// it: from the newest complete checkpoint if it holds one, otherwise from its
// disks. What only the other host holds is lost.
func Force() Event { return Event{Kind: EventForce} }

var eventNames = [...]string{
	EventStart: "start", EventTick: "tick", EventPeerUp: "peer-up", EventPeerLost: "peer-lost",
	EventStatus: "status", EventSyncReady: "sync-ready", EventSyncFailed: "sync-failed",
	EventCaptured: "captured", EventAcked: "acked", EventCompleted: "completed",
	EventObserved: "observed", EventUnanswered: "unanswered", EventBufferFull: "buffer-full",
	EventGuestStopped: "guest-stopped", EventFault: "fault", EventRepaired: "repaired",
	EventSwitchover: "switchover", EventFence: "fence", EventForce: "force",
}

func (k EventKind) String() string { return nameOf(eventNames[:], int(k)) }

func nameOf(names []string, i int) string {
	if i < len(names) && names[i] != "" {
		return names[i]
	}
	return "unknown"
}
