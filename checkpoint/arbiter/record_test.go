package arbiter

import (
	"errors"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint/role"
)

func TestDecode(t *testing.T) {
	good := role.Record{
		Revision: 9, Generation: 4,
		Active: role.Member{Node: "a", Incarnation: 1<<64 - 1}, Standby: role.Member{Node: "b", Incarnation: 2},
	}
	s, err := encode(good)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode([]byte(s)); err != nil || got != good {
		t.Errorf("got %v %v, want %v", got, err, good)
	}
	for _, bad := range []string{
		"", "null", "{}", "[]", `{"generation":0}`, `{"revision":1,"generation":1,"active":{},"standby":{}}`,
		`{"revision":1,"generation":-1,"active":{"node":"a","incarnation":1},"standby":{}}`, " " + s, s + s, s[:len(s)-1], s[:len(s)-1] + `,"x":1}`,
	} {
		if got, err := decode([]byte(bad)); !errors.Is(err, ErrRecord) {
			t.Errorf("%q: %v %v", bad, got, err)
		}
	}
}
