package role

import (
	"errors"
	"strings"
	"testing"
)

func sampleStatus() Status {
	return Status{
		From: Member{Node: "alpha", Incarnation: 3}, To: Member{Node: "beta", Incarnation: 1 << 63},
		Seq: 7, Heard: 6, Phase: PhaseProtected, Session: 2, Epoch: 1000,
		Record: Record{
			Revision: 5, Generation: 2,
			Active: Member{Node: "alpha", Incarnation: 3}, Standby: Member{Node: "beta", Incarnation: 1 << 63},
		},
	}
}

func TestStatusRoundTrip(t *testing.T) {
	none := sampleStatus()
	none.Record = Record{}
	long := sampleStatus()
	long.Ask = true
	long.From.Node = Node(strings.Repeat("x", maxNode))
	for _, want := range []Status{sampleStatus(), none, long} {
		got, err := ParseStatus(want.Append(nil))
		if err != nil {
			t.Fatalf("%v: %v", want, err)
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestParseStatusRefuses(t *testing.T) {
	good := sampleStatus().Append(nil)
	change := func(f func(*Status)) []byte {
		s := sampleStatus()
		f(&s)
		return s.Append(nil)
	}
	version := append([]byte{statusVersion + 1}, good[1:]...)
	tests := map[string][]byte{
		"nothing":             nil,
		"another version":     version,
		"a cut member":        good[:len(good)-1],
		"no members":          good[:3+6*8],
		"a byte too many":     append(good[:len(good):len(good)], 0),
		"an unknown phase":    change(func(s *Status) { s.Phase = PhaseClaiming + 1 }),
		"an unknown flag":     append([]byte{statusVersion, 0, 2}, good[3:]...),
		"no sender":           change(func(s *Status) { s.From = Member{} }),
		"no receiver":         change(func(s *Status) { s.To.Incarnation = 0 }),
		"no revision":         change(func(s *Status) { s.Record.Revision = 0 }),
		"generation too high": change(func(s *Status) { s.Record.Generation = 9 }),
		"nobody active":       change(func(s *Status) { s.Record.Active = Member{} }),
		"one node twice":      change(func(s *Status) { s.Record.Standby.Node = "alpha" }),
		"nameless standby":    change(func(s *Status) { s.Record.Standby.Node = "" }),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if s, err := ParseStatus(b); !errors.Is(err, ErrStatus) {
				t.Errorf("got %v, %v, want ErrStatus", s, err)
			}
		})
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(sampleStatus().Append(nil))
	f.Add(Status{From: Member{Node: "a", Incarnation: 1}, To: Member{Node: "b", Incarnation: 1}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStatus(b)
		if err != nil {
			return
		}
		if again := s.Append(nil); string(again) != string(b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

// FuzzMachine feeds a standby whatever a broken or lying peer might say: it
// must neither panic nor run the guest without the arbiter's word.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, sampleStatus().Append(nil))
	f.Fuzz(func(t *testing.T, script, status []byte) {
		cfg := simConfig(Arbitrated)
		cfg.Self = Member{Node: "beta", Incarnation: 1 << 63}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		m.Step(Start(false, false))
		s, err := ParseStatus(status)
		peer := Member{Node: "alpha", Incarnation: 3}
		if err == nil {
			peer = s.From
		}
		for _, b := range script {
			n := uint64(b >> 4)
			ev := [...]Event{
				Tick(n), PeerUp(peer), PeerLost(), StatusReceived(s), SyncReady(n), SyncFailed(n),
				Captured(Epoch(n), b&1 == 0), Acked(n, Epoch(n)), Completed(n, Epoch(n)), Unanswered(n),
				BufferFull(), GuestStopped(), Fault(), Repaired(), Switchover(), Fence(b&1 == 0),
			}[b&15]
			if s.Seq++; ev.Kind == EventStatus {
				ev.Status.Record = Record{} // what the arbiter holds is the peer's to tell, but not here
			}
			for _, a := range m.Step(ev) {
				if a.Kind == ActionTakeOver || a.Kind == ActionBoot || a.Kind == ActionRelease {
					t.Fatalf("%v after %v", a, ev.Kind)
				}
			}
		}
	})
}
