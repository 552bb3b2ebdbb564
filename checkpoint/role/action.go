package role

import "fmt"

// ActionKind says what an Action asks for, and which of its fields count.
type ActionKind uint8

// The actions, each with its ordering duty. All of them are carried out in the
// order of Step's result.
const (
	// ActionHold: from now on no output leaves except by Release and
	// ReleaseAll. It must have taken effect before the next action is begun,
	// because what follows (a capture, a swap) relies on it.
	ActionHold ActionKind = iota + 1
	// ActionRelease: the held output of all epochs up to Epoch leaves, in
	// order; later epochs stay held. May be carried out late, never early.
	ActionRelease
	// ActionReleaseAll: all held output leaves, in order, and new output is
	// not held any more.
	ActionReleaseAll
	// ActionSend: send Status to the peer. May be lost; it is repeated.
	ActionSend
	// ActionAck: tell the peer that checkpoint Epoch of Session is held here.
	// Must not be sent before the checkpoint is complete and verified.
	ActionAck
	// ActionSwap: ask the arbiter to replace the record Old, all of it, by
	// New; a zero Old means that no record exists. Begin it only after all
	// actions before it have taken effect. Answer with Observed or Unanswered
	// and the same Request.
	ActionSwap
	// ActionRead: ask the arbiter for the record (linearizable read, begun
	// after this action was returned). Answer as for ActionSwap.
	ActionRead
	// ActionStartSync: begin to copy memory and disks to the peer, while the
	// guest runs, as Session. Answer with SyncReady or SyncFailed.
	ActionStartSync
	// ActionStopSync: stop copying or shipping Session, and forget what was
	// on the way. Nothing of Session may be sent after this.
	ActionStopSync
	// ActionCapture: freeze, capture a checkpoint and ship it as the next
	// epoch of Session; answer with Captured(n, true) before anything of n is
	// acknowledged. Thaw the guest afterwards unless Frozen is set. From the
	// first Capture of a session on, the caller captures further epochs at its
	// own pace, but none after a Frozen one until Resume.
	ActionCapture
	// ActionPause: stop the vCPUs, keep everything. Captures go on, or what
	// is held could never leave.
	ActionPause
	// ActionResume: the reverse of Pause and of a Frozen capture.
	ActionResume
	// ActionBeginStandby: drop every older copy and get ready to receive
	// Session. Answer each checkpoint with Completed.
	ActionBeginStandby
	// ActionDropCopy: forget the copy. It must not be used again.
	ActionDropCopy
	// ActionTakeOver: run the guest from checkpoint Epoch, in Generation.
	// Nothing that arrived after Epoch is used. Report failure as Fault.
	ActionTakeOver
	// ActionBoot: boot the guest from this host's disks, in Generation.
	// Report failure as Fault.
	ActionBoot
	// ActionDestroy: destroy the guest and drop all held output. On return
	// not one more frame, disk write or console byte may leave.
	ActionDestroy
	// ActionRaise: tell the operator Notice; Record, Generation and Epoch say
	// what is known.
	ActionRaise
)

// Action is one output of a Machine, a plain value.
type Action struct {
	Kind       ActionKind
	Epoch      Epoch  // Release, Ack, TakeOver, Raise
	Session    uint64 // Ack, StartSync, StopSync, Capture, BeginStandby
	Generation uint64 // TakeOver, Boot, Raise
	Request    uint64 // Swap, Read; never zero
	Frozen     bool   // Capture
	Notice     Notice // Raise
	Old, New   Record // Swap
	Record     Record // Raise: the newest record known
	Status     Status // Send
}

// Notice is something that an operator wants to know.
type Notice uint8

// The notices.
const (
	NoticeProtected        Notice = iota + 1 // active: the twin can take over from now on
	NoticeStandby                            // twin: this node can take over from now on
	NoticeUnprotected                        // active: runs without a twin
	NoticePeerLost                           // active or twin: the peer counts as lost
	NoticePeerGrey                           // active: the peer is alive but doesn't acknowledge
	NoticeTookOver                           // runs the guest from checkpoint Epoch
	NoticeBooted                             // runs the guest from its disks
	NoticeFenced                             // the copy here was destroyed: another one has the right to run, or an operator wants it
	NoticeSwitchedOver                       // the guest was handed to the twin
	NoticeSwitchoverFailed                   // it wasn't; the guest goes on here
	NoticeDropped                            // twin: the copy here is of no use any more and was dropped
	NoticeAwaitTwin                          // active by the record, but only the twin can hold the guest's state; Force would boot from disks
	NoticeAwaitOperator                      // the record, or the lack of an arbiter, allows nobody to go on without Force
	NoticeStalled                            // this node has been asleep; output waits for the arbiter
	NoticeFaulted                            // the copy here failed
	NoticeStopped                            // the guest has powered off
	NoticeForced                             // running by force; what the other host alone held is lost
	NoticeRefused                            // the operator's request doesn't fit the present role
)

var actionNames = [...]string{
	ActionHold: "hold", ActionRelease: "release", ActionReleaseAll: "release-all", ActionSend: "send",
	ActionAck: "ack", ActionSwap: "swap", ActionRead: "read", ActionStartSync: "start-sync",
	ActionStopSync: "stop-sync", ActionCapture: "capture", ActionPause: "pause", ActionResume: "resume",
	ActionBeginStandby: "begin-standby", ActionDropCopy: "drop-copy", ActionTakeOver: "take-over",
	ActionBoot: "boot", ActionDestroy: "destroy", ActionRaise: "raise",
}

var noticeNames = [...]string{
	NoticeProtected: "protected", NoticeStandby: "standby", NoticeUnprotected: "unprotected",
	NoticePeerLost: "peer lost", NoticePeerGrey: "peer grey", NoticeTookOver: "took over",
	NoticeBooted: "booted", NoticeFenced: "fenced", NoticeSwitchedOver: "switched over",
	NoticeSwitchoverFailed: "switchover failed", NoticeDropped: "copy dropped",
	NoticeAwaitTwin: "awaiting twin", NoticeAwaitOperator: "awaiting operator",
	NoticeStalled: "stalled", NoticeFaulted: "faulted", NoticeStopped: "stopped",
	NoticeForced: "forced", NoticeRefused: "refused",
}

func (k ActionKind) String() string { return nameOf(actionNames[:], int(k)) }

func (n Notice) String() string { return nameOf(noticeNames[:], int(n)) }

// String renders the action on one line, with the fields that count.
func (a Action) String() string {
	switch a.Kind {
	case ActionRelease:
		return fmt.Sprintf("release up to %d", a.Epoch)
	case ActionSend:
		return "send " + a.Status.String()
	case ActionAck:
		return fmt.Sprintf("ack %d of session %d", a.Epoch, a.Session)
	case ActionSwap:
		return fmt.Sprintf("swap #%d %v -> %v", a.Request, a.Old, a.New)
	case ActionRead:
		return fmt.Sprintf("read #%d", a.Request)
	case ActionStartSync, ActionStopSync, ActionBeginStandby:
		return fmt.Sprintf("%v session %d", a.Kind, a.Session)
	case ActionCapture:
		if a.Frozen {
			return "capture and stay frozen"
		}
		return "capture"
	case ActionTakeOver:
		return fmt.Sprintf("take over from %d in generation %d", a.Epoch, a.Generation)
	case ActionBoot:
		return fmt.Sprintf("boot in generation %d", a.Generation)
	case ActionRaise:
		return fmt.Sprintf("raise %q", a.Notice)
	default:
		return a.Kind.String()
	}
}
