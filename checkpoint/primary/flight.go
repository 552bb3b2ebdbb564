package primary

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// errAck is wrapped by the error for an acknowledgement that can't be.
var errAck = errors.New("acknowledgement of what was not sent")

// flight keeps track of what was sent and is not acknowledged. An epoch's entry is made before its last frame is sent.
type flight struct {
	changed chan struct{} // one value after each acknowledgement

	mu        sync.Mutex
	captured  uint64 // newest
	committed uint64 // newest; 0 before the first of the session
	entries   [inFlight + 1]sent
	round     uint64 // acknowledged
	rounds    sent   // the round under way
}

// sent is what an acknowledgement is compared with.
type sent struct {
	epoch    uint64
	digest   uint32
	captured time.Time
	sent     time.Time
}

// inFlight is the number of epochs that may be captured and not acknowledged.
const inFlight = areas

func newFlight() *flight { return &flight{changed: make(chan struct{}, 1)} }

func (f *flight) signal() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *flight) noteCaptured(epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.captured == 0 {
		f.committed = epoch - 1 // what came before belonged to another session
	}
	f.captured = epoch
}

func (f *flight) noteSent(s sent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries[s.epoch%uint64(len(f.entries))] = s
}

func (f *flight) noteRound(s sent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rounds = s
}

// outstanding is the number of epochs captured and not acknowledged.
func (f *flight) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(f.captured - f.committed)
}

func (f *flight) roundDone(round uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.round >= round
}

// acked checks an acknowledgement and notes it. It reports whether it is that of a checkpoint.
func (f *flight) acked(epoch uint64, a wire.Ack, stats *checkpoint.Stats) (bool, error) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.signal()
	want := f.rounds
	if a.Kind == wire.Checkpoint {
		want = f.entries[epoch%uint64(len(f.entries))]
		if f.captured == 0 || epoch != f.committed+1 {
			return false, fmt.Errorf("%w: checkpoint %d, next is %d", errAck, epoch, f.committed+1)
		}
	}
	if want.epoch != epoch || want.digest != a.Digest || epoch == 0 {
		return false, fmt.Errorf("%w: %v %d with digest %#x, sent was %d with %#x", errAck, a.Kind, epoch, a.Digest, want.epoch, want.digest)
	}
	if a.Kind == wire.Round {
		f.round = epoch
		return false, nil
	}
	f.committed = epoch
	stats.Record(checkpoint.PhaseAck, now.Sub(want.sent))
	stats.Record(checkpoint.PhaseCommit, now.Sub(want.captured))
	stats.Record(checkpoint.PhaseReceive, time.Duration(a.ReceiveNanos))
	if a.ApplyNanos > 0 {
		stats.Record(checkpoint.PhaseApply, time.Duration(a.ApplyNanos))
	}
	stats.Commit(epoch)
	return true, nil
}
