package main

import (
	"io"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	const log = `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"B","Output":"boom\n"}
{"Action":"fail","Package":"p","Test":"B"}
{"Action":"output","Package":"p","Test":"C","Output":"the machine tier can't run here: no kvm\n"}
{"Action":"skip","Package":"p","Test":"C"}
{"Action":"output","Package":"p","Test":"D","Output":"not today\n"}
{"Action":"skip","Package":"p","Test":"D"}
{"Action":"fail","Package":"p","Elapsed":1}
`
	var s tally
	var out strings.Builder
	err := s.read(strings.NewReader(log), &out, true)
	if s != (tally{passed: 1, failed: 1, skipped: 2}) {
		t.Errorf("tally %+v", s)
	}
	if !strings.Contains(out.String(), "boom") {
		t.Error("the failed test's output is not shown")
	}
	if err == nil || !strings.Contains(err.Error(), "p D was skipped: not today") || strings.Contains(err.Error(), "p C") {
		t.Errorf("error %v: want D, whose skip names no tier, and not C", err)
	}
	if err := new(tally).read(strings.NewReader(log), io.Discard, false); err == nil || !strings.Contains(err.Error(), "p C") {
		t.Errorf("error %v: where the tier is required, C's skip is an error", err)
	}
}
