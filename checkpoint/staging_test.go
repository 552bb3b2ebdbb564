package checkpoint_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

func TestArea(t *testing.T) {
	a, err := checkpoint.NewArea(5)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	pages := func(v byte, n int) []byte { return bytes.Repeat([]byte{v}, n*wire.PageSize) }
	if n := a.Copy(3, pages(1, 2)); n != 2 || a.Full() || a.Pages() != 2 {
		t.Fatalf("copied %d, full %t, %d pages", n, a.Full(), a.Pages())
	}
	if n := a.Copy(9, pages(2, 4)); n != 3 || !a.Full() {
		t.Fatalf("copied %d of 4 into room for 3, full %t", n, a.Full())
	}
	if n := a.Copy(20, pages(3, 1)); n != 0 {
		t.Fatalf("copied %d into a full area", n)
	}
	type run struct {
		first uint64
		data  []byte
	}
	var got []run
	for first, data := range a.Runs {
		got = append(got, run{first, data})
	}
	if len(got) != 2 || got[0].first != 3 || got[1].first != 9 || !bytes.Equal(got[0].data, pages(1, 2)) || !bytes.Equal(got[1].data, pages(2, 3)) {
		t.Errorf("%d runs, not what was copied", len(got))
	}
	a.Reset()
	for range a.Runs {
		t.Error("a run in an empty area")
	}
}

func TestStats(t *testing.T) {
	s := checkpoint.NewStats()
	for i := range 100 {
		s.Record(checkpoint.PhasePause, time.Duration(i+1)*time.Microsecond)
	}
	s.Record(checkpoint.PhaseAck, -time.Second)
	s.Record(checkpoint.PhaseAck, 24*time.Hour)
	s.Update(func(c *checkpoint.Counts) { c.Captured = 7 })
	s.Commit(5)
	got := s.Snapshot()
	pause := got.Phases["pause"]
	if pause.Count != 100 || pause.P50 < 48 || pause.P50 > 52 || pause.P99 < 97 || pause.Max < 99 || pause.Max > 102 {
		t.Errorf("pause %+v", pause)
	}
	if got.Lag != 2 || got.Commits != 1 || got.Committed != 5 || got.Phases["ack"].Count != 2 {
		t.Errorf("%+v", got)
	}
	if _, ok := got.Phases["apply"]; ok {
		t.Error("a phase that never was")
	}
	n := testing.AllocsPerRun(100, func() {
		s.Record(checkpoint.PhaseKick, time.Millisecond)
		s.Commit(6)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	s.Reset()
	if got := s.Snapshot(); len(got.Phases) != 0 || got.Commits == 0 {
		t.Errorf("after a reset: %+v", got)
	}
}
