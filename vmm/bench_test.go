package vmm

import (
	"errors"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// benchMachine runs a guest that writes a number of pages in a loop and never leaves the guest by itself.
func benchMachine(b *testing.B, cpus, pages int) *Machine {
	b.Helper()
	cfg := testConfig(b, cpus)
	cfg.MemoryBytes = 1 << 30
	m, _ := newTestMachine(b, cfg)
	program(b, m, progWalk, func(id int, r *kvm.Regs) {
		if id > 0 {
			r.RSI = 1
		} else {
			r.RDI, r.RSI = 512<<20, uint64(pages)
		}
	})
	running(b, m)
	eventually(b, "guest counts", func() bool { return counter(b, m, 512<<20+8) > 1 })
	return m
}

// BenchmarkFreeze is the time from the first kick to still, and from thaw to the call's return.
func BenchmarkFreeze(b *testing.B) {
	for _, cpus := range []int{1, 2, 4} {
		b.Run(map[int]string{1: "cpus=1", 2: "cpus=2", 4: "cpus=4"}[cpus], func(b *testing.B) {
			m := benchMachine(b, cpus, 1)
			var frozen, thawed time.Duration
			for b.Loop() {
				time.Sleep(500 * time.Microsecond) // let the vCPUs get into the guest
				start := time.Now()
				freeze(b, m)
				stopped := time.Now()
				thaw(b, m)
				frozen += stopped.Sub(start)
				thawed += time.Since(stopped)
			}
			b.ReportMetric(float64(frozen.Nanoseconds())/float64(b.N), "freeze-ns/op")
			b.ReportMetric(float64(thawed.Nanoseconds())/float64(b.N), "thaw-ns/op")
		})
	}
}

// BenchmarkSaveState is the cost of all state but memory.
func BenchmarkSaveState(b *testing.B) {
	m := benchMachine(b, 1, 1)
	freeze(b, m)
	buffer := make([]byte, 0, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		saved, err := m.SaveState(buffer)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(saved)))
	}
	thaw(b, m)
}

// BenchmarkLoadState is what a takeover spends on state; the machine exists before.
func BenchmarkLoadState(b *testing.B) {
	m := benchMachine(b, 1, 1)
	freeze(b, m)
	saved, err := m.SaveState(nil)
	if err != nil {
		b.Fatal(err)
	}
	thaw(b, m)
	cfg := testConfig(b, 1)
	cfg.MemoryBytes = m.memory.Size()
	for b.Loop() {
		b.StopTimer()
		twin, err := New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		err = twin.LoadState(saved)
		b.StopTimer()
		if err = errors.Join(err, twin.Close()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkCollectDirty is the cost of reading and clearing the dirty log of 1 GiB.
func BenchmarkCollectDirty(b *testing.B) {
	for _, c := range []struct {
		name  string
		pages int
	}{{"pages=1", 1}, {"pages=1000", 1000}, {"pages=10000", 10000}} {
		b.Run(c.name, func(b *testing.B) {
			m := benchMachine(b, 1, c.pages)
			if err := m.StartDirtyLog(); err != nil {
				b.Fatal(err)
			}
			dirty := guestmem.NewBitmap(m.memory.Frames())
			freeze(b, m)
			collect(b, m, dirty)
			var total time.Duration
			found := 0
			b.ReportAllocs()
			for b.Loop() {
				round := counter(b, m, 512<<20+8)
				thaw(b, m)
				for counter(b, m, 512<<20+8) < round+2 {
					time.Sleep(200 * time.Microsecond)
				}
				freeze(b, m)
				dirty.Clear()
				start := time.Now()
				collect(b, m, dirty)
				total += time.Since(start)
				found += dirty.Count()
			}
			thaw(b, m)
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "collect-ns/op")
			b.ReportMetric(float64(found)/float64(b.N), "pages/op")
		})
	}
}
