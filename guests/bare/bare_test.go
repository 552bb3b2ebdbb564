package bare_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirty(t *testing.T) {
	for _, tt := range []struct{ name, options string }{
		{"counter", "pattern=counter"},
		{"random scattered", "pattern=random order=scattered"},
		{"zero", "pattern=zero rate=0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := boot(t, "mode=dirty ws=700 rate=10000 pages=5000 "+tt.options)
			g.line("ready")
			last := g.finish()
			// All but the first round is checked before it is overwritten.
			if last["dirtied"] < 5000 || last["verified"] < 5000-700 {
				t.Errorf("last line %v, want 5000 pages dirtied and nearly all of them verified", last)
			}
		})
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	g := boot(t, "mode=dirty ws=100 rate=3000 count=3")
	last := g.finish()
	// The rate holds on the guest's clock; a late tick costs at most the tenth of a second that the pacer catches up.
	want := last["ms"] * 3
	if got := last["dirtied"]; got > want+3 || got < want*8/10 {
		t.Errorf("%d pages dirtied in %d ms, want about %d", got, last["ms"], want)
	}
	if n := last["tick"]; n != 3 {
		t.Errorf("%d progress lines, want 3", n)
	}
}

// TestLostWriteIsSeen leaves a write out, as a bad checkpoint would, and expects the check to say so.
func TestLostWriteIsSeen(t *testing.T) {
	for _, pattern := range []string{"counter", "random", "zero"} {
		t.Run(pattern, func(t *testing.T) {
			t.Parallel()
			g := boot(t, "mode=dirty ws=200 rate=0 lose=555 pattern="+pattern)
			line := g.line("panic:")
			if !strings.Contains(line, "memory: page 154 ") {
				t.Errorf("%q does not name page 154", line)
			}
			g.waitEnd()
		})
	}
}

func TestBadOptions(t *testing.T) {
	for _, tt := range []struct{ options, want string }{
		{"mode=dirty rte=5", "option rte=5 is not known"},
		{"mode=dirty+fly", "option mode=fly: want idle,"},
		{"ip=10.0.0.256/24", "option ip=10.0.0.256/24: want an address"},
		{"mode=dirty ws=99999999", "99999999 pages of memory are wanted,"},
		{"mode=serve", "mode=serve needs a virtio-net device"},
		{"mode=block", "mode=block needs a virtio-blk device"},
		{"quiet", "option quiet: want key=value"},
	} {
		t.Run(tt.options, func(t *testing.T) {
			t.Parallel()
			g := boot(t, tt.options)
			if line := g.line("panic:"); !strings.Contains(line, tt.want) {
				t.Errorf("%q does not say %q", line, tt.want)
			}
			g.waitEnd()
		})
	}
}

func TestComputeAndIdle(t *testing.T) {
	t.Parallel()
	last := boot(t, "mode=idle+compute count=2").finish()
	if last["computed"] == 0 || last["irqs"] < 50 {
		t.Errorf("last line %v, want computation and 100 interrupts a second", last)
	}
}

func TestBlock(t *testing.T) {
	t.Parallel()
	const blocks, size = 600, 4096
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, make([]byte, (blocks+10)*size), 0o644); err != nil {
		t.Fatal(err)
	}
	last := boot(t, "mode=block blocks=600 depth=16 flush=50 rounds=2 seed=9", diskArgs(file)...).finish()
	if last["blocks_written"] != 2*blocks || last["blocks_verified"] != 2*blocks || last["flushes"] < 24 {
		t.Errorf("last line %v, want 2 rounds of 600 blocks written and verified, and 24 flushes", last)
	}

	disk, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks + 10 {
		block := disk[i*size:]
		word := func(n int) uint64 { return binary.LittleEndian.Uint64(block[8*n:]) }
		written := string(block[:8]) == "PLXBLOCK" && word(1) == 9 && word(2) == uint64(i) && word(3) == 2
		if written != (i < blocks) {
			t.Fatalf("block %d starts with % x", i, block[:32])
		}
	}

	// A later start carries on, and is cut off in the middle of a round.
	g := boot(t, "mode=block blocks=600 round=3 blockrate=1000 seed=9", diskArgs(file)...)
	for counters(t, g.line("tick="))["blocks_written"] == 0 {
	}
	g.kill()
	g = boot(t, "mode=block disk=check blocks=600 rounds=1 seed=9", diskArgs(file)...)
	if got := g.line("disk: checked"); !strings.Contains(got, " valid=600 ") || strings.Contains(got, "lowest=1 ") {
		t.Errorf("check after a power loss says %q", got)
	}
	g.finish()
	if err := os.WriteFile(file, disk, 0o644); err != nil {
		t.Fatal(err)
	}

	g = boot(t, "mode=block disk=check blocks=600 rounds=1 seed=9", diskArgs(file)...)
	const want = "disk: checked blocks=600 valid=600 unwritten=0 lowest=2 highest=2"
	if got := g.line("disk: checked"); got != want {
		t.Errorf("check says %q, want %q", got, want)
	}
	g.finish()

	disk[77*size+2000] ^= 4
	if err := os.WriteFile(file, disk, 0o644); err != nil {
		t.Fatal(err)
	}
	g = boot(t, "mode=block disk=check blocks=600 seed=9", diskArgs(file)...)
	if got := g.line("panic:"); !strings.Contains(got, "block 77 of round 2 is torn or altered at byte 2000") {
		t.Errorf("a flipped bit: %q", got)
	}
}

func TestBlockPolled(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	last := boot(t, "mode=block+dirty irq=poll blocks=256 rounds=1", diskArgs(file)...).finish()
	if last["blocks_verified"] != 256 {
		t.Errorf("last line %v, want 256 blocks verified", last)
	}
	if err := os.Truncate(file, 1<<19); err != nil {
		t.Fatal(err)
	}
	g := boot(t, "mode=block blocks=256", diskArgs(file)...)
	if got := g.line("panic:"); !strings.Contains(got, "the disk has 128 blocks") {
		t.Errorf("a small disk: %q", got)
	}
}
