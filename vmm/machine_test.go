package vmm

import (
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// A vCPU that is stopped in the middle of reading a port completes the access before it counts as stopped, whatever kind
// of access it is.
func TestFreezeCompletesAccesses(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    []byte
		counter uint64
		change  func(id int, r *kvm.Regs)
	}{
		{"port", progSequence, guestData, nil},
		{"memory", progMMIO, guestData, nil},
		{"string", progString, guestData + 0x800, func(_ int, r *kvm.Regs) { r.RBP = guestData }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, ports := newTestMachine(t, testConfig(t, 1))
			program(t, m, c.code, c.change)
			running(t, m)
			eventually(t, "guest counts", func() bool { return counter(t, m, c.counter) > 0 })
			freezes := 0
			for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); freezes++ {
				if err := m.Freeze(); err != nil {
					t.Fatal(err)
				}
				before := counter(t, m, c.counter)
				if counter(t, m, c.counter) != before {
					t.Fatal("the guest runs while it is frozen")
				}
				if err := m.Thaw(); err != nil {
					t.Fatal(err)
				}
			}
			if n := ports.errors.Load(); n != 0 || freezes < 10 {
				t.Fatalf("%d accesses were repeated or lost in %d freezes", n, freezes)
			}
			t.Logf("%d freezes, %d rounds", freezes, counter(t, m, c.counter))
		})
	}
}

// A machine's state, loaded into a second machine with its memory, goes on in mid-loop, again and again.
func TestStateMovesOn(t *testing.T) {
	for _, cpus := range []int{1, 3} {
		m, ports := newTestMachine(t, testConfig(t, cpus))
		program(t, m, progSequence, nil)
		if cpus > 1 {
			program(t, m, progSpin, nil) // the sequence has one reader
		}
		stop := running(t, m)
		var saved []byte
		for hop := range 5 {
			for id := range cpus {
				data := guestData + uint64(id)*guestStride
				start := counter(t, m, data)
				eventually(t, "guest counts", func() bool { return counter(t, m, data) > start+100 })
			}
			if err := m.Freeze(); err != nil {
				t.Fatal(err)
			}
			var err error
			if saved, err = m.SaveState(saved[:0]); err != nil {
				t.Fatal(err)
			}
			next, nextPorts := newTestMachine(t, testConfig(t, cpus))
			copyMemory(next.memory, m.memory)
			nextPorts.next.Store(ports.next.Load())
			stop()
			if err := next.LoadState(saved); err != nil {
				t.Fatal(err)
			}
			if n := ports.errors.Load(); n != 0 {
				t.Fatalf("%d wrong values before hop %d", n, hop+1)
			}
			m, ports = next, nextPorts
			stop = running(t, m)
		}
		stop()
	}
}

func copyMemory(dst, src *guestmem.Memory) {
	for i, r := range src.Regions() {
		copy(dst.Regions()[i].Bytes, r.Bytes)
	}
}

// A whole pause — freeze, dirty pages, state, thaw — allocates nothing.
func TestPauseDoesNotAllocate(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 2))
	program(t, m, progSpin, nil)
	running(t, m)
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	dirty := guestmem.NewBitmap(m.memory.Frames())
	buffer := make([]byte, 0, 1<<20)
	if n := testing.AllocsPerRun(50, func() {
		freeze(t, m)
		dirty.Clear()
		collect(t, m, dirty)
		if _, err := m.SaveState(buffer); err != nil {
			t.Fatal(err)
		}
		thaw(t, m)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
