package role

import (
	"os"
	"strings"
	"testing"
)

// guardTests names, for each guard, what notices that it is missing: the
// simulation, or the transcripts that then end otherwise. docs/roles.md shows
// this list to people; TestGuards keeps both honest.
var guardTests = [guardCount]struct {
	name       string
	simulation bool
	transcript string // in testdata
}{
	guardStale:     {"stale", true, "nonsense_primary"},
	guardSettled:   {"settled", true, "unknown_swap_lands_late"},
	guardStall:     {"stall", true, "asleep"},
	guardFresh:     {"fresh", false, "asleep_twice"},
	guardFreshTwin: {"fresh-twin", false, "asleep_while_arbiter_is_down"},
	guardGrant:     {"grant", false, "no_arbiter"},
	guardAddressee: {"addressee", false, "nonsense_primary"},
	guardSequence:  {"sequence", false, "nonsense_primary"},

	guardHoldFinal:   {"hold-final", true, "start_of_protection"},
	guardAckFinal:    {"ack-final", true, "start_of_protection"},
	guardReverting:   {"reverting", false, "switchover_unanswered"},
	guardHoldUnpair:  {"hold-unpair", true, "primary_loses_the_tie"},
	guardAckSession:  {"ack-session", false, "nonsense_primary"},
	guardAckBound:    {"ack-bound", false, "nonsense_primary"},
	guardFence:       {"fence", true, "primary_loses_the_tie"},
	guardLastAcked:   {"last-acked", false, "switchover"},
	guardAwake:       {"awake", false, "asleep_in_a_switchover"},
	guardAskFirst:    {"ask-first", false, "switchover_refused"},
	guardReverted:    {"reverted", false, "switchover_unanswered"},
	guardHandRevert:  {"hand-revert", false, "switchover_unanswered_lands"},
	guardDuel:        {"duel", false, "duel"},
	guardGrey:        {"grey", true, "grey"},
	guardTwinDropped: {"twin-dropped", false, "twin_has_lost_its_copy"},
	guardOffer:       {"offer", false, "nonsense_primary"},

	guardTwinAcks:    {"twin-acks", false, "late_checkpoint"},
	guardClaimAcks:   {"claim-acks", true, "standby_loses_primary"},
	guardTwinSession: {"twin-session", false, "nonsense_twin"},
	guardTwinEpoch:   {"twin-epoch", false, "nonsense_twin"},
	guardEntitled:    {"entitled", true, "unknown_swap_never_lands"},
	guardGranted:     {"granted", true, "standby_loses_the_tie"},
	guardPollLost:    {"poll-lost", false, "primary_dies_in_pairing"},
	guardActGone:     {"active-gone", true, "faults"},
	guardHasCopy:     {"has-copy", false, "nonsense_twin"},
	guardDropStale:   {"drop-stale", true, "standby_loses_the_tie"},
	guardJoinKnown:   {"join-known", false, "nonsense_twin"},
	guardBooted:      {"booted", true, "operator"},
	guardOrphan:      {"orphan", true, "primary_restarts"},
	guardWitness:     {"witness", true, "primary_restarts"},
	guardEcho:        {"echo", false, "both_hosts_lost"},
	guardFault:       {"fault", true, "faults"},
	guardForceOnce:   {"force-once", false, "operator"},
}

// mutantRuns bounds the search for a run that notices a missing guard.
const mutantRuns = 6000

// TestGuards removes one guard of the state machine at a time and checks that
// somebody notices.
func TestGuards(t *testing.T) {
	page, err := os.ReadFile("../../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	for g := guardNone + 1; g < guardCount; g++ {
		by := guardTests[g]
		t.Run(by.name, func(t *testing.T) {
			if !strings.Contains(string(page), "| `"+by.name+"` |") {
				t.Errorf("docs/roles.md doesn't list guard %q", by.name)
			}
			path := "testdata/" + by.transcript
			if retell(t, path, g) == retell(t, path, guardNone) {
				t.Errorf("%s is the same without this guard", path)
			}
			if by.simulation {
				noticed(t, g)
			}
		})
	}
}

// noticed fails t unless the simulation finds a violation without g.
func noticed(t *testing.T, g guard) {
	t.Helper()
	r := newRig(simConfig(Arbitrated), g)
	for seed := uint64(1); seed <= mutantRuns; seed++ {
		if v := r.simulate(seed); v != "" {
			t.Logf("seed %d: %s", seed, v)
			return
		}
	}
	t.Errorf("%d runs of the simulation don't notice", mutantRuns)
}

// TestWeakArbiter shows why a swap compares the revision: with an arbiter that
// compares only generation, active and standby, a delayed swap lands in a later
// world that looks the same.
func TestWeakArbiter(t *testing.T) {
	r := newRig(simConfig(Arbitrated), guardNone)
	r.weak = true
	for seed := uint64(1); seed <= 20*mutantRuns; seed++ {
		if v := r.simulate(seed); v != "" {
			t.Logf("seed %d: %s", seed, v)
			return
		}
	}
	t.Error("the simulation doesn't notice")
}
