package history

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/pollux-ha/pollux/guests/register"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scene builds operations with times in milliseconds.
type scene struct {
	h        *History
	sequence uint64
}

func newScene() *scene { return &scene{h: New()} }

func (s *scene) op(stream uint64, call, ret int, r register.Request, value uint64, status register.Status) register.Operation {
	s.sequence++
	return register.Operation{
		Stream: stream, Request: r, Known: true,
		Answer: register.Answer{Op: r.Op, Register: r.Register, Value: value, Status: status, Sequence: s.sequence, Boot: 1},
		Call:   s.h.start.Add(time.Duration(call) * time.Millisecond), Return: s.h.start.Add(time.Duration(ret) * time.Millisecond),
	}
}

func (s *scene) write(stream uint64, call, ret int, value uint64) {
	s.h.Record(s.op(stream, call, ret, register.Request{Op: register.Write, Value: value}, value, register.OK))
}

func (s *scene) read(stream uint64, call, ret int, value uint64) {
	s.h.Record(s.op(stream, call, ret, register.Request{Op: register.Read}, value, register.OK))
}

func (s *scene) cas(stream uint64, call, ret int, expect, value, is uint64, status register.Status) {
	s.h.Record(s.op(stream, call, ret, register.Request{Op: register.CompareAndSwap, Expect: expect, Value: value}, is, status))
}

func (s *scene) unknown(stream uint64, call, ret int, r register.Request) {
	op := s.op(stream, call, ret, r, 0, register.OK)
	s.sequence-- // it was never numbered
	op.Known, op.Answer, op.UDP = false, register.Answer{}, true
	s.h.Record(op)
}

func TestVerdicts(t *testing.T) {
	write := func(v uint64) register.Request { return register.Request{Op: register.Write, Value: v} }
	tests := []struct {
		name                  string
		play                  func(s *scene)
		lost                  uint64
		linearizable, allGood bool
	}{
		{"nothing", func(*scene) {}, 0, true, true},
		{"in order", func(s *scene) { s.write(1, 0, 1, 5); s.read(1, 2, 3, 5); s.write(2, 4, 5, 6); s.read(1, 6, 7, 6) }, 0, true, true},
		{"forgotten write", func(s *scene) { s.write(1, 0, 1, 5); s.write(1, 2, 3, 6); s.read(1, 4, 5, 5) }, 1, false, false},
		{"forgotten first write", func(s *scene) { s.write(1, 0, 1, 5); s.read(1, 4, 5, 0) }, 1, false, false},
		{"a lost write counts once", func(s *scene) { s.write(1, 0, 1, 5); s.read(1, 4, 5, 0); s.read(1, 6, 7, 0) }, 1, false, false},
		{"overlapping writes in either order", func(s *scene) { s.write(1, 0, 9, 5); s.write(2, 1, 8, 6); s.read(1, 10, 11, 5) }, 0, true, true},
		{"overlapping writes, both orders seen", func(s *scene) {
			s.write(1, 0, 9, 5)
			s.write(2, 1, 8, 6)
			s.read(1, 10, 11, 5)
			s.read(2, 12, 13, 6)
		}, 0, false, false},
		{"value from nowhere", func(s *scene) { s.write(1, 0, 1, 5); s.read(1, 2, 3, 99) }, 1, false, false},
		{"a server that was used before", func(s *scene) { s.read(1, 0, 1, 44); s.write(1, 2, 3, 5); s.read(1, 4, 5, 5) }, 0, true, true},
		{"unknown write happened", func(s *scene) { s.write(1, 0, 1, 5); s.unknown(1, 2, 3, write(6)); s.read(1, 4, 5, 6) }, 0, true, true},
		{"unknown write did not happen", func(s *scene) { s.write(1, 0, 1, 5); s.unknown(1, 2, 3, write(6)); s.read(1, 4, 5, 5) }, 0, true, true},
		{"unknown write happened late", func(s *scene) {
			s.write(1, 0, 1, 5)
			s.unknown(1, 2, 3, write(6))
			s.read(1, 4, 5, 5)
			s.read(1, 6, 7, 6)
		}, 0, true, true},
		{"unknown write undone", func(s *scene) {
			s.write(1, 0, 1, 5)
			s.unknown(1, 2, 3, write(6))
			s.read(1, 4, 5, 6)
			s.read(1, 6, 7, 5)
		}, 0, false, false},
		{"seen before it was asked for", func(s *scene) { s.write(1, 0, 1, 5); s.read(2, 2, 3, 6); s.unknown(1, 4, 5, write(6)) }, 0, false, false},
		{"swap", func(s *scene) { s.write(1, 0, 1, 5); s.cas(1, 2, 3, 5, 6, 6, register.OK); s.read(1, 4, 5, 6) }, 0, true, true},
		{"swap that must have failed", func(s *scene) { s.write(1, 0, 1, 5); s.cas(1, 2, 3, 4, 6, 6, register.OK) }, 1, false, false},
		{"swap that must have worked", func(s *scene) { s.write(1, 0, 1, 5); s.cas(1, 2, 3, 5, 6, 5, register.Mismatch) }, 0, false, false},
		{"unknown swap of a value that only an unknown write made", func(s *scene) {
			s.unknown(1, 0, 1, write(7))
			s.unknown(2, 2, 3, register.Request{Op: register.CompareAndSwap, Expect: 7, Value: 8})
			s.read(3, 4, 5, 8)
		}, 0, true, true},
		{"unknown swap whose value nobody made", func(s *scene) {
			s.write(1, 0, 1, 5)
			s.unknown(2, 2, 3, register.Request{Op: register.CompareAndSwap, Expect: 7, Value: 8})
			s.read(3, 4, 5, 8)
		}, 0, false, false},
		{"same value written twice, once unknown", func(s *scene) {
			s.write(1, 0, 1, 5)
			s.unknown(2, 2, 3, write(5))
			s.write(1, 4, 5, 6)
			s.read(1, 6, 7, 5)
		}, 0, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			tt.play(s)
			r := s.h.Check(t.Context())
			if r.LostWrites != tt.lost {
				t.Errorf("%d lost writes, want %d", r.LostWrites, tt.lost)
			}
			if got := len(r.NotLinearizable) == 0; got != tt.linearizable || len(r.Undecided) > 0 {
				t.Errorf("linearizable: %v, want %v; undecided %v", got, tt.linearizable, r.Undecided)
			}
			if err := r.Err(); (err == nil) != tt.allGood {
				t.Errorf("verdict: %v", err)
			}
			if r.Err() != nil && len(r.Findings) == 0 {
				t.Error("a bad verdict without words")
			}
		})
	}
}

func TestSequenceViolations(t *testing.T) {
	tests := []struct {
		name    string
		numbers []uint64 // of reads one after the other, on streams 1, 2, 1, 2, …
		want    uint64
	}{
		{"rising", []uint64{1, 2, 5, 9}, 0},
		{"repeated on another stream", []uint64{7, 7}, 1},
		{"back on the same stream", []uint64{7, 8, 6}, 1},
		{"back on another stream", []uint64{7, 6}, 1},
		{"a whole stretch again", []uint64{1, 2, 3, 4, 3, 4, 5}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			for i, n := range tt.numbers {
				s.sequence = n - 1
				s.read(uint64(1+i%2), 10*i, 10*i+5, 0)
			}
			if r := s.h.Check(t.Context()); r.SequenceViolations != tt.want {
				t.Errorf("%d violations, want %d: %v", r.SequenceViolations, tt.want, r.Findings)
			}
		})
	}
	t.Run("concurrent answers in any order", func(t *testing.T) {
		s := newScene()
		s.sequence = 9
		s.read(1, 0, 20, 0)
		s.sequence = 4
		s.read(2, 1, 21, 0)
		if r := s.h.Check(t.Context()); r.SequenceViolations != 0 {
			t.Errorf("%v", r.Findings)
		}
	})
}

func TestRestartAndReset(t *testing.T) {
	s := newScene()
	s.read(1, 0, 1, 0)
	op := s.op(1, 2, 3, register.Request{Op: register.Read}, 0, register.OK)
	op.Answer.Boot = 2
	s.h.Record(op)
	broken := s.op(1, 4, 5, register.Request{Op: register.Read}, 0, register.OK)
	broken.Known, broken.Reset = false, true
	s.h.Record(broken)
	err := s.h.Check(t.Context()).Err()
	if err == nil || !strings.Contains(err.Error(), "1 connection resets") || !strings.Contains(err.Error(), "1 answers of a restarted server") {
		t.Errorf("verdict: %v", err)
	}
}

func TestGaps(t *testing.T) {
	s := newScene()
	s.h.Begin(1, s.h.start)
	s.read(1, 0, 10, 0)
	s.h.Begin(1, s.h.start.Add(10*time.Millisecond))
	s.read(1, 10, 310, 0)
	s.read(1, 310, 320, 0)
	st := s.h.snapshot(s.h.start.Add(330 * time.Millisecond))
	if st.LongestGap != 300*time.Millisecond || !st.LongestGapFrom.Equal(s.h.start.Add(10*time.Millisecond)) {
		t.Errorf("gap %v from %v", st.LongestGap, st.LongestGapFrom.Sub(s.h.start))
	}
	// A request that is out counts, from the last answer on, however many attempts it took.
	s.h.Begin(1, s.h.start.Add(330*time.Millisecond))
	s.unknown(1, 330, 600, register.Request{Op: register.Read})
	if st = s.h.snapshot(s.h.start.Add(820 * time.Millisecond)); st.LongestGap != 500*time.Millisecond {
		t.Errorf("gap %v while waiting", st.LongestGap)
	}
	before, after := s.h.AnswersBefore(s.h.start.Add(310 * time.Millisecond))
	if before != 1 || after != 2 {
		t.Errorf("%d answers before, %d after", before, after)
	}
}

func TestCheckWithoutTime(t *testing.T) {
	s := newScene()
	s.write(1, 0, 1, 5)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := s.h.Check(ctx); len(r.Undecided) != 1 || r.Err() == nil {
		t.Errorf("undecided %v, verdict %v", r.Undecided, r.Err())
	}
}

// simulated plays clients against a register that is really one, with answers that get lost; forget makes it forget the
// last writes at some moment, as a takeover from too old a state would.
func simulated(rng *rand.Rand, operations int, forget bool) *History {
	s := newScene()
	var value, older uint64
	clock := 0
	next := uint64(1)
	free := [3]int{}
	for i := range operations {
		c := rng.IntN(len(free))
		call := max(free[c], clock-rng.IntN(4))
		clock = max(clock, call) + 1 // the moment of the operation
		if rng.IntN(10) == 0 {
			clock += 10 // a pause, in which the history can be cut
			call = clock - 1
		}
		ret := clock + rng.IntN(4)
		free[c] = ret + 1
		r := register.Request{Op: register.Op(1 + rng.IntN(3)), Value: next, Expect: value}
		next++
		if rng.IntN(3) == 0 {
			r.Expect = older
		}
		happens := rng.IntN(20) > 0
		answered := rng.IntN(20) > 0 && happens
		if forget && i == operations/2 {
			value = next + 1<<32 // a value from before the history, which is read before it is gone
			r.Op, happens, answered = register.Read, true, true
		}
		probe := register.Operation{Known: false, Request: r}
		status := register.OK
		if r.Op == register.CompareAndSwap && value != r.Expect {
			status = register.Mismatch
		}
		if happens {
			before := value
			if _, value = step(value, &probe); value != before {
				older = before
			}
		}
		if answered {
			s.h.Record(s.op(uint64(c), call, ret, r, value, status))
		} else {
			s.unknown(uint64(c), call, ret, r)
		}
	}
	// Somebody looks at last.
	s.h.Record(s.op(9, clock+10, clock+11, register.Request{Op: register.Read}, value, register.OK))
	return s.h
}

func TestSimulatedHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		n := rapid.IntRange(1, 1500).Draw(rt, "operations")
		good := simulated(rand.New(rand.NewPCG(seed, 1)), n, false)
		if err := good.Check(t.Context()).Err(); err != nil {
			rt.Errorf("a real register is refused: %v", err)
		}
	})
	found := 0
	for seed := range uint64(50) {
		if r := simulated(rand.New(rand.NewPCG(seed, 2)), 400, true).Check(t.Context()); len(r.NotLinearizable) > 0 {
			found++
		}
	}
	if found != 50 {
		t.Errorf("a value from nowhere was noticed in %d of 50 histories", found)
	}
}

func TestLoadAgainstServer(t *testing.T) {
	s, err := register.Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := New()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := Load(ctx, LoadOptions{Address: s.Addr().String(), TCP: 3, UDP: 3, Pace: 200 * time.Microsecond}, h); err != nil {
		t.Fatal(err)
	}
	r := h.Check(t.Context())
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.Stats.TCPAnswers < 50 || r.Stats.UDPAnswers < 50 || r.Stats.Answers > s.Sequence() || r.Stats.P50 <= 0 {
		t.Errorf("stats %+v", r.Stats)
	}
	if r.Stats.Answers+10 < s.Sequence() {
		t.Errorf("%d answers recorded, %d given", r.Stats.Answers, s.Sequence())
	}
}

func TestLoadRefusals(t *testing.T) {
	for _, o := range []LoadOptions{{}, {TCP: -1, UDP: 2}, {TCP: 200, UDP: 100}, {Address: "127.0.0.1:1", TCP: 1}} {
		if err := Load(t.Context(), o, New()); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
