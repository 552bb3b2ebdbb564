//go:build linux

package main

import "testing"

func TestDirtierNotices(t *testing.T) {
	d, err := parseDirtier("100000:7")
	if err != nil {
		t.Fatal(err)
	}
	d.memory, d.rounds = make([]byte, 7*pageSize), make([]uint32, 7)
	for n := range 7 * 1200 { // more rounds than a page has words
		d.touch(n % 7)
	}
	if d.lost.Load() != 0 || d.written.Load() != 7*1200 {
		t.Fatalf("undisturbed: %v", d)
	}
	old := append([]byte{}, d.memory[3*pageSize:4*pageSize]...)
	d.touch(3)
	copy(d.memory[3*pageSize:], old) // as a forgotten dirty page would be
	d.touch(3)
	if d.lost.Load() != 1 {
		t.Errorf("an old page is not seen: %v", d)
	}
	d.memory[5*pageSize+8*place(d.rounds[5])]++
	d.touch(5)
	if d.lost.Load() != 2 {
		t.Errorf("an altered word is not seen: %v", d)
	}
}

func TestDirtierArguments(t *testing.T) {
	for _, bad := range []string{"", "5", "0:5", "5:0", "x:5", "5:x", "5:99999999", "-1:5"} {
		if _, err := parseDirtier(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	o, err := parseCmdline("pollux.dirty=500:1000")
	if err != nil || o.dirtier == nil || o.dirtier.rate != 500 || o.dirtier.pages != 1000 {
		t.Errorf("%+v, %v", o.dirtier, err)
	}
}
