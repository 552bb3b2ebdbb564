package checkpoint

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Phase names a part of an epoch's life that takes time.
type Phase int

// The phases of one epoch. From PhaseKick to PhaseThaw the guest stands still; together they are PhasePause.
const (
	PhaseKick    Phase = iota // vCPUs out of the guest, devices still
	PhaseState                // vCPU and device state
	PhaseDirty                // harvesting the dirty log
	PhaseCopy                 // pages into staging, and waiting for staging if the epoch is larger than it
	PhaseThaw                 // devices and vCPUs run again
	PhasePause                // all of the above
	PhaseWait                 // before the freeze: for the epoch in flight to be acknowledged, for staging to be free
	PhaseSend                 // encode and send
	PhaseAck                  // from sent to acknowledged
	PhaseCommit               // from captured to acknowledged
	PhaseReceive              // at the twin: from its first frame to verified
	PhaseApply                // at the twin: into the image
	phases
)

var phaseNames = [phases]string{
	PhaseKick: "kick", PhaseState: "state", PhaseDirty: "dirty_log", PhaseCopy: "copy", PhaseThaw: "thaw", PhasePause: "pause",
	PhaseWait: "wait", PhaseSend: "send", PhaseAck: "ack", PhaseCommit: "commit", PhaseReceive: "receive", PhaseApply: "apply",
}

// String is the phase's name, as in the status.
func (p Phase) String() string { return phaseNames[p] }

// Stats gathers what happens to epochs. It may be used by several goroutines. Recording does not allocate.
type Stats struct {
	mu         sync.Mutex
	histograms [phases]*hdrhistogram.Histogram
	counts     Counts
	second     int64  // of the process's clock, of the rate that is being counted
	commits    uint64 // in that second
	rate       uint64 // commits in the last full second
	start      time.Time
}

// Counts are plain numbers of a side's epochs.
type Counts struct {
	Session    uint64 `json:"session"`     // of the sync that they belong to
	Captured   uint64 `json:"captured"`    // newest epoch captured (active) or received whole (twin)
	Committed  uint64 `json:"committed"`   // newest epoch that the twin holds
	Commits    uint64 `json:"commits"`     // number of them since the start
	DirtyPages uint64 `json:"dirty_pages"` // of the last epoch
	StateBytes uint64 `json:"state_bytes"` // of the last epoch
	Pages      uint64 `json:"pages"`       // since the start
	ZeroPages  uint64 `json:"zero_pages"`  // of them
	Rounds     uint64 `json:"rounds"`      // of pre-copy, since the start
	Oversized  uint64 `json:"oversized"`   // epochs that were larger than staging
}

const longest = int64(10 * time.Minute)

// NewStats returns empty Stats.
func NewStats() *Stats {
	s := &Stats{start: time.Now()}
	for i := range s.histograms {
		s.histograms[i] = hdrhistogram.New(1, longest, 2)
	}
	return s
}

// Record adds a duration.
func (s *Stats) Record(p Phase, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Within bounds by construction, so no error.
	_ = s.histograms[p].RecordValue(min(max(int64(d), 0), longest))
}

// Update changes the counts.
func (s *Stats) Update(f func(*Counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.counts)
}

// Commit notes that the twin holds epoch n.
func (s *Stats) Commit(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	s.commits++
	s.counts.Commits++
	s.counts.Committed = n
}

// turn closes the second that is being counted if it is over; the caller holds mu.
func (s *Stats) turn() {
	now := int64(time.Since(s.start) / time.Second)
	switch now - s.second {
	case 0:
		return
	case 1:
		s.rate = s.commits
	default:
		s.rate = 0
	}
	s.second, s.commits = now, 0
}

// Summary is a histogram's essence, in microseconds.
type Summary struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	Max   float64 `json:"max_us"`
}

// Snapshot is what Stats knew at one moment.
type Snapshot struct {
	Counts
	Rate   uint64             `json:"epochs_per_second"` // commits in the last full second
	Lag    uint64             `json:"lag"`               // epochs captured and not acknowledged
	Phases map[string]Summary `json:"phases"`
}

// Snapshot returns what has been recorded so far.
func (s *Stats) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	out := Snapshot{Counts: s.counts, Rate: s.rate, Phases: make(map[string]Summary, phases)}
	if s.counts.Captured > s.counts.Committed {
		out.Lag = s.counts.Captured - s.counts.Committed
	}
	const us = 1e3
	for p, h := range s.histograms {
		if h.TotalCount() == 0 {
			continue
		}
		out.Phases[Phase(p).String()] = Summary{
			Count: h.TotalCount(), Mean: h.Mean() / us, P50: float64(h.ValueAtQuantile(50)) / us,
			P90: float64(h.ValueAtQuantile(90)) / us, P99: float64(h.ValueAtQuantile(99)) / us, Max: float64(h.Max()) / us,
		}
	}
	return out
}

// Reset forgets the durations, not the counts.
func (s *Stats) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.histograms {
		h.Reset()
	}
}
