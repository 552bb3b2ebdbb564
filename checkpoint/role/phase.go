package role

// Phase is where a Machine stands. docs/roles.md has the diagram.
type Phase uint8

// The phases.
const (
	// PhaseNew: Start has not been seen.
	PhaseNew Phase = iota
	// PhaseStarting: the record is being read.
	PhaseStarting
	// PhaseOrphan: the record names this node as active and another as
	// standby, but nothing runs here: the twin may hold the only copy.
	PhaseOrphan
	// PhaseBooting: wants the right to boot the guest from disks.
	PhaseBooting
	// PhaseFree: holds nothing and offers itself as a twin.
	PhaseFree
	// PhaseFailed: holds nothing and stays out until repaired.
	PhaseFailed
	// PhaseStopped: the guest has powered off here.
	PhaseStopped

	// PhaseSolo: runs the guest; no twin; output is not held.
	PhaseSolo
	// PhaseSyncing: as solo, while memory and disks are copied to the peer.
	PhaseSyncing
	// PhaseClosing: all output is held, the final round is on its way.
	PhaseClosing
	// PhasePairing: the peer holds the final round; the swap that entitles it
	// is on its way. Output leaves as epochs are acknowledged.
	PhasePairing
	// PhaseProtected: output leaves as epochs are acknowledged.
	PhaseProtected
	// PhaseUnpairing: the twin counts as lost; the swap that disentitles it is
	// on its way. Output is held.
	PhaseUnpairing
	// PhaseHandover: switchover; the last checkpoint is on its way.
	PhaseHandover
	// PhaseHanding: switchover; the swap in the twin's favour is on its way.
	PhaseHanding
	// PhaseReverting: the arbiter didn't answer to that swap in time; the
	// guest goes on, and the swap is being made impossible. Output is held.
	PhaseReverting

	// PhaseReceiving: a twin whose copy is not complete.
	PhaseReceiving
	// PhaseSynced: a twin with a complete copy, not known to be entitled.
	PhaseSynced
	// PhaseStandby: a twin that the record entitles to take over.
	PhaseStandby
	// PhaseClaiming: the active node counts as lost; the swap that makes this
	// node active is on its way. Nothing is acknowledged any more.
	PhaseClaiming
)

var phaseNames = [...]string{
	PhaseNew: "new", PhaseStarting: "starting", PhaseOrphan: "orphan", PhaseBooting: "booting",
	PhaseFree: "free", PhaseFailed: "failed", PhaseStopped: "stopped", PhaseSolo: "solo",
	PhaseSyncing: "syncing", PhaseClosing: "closing", PhasePairing: "pairing",
	PhaseProtected: "protected", PhaseUnpairing: "unpairing", PhaseHandover: "handover",
	PhaseHanding: "handing", PhaseReverting: "reverting", PhaseReceiving: "receiving",
	PhaseSynced: "synced", PhaseStandby: "standby", PhaseClaiming: "claiming",
}

func (p Phase) String() string { return nameOf(phaseNames[:], int(p)) }

func (p Phase) valid() bool { return int(p) < len(phaseNames) }

// Active reports whether a node in phase p has a guest that may run.
func (p Phase) Active() bool { return p >= PhaseSolo && p <= PhaseReverting }

// Twin reports whether a node in phase p holds or receives a copy.
func (p Phase) Twin() bool { return p >= PhaseReceiving && p <= PhaseClaiming }

// Holds reports whether a node in phase p has a usable copy of the guest,
// running or not.
func (p Phase) Holds() bool { return p.Active() || p >= PhaseSynced }

// paired reports whether an active node in phase p has shipped, or is about to
// ship, a checkpoint that the twin could take over from.
func (p Phase) paired() bool { return p >= PhaseClosing && p <= PhaseReverting && p != PhaseUnpairing }
