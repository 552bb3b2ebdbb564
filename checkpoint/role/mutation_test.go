package role

import (
	"os"
	"testing"
)

func TestMutProbe(t *testing.T) {
	if os.Getenv("MUT") == "" {
		t.Skip()
	}
	for _, g := range []guard{guardStall, guardFresh, guardAckFinal, guardLastAcked} {
		r := newRig(simConfig(Arbitrated), g)
		r.focus = []moveKind{moveSleep, movePeerLost}
		found := ""
		var seed uint64
		for seed = 1; seed <= 20000; seed++ {
			if v := r.simulate(seed); v != "" {
				found = v
				break
			}
		}
		t.Logf("%d: seed %d %s", g, seed, found)
	}
}
