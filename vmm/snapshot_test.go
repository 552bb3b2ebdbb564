package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// takeSnapshot runs a counting guest for a moment, and returns the file and what the guest's device knew.
func takeSnapshot(t testing.TB, cpus int) (path string, next uint32) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "snapshot")
	m, ports := newTestMachine(t, testConfig(t, cpus))
	program(t, m, progSequence, nil)
	stop := running(t, m)
	eventually(t, "guest counts", func() bool { return counter(t, m, guestData) > 100 })
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := m.Snapshot(path); err != nil {
		t.Fatal(err)
	}
	stop()
	return path, ports.next.Load()
}

func TestSnapshotRestores(t *testing.T) {
	path, next := takeSnapshot(t, 1)
	d, err := DescribeSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	if d.CPUs != 1 || d.MemoryBytes != guestMemory || !slices.Contains(d.Devices, "serial0") {
		t.Errorf("description %+v", d)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 {
		t.Errorf("the file of a nearly empty guest: %v bytes, %v", info.Size(), err)
	}
	cfg := testConfig(t, 1)
	cfg.Baseline = d.Baseline
	m, ports := newTestMachine(t, cfg)
	if err := m.Restore(path); err != nil {
		t.Fatal(err)
	}
	ports.next.Store(next)
	start := counter(t, m, guestData)
	stop := running(t, m)
	eventually(t, "guest counts on", func() bool { return counter(t, m, guestData) > start+100 })
	stop()
	if n := ports.errors.Load(); n != 0 {
		t.Errorf("%d values were repeated or lost", n)
	}
}

// Every way of damaging a snapshot is refused, and named a damaged snapshot.
func TestDamagedSnapshots(t *testing.T) {
	path, _ := takeSnapshot(t, 1)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sections := sectionOffsets(t, whole)
	flip := func(at int) []byte {
		b := slices.Clone(whole)
		b[at] ^= 0x10
		return b
	}
	last := sections[len(sections)-1]
	cases := map[string][]byte{
		"empty":                  {},
		"something else":         []byte(strings.Repeat("not a snapshot\n", 100)),
		"header cut":             whole[:10],
		"only a header":          whole[:snapshotHeaderSize],
		"version":                flip(8),
		"header checksum":        flip(12),
		"no end":                 whole[:last],
		"end cut":                whole[:len(whole)-1],
		"half":                   whole[:len(whole)/2],
		"trailing byte":          append(slices.Clone(whole), 0),
		"section header":         flip(sections[1] + 1),
		"section length":         flip(sections[1] + 8),
		"description":            flip(sections[0] + sectionHeaderSize + 20),
		"state":                  flip(sections[1] + sectionHeaderSize + 100),
		"page":                   flip(sections[2] + sectionHeaderSize + pagesOverhead + 5),
		"page address":           flip(sections[2] + sectionHeaderSize + 2),
		"end":                    flip(last + sectionHeaderSize),
		"pages left out":         slices.Concat(whole[:sections[2]], whole[sections[3]:]),
		"pages twice":            slices.Concat(whole[:sections[3]], whole[sections[2]:]),
		"state left out":         slices.Concat(whole[:sections[1]], whole[sections[2]:]),
		"newer version":          resealHeader(whole, snapshotVersion+1),
		"description of nothing": resealSection(whole, sections[0], func(p []byte) { clear(p) }),
		"pages outside of memory": resealSection(whole, sections[2], func(p []byte) {
			binary.LittleEndian.PutUint64(p, guestmem.HoleStart)
		}),
		"pages at an odd address": resealSection(whole, sections[2], func(p []byte) { p[0] = 1 }),
	}
	for _, at := range []int{sections[0], sections[2], last} {
		for i := range sectionHeaderSize {
			cases[fmt.Sprintf("byte %d", at+i)] = flip(at + i)
		}
	}
	m, _ := newTestMachine(t, testConfig(t, 1)) // stays fresh: its state is not touched before the file is known to be whole
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			damaged := filepath.Join(t.TempDir(), "damaged")
			if err := os.WriteFile(damaged, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.Restore(damaged); !errors.Is(err, ErrSnapshot) {
				t.Errorf("Restore: %v", err)
			}
		})
	}
}

// A state whose sections are whole but whose values are not is refused by who reads them, and never panics.
func TestDamagedState(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 1))
	state, err := m.SaveState(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(state); n += 997 {
		fresh, _ := newTestMachine(t, testConfig(t, 1))
		if err := fresh.LoadState(state[:n]); err == nil {
			t.Errorf("a state cut to %d of %d bytes was loaded", n, len(state))
		}
	}
	if err := m.LoadState(state); err != nil {
		t.Error(err)
	}
	if err := m.LoadState(state); !errors.Is(err, ErrNotFresh) {
		t.Errorf("a second LoadState: %v", err)
	}
}

func TestSnapshotOfAnotherMachine(t *testing.T) {
	path, _ := takeSnapshot(t, 1)
	for _, c := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"memory", "128 MiB of memory here, 64 MiB there", func(c *Config) { c.MemoryBytes = 128 << 20 }},
		{"cpus", "2 CPUs here, 1 there", func(c *Config) { c.CPUs = 2 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, 1)
			c.change(&cfg)
			m, _ := newTestMachine(t, cfg)
			err := m.Restore(path)
			if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Restore: %v, want %q", err, c.want)
			}
		})
	}
}

// sectionOffsets finds the sections of a good file.
func sectionOffsets(t testing.TB, file []byte) []int {
	t.Helper()
	var offsets []int
	for at := snapshotHeaderSize; at < len(file); {
		offsets = append(offsets, at)
		at += sectionHeaderSize + int(binary.LittleEndian.Uint64(file[at+8:]))
	}
	if len(offsets) < 5 {
		t.Fatalf("%d sections, want at least 5", len(offsets))
	}
	return offsets
}

// resealHeader changes the version, with a good checksum.
func resealHeader(file []byte, version uint32) []byte {
	b := slices.Clone(file)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[:12], castagnoli))
	return b
}

// resealSection changes a section's payload, with good checksums of the section.
func resealSection(file []byte, at int, change func(payload []byte)) []byte {
	b := slices.Clone(file)
	payload := b[at+sectionHeaderSize:][:binary.LittleEndian.Uint64(b[at+8:])]
	change(payload)
	binary.LittleEndian.PutUint32(b[at+16:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(b[at+20:], crc32.Checksum(b[at:at+20], castagnoli))
	return b
}
