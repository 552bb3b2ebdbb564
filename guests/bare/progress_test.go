package bare_test

import (
	"maps"
	"testing"

	"github.com/pollux-ha/pollux/guests/bare"
)

func TestCounters(t *testing.T) {
	for _, tt := range []struct {
		line string
		want map[string]uint64
	}{
		{"tick=1 ms=1009 answers=3 gateway=none irqs=18446744073709551615\r\n", map[string]uint64{
			"tick": 1, "ms": 1009, "answers": 3, "irqs": 1<<64 - 1,
		}},
		{"tick=7 ms=", map[string]uint64{"tick": 7}},
		{"tick=1 cut", nil},
		{"ready", nil},
		{"", nil},
	} {
		got, ok := bare.Counters(tt.line)
		if ok != (tt.want != nil) || !maps.Equal(got, tt.want) {
			t.Errorf("%q: %v, %t, want %v", tt.line, got, ok, tt.want)
		}
	}
}
