//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	// Not in /tmp, which may be a tmpfs, and that knows no O_DIRECT.
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blockCommand([]string{disk, "7", "3"}, true); err != nil {
		t.Fatal(err)
	}
	if out, err := blockCommand([]string{disk, "7", "3"}, false); err != nil || !strings.HasPrefix(out, "verified 3 MiB") {
		t.Errorf("%q, %v", out, err)
	}
	for name, args := range map[string][]string{
		"other seed": {disk, "8", "3"}, "not written": {disk, "7", "4"}, "no MiB": {disk, "7", "0"}, "no number": {disk, "x", "1"},
		"past the end": {disk, "7", "5"}, "no device": {disk + "x", "7", "1"},
	} {
		if _, err := blockCommand(args, false); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 2<<20+3*blockSize+5); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := blockCommand([]string{disk, "7", "3"}, false); err == nil || !strings.Contains(err.Error(), "at byte 2109440:") {
		t.Errorf("one altered byte: %v", err)
	}
}

func TestCommandLines(t *testing.T) {
	g := &guest{}
	file := filepath.Join(t.TempDir(), "x")
	tests := []struct {
		line, want string
		bad        bool
	}{
		{"echo a b", "a b", false},
		{"echo hello > " + file, "", false},
		{"cat " + file, "hello\n", false},
		{"nonsense", "", true},
		{"cat", "", true},
		{"uptime now", "", true},
		{"cat /no/such/file", "", true},
		{"mount a b", "", true},
		{"status", "", true},
		{"ping nowhere", "", true},
	}
	for _, tt := range tests {
		got, err := g.execute(strings.Fields(tt.line))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q: %q, %v", tt.line, got, err)
		}
	}
	for _, line := range []string{"help", "uptime", "mem", "cpus", "ls /proc/self", "mount"} {
		if got, err := g.execute(strings.Fields(line)); err != nil || got == "" {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}

func TestPowerKey(t *testing.T) {
	event := make([]byte, inputEventSize)
	event[16], event[18], event[20] = evKey, keyPower, 1
	if !isPowerKey(event) {
		t.Error("a pressed power key is not seen")
	}
	for _, at := range []int{16, 18, 20} {
		other := append([]byte{}, event...)
		other[at] = 0
		if isPowerKey(other) {
			t.Errorf("%x is taken for the power key", other)
		}
	}
}
