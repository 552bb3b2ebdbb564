package member

import (
	"runtime"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/primary"
)

// TestEpochsDoNotAllocate counts the allocations of both members, and of all that lies between them, TLS included, over many epochs.
func TestEpochsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector allocates: counting without a bound")
	}
	p := newPair(t, func(a, _ *Config, ha, _ *fakeHost) {
		ha.change = func(f *fakeMachine) { f.idle, f.pace = true, 50*time.Millisecond }
		a.Pace = primary.Pace{Interval: 200 * time.Microsecond, MinInterval: 200 * time.Microsecond, IdleMax: 200 * time.Microsecond}
	})
	p.awaitProtected()
	commits := func() uint64 { return p.a.stats.Snapshot().Commits }
	p.await("warming up", func() bool { return commits() > 200 })
	var before, after runtime.MemStats
	first := commits()
	runtime.ReadMemStats(&before)
	time.Sleep(time.Second)
	runtime.ReadMemStats(&after)
	n := commits() - first
	if n < 100 {
		t.Fatalf("only %d epochs in a second", n)
	}
	per := float64(after.Mallocs-before.Mallocs) / float64(n)
	t.Logf("%d epochs, %.2f allocations and %.0f bytes each", n, per, float64(after.TotalAlloc-before.TotalAlloc)/float64(n))
	// crypto/tls makes one small object per record that it reads: one for an epoch's data, one for its acknowledgement. Statuses,
	// heartbeats, ticks and the test itself add a little now and then. Anything per epoch of our own would come on top.
	if per > 2.9 && !raceEnabled {
		t.Errorf("%.2f allocations per epoch", per)
	}
}
