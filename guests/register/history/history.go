package history

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/pollux-ha/pollux/guests/register"
)

// maxFindings bounds how many violations are kept in words; all are counted.
const maxFindings = 20

// maxLatency is the largest latency that the histogram tells apart, in microseconds (ten minutes).
const maxLatency = 10 * 60 * 1e6

// History is the record of all attempts of all clients. It is safe for concurrent use.
type History struct {
	start time.Time

	mu         sync.Mutex
	operations []register.Operation
	streams    map[uint64]*stream
	latency    *hdrhistogram.Histogram
	counts     counts
	boot       uint64 // of the first answer; 0 until then
	findings   []string
}

// counts is what History keeps up to date with every attempt.
type counts struct {
	answers, tcpAnswers, udpAnswers uint64
	unknown, resets                 uint64
	sequenceViolations, bootChanges uint64
	highest                         uint64
	lastAnswer                      time.Time
	gap                             time.Duration
	gapFrom                         time.Time
}

// stream is what one connection or flow has seen.
type stream struct {
	sequence uint64    // the highest one answered
	waiting  bool      // a request is out
	since    time.Time // the last answer, or the first request
}

// New starts an empty history.
func New() *History {
	return &History{
		start:   time.Now(),
		streams: make(map[uint64]*stream),
		latency: hdrhistogram.New(1, maxLatency, 3),
	}
}

// Begin implements register.Recorder.
func (h *History) Begin(id uint64, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.streams[id]
	if s == nil {
		s = &stream{since: at}
		h.streams[id] = s
	}
	s.waiting = true
}

// Record implements register.Recorder.
func (h *History) Record(op register.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, op)
	s := h.streams[op.Stream]
	if s == nil {
		s = &stream{since: op.Call}
		h.streams[op.Stream] = s
	}
	s.waiting = false
	if op.Reset {
		h.counts.resets++
		h.find("%s stream %x: connection broken at %s", network(op), op.Stream, h.at(op.Return))
	}
	if !op.Known {
		h.counts.unknown++
		// Over UDP the client goes on asking, so the gap goes on; a TCP stream is over.
		s.waiting = op.UDP
		return
	}
	h.answered(op, s)
}

func (h *History) answered(op register.Operation, s *stream) {
	c := &h.counts
	c.answers++
	if op.UDP {
		c.udpAnswers++
	} else {
		c.tcpAnswers++
	}
	if err := h.latency.RecordValue(min(op.Return.Sub(op.Call).Microseconds(), maxLatency)); err != nil {
		h.find("latency of an answer: %v", err) // only a clock that runs backwards can cause it
	}
	if gap := op.Return.Sub(s.since); gap > c.gap {
		c.gap, c.gapFrom = gap, s.since
	}
	s.since, c.lastAnswer = op.Return, op.Return
	if op.Answer.Sequence <= s.sequence {
		c.sequenceViolations++
		h.find("%s stream %x: sequence number %d after %d at %s", network(op), op.Stream, op.Answer.Sequence, s.sequence, h.at(op.Return))
	}
	s.sequence = max(s.sequence, op.Answer.Sequence)
	c.highest = max(c.highest, op.Answer.Sequence)
	if h.boot == 0 {
		h.boot = op.Answer.Boot
	}
	if op.Answer.Boot != h.boot {
		c.bootChanges++
		h.find("%s stream %x: boot nonce %x instead of %x at %s: the server was restarted", network(op), op.Stream, op.Answer.Boot, h.boot, h.at(op.Return))
	}
}

// find keeps a violation in words.
func (h *History) find(format string, args ...any) {
	if len(h.findings) < maxFindings {
		h.findings = append(h.findings, fmt.Sprintf(format, args...))
	}
}

// at says when t was, from the history's start.
func (h *History) at(t time.Time) string { return t.Sub(h.start).Round(time.Millisecond).String() }

func network(op register.Operation) string {
	if op.UDP {
		return "udp"
	}
	return "tcp"
}

// Stats is how things stand at one moment.
type Stats struct {
	At                     time.Duration // since the history's start
	Answers                uint64
	TCPAnswers, UDPAnswers uint64
	Unknown                uint64 // attempts without an answer
	ConnectionResets       uint64
	SequenceViolations     uint64 // per stream, as they were seen
	BootChanges            uint64
	HighestSequence        uint64
	LastAnswer             time.Time // zero if there was none
	// LongestGap is the longest time that one stream was without an answer, from the answer before (or its first request),
	// including a wait that is going on; LongestGapFrom is when it began.
	LongestGap     time.Duration
	LongestGapFrom time.Time
	P50, P99, Max  time.Duration // latency of the answers
}

// Snapshot tells how things stand now.
func (h *History) Snapshot() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snapshot(time.Now())
}

func (h *History) snapshot(now time.Time) Stats {
	c := h.counts
	s := Stats{
		At:                 now.Sub(h.start),
		Answers:            c.answers,
		TCPAnswers:         c.tcpAnswers,
		UDPAnswers:         c.udpAnswers,
		Unknown:            c.unknown,
		ConnectionResets:   c.resets,
		SequenceViolations: c.sequenceViolations,
		BootChanges:        c.bootChanges,
		HighestSequence:    c.highest,
		LastAnswer:         c.lastAnswer,
		LongestGap:         c.gap,
		LongestGapFrom:     c.gapFrom,
		P50:                time.Duration(h.latency.ValueAtQuantile(50)) * time.Microsecond,
		P99:                time.Duration(h.latency.ValueAtQuantile(99)) * time.Microsecond,
		Max:                time.Duration(h.latency.Max()) * time.Microsecond,
	}
	for _, st := range h.streams {
		if gap := now.Sub(st.since); st.waiting && gap > s.LongestGap {
			s.LongestGap, s.LongestGapFrom = gap, st.since
		}
	}
	return s
}

// AnswersBefore counts the answers that came before t, and AnswersAfter the others.
func (h *History) AnswersBefore(t time.Time) (before, after uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.operations {
		op := &h.operations[i]
		switch {
		case !op.Known:
		case op.Return.Before(t):
			before++
		default:
			after++
		}
	}
	return before, after
}

// Operations is a copy of everything recorded so far, in the order of recording.
func (h *History) Operations() []register.Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.operations)
}
