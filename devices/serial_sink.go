package devices

import (
	"errors"
	"io"
	"sync"
	"time"
)

// WriterSinkDepth is how many bytes a WriterSink holds for a slow writer.
const WriterSinkDepth = 64 << 10

// WriterSink is a SerialSink in front of an io.Writer that may be slow: a bounded queue and one goroutine that writes it
// out, which Close stops. A writer that fails discards what follows, because a console that is gone must not take the
// guest with it; Close returns the error.
type WriterSink struct {
	w    io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	wake    sync.Cond // of mu: there is something to write, or the sink is closing
	queue   []byte
	full    bool // a Put took less than it was given
	closing bool
	err     error
	onSpace func()
}

// NewWriterSink starts a sink that writes to w until Close.
func NewWriterSink(w io.Writer) *WriterSink {
	s := &WriterSink{w: w, done: make(chan struct{}), queue: make([]byte, 0, WriterSinkDepth)}
	s.wake.L = &s.mu
	go s.run()
	return s
}

// Put implements SerialSink.
func (s *WriterSink) Put(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.err != nil {
		return len(p)
	}
	n := min(len(p), cap(s.queue)-len(s.queue))
	s.queue = append(s.queue, p[:n]...)
	s.full = s.full || n < len(p)
	s.wake.Signal()
	return n
}

// OnSpace implements SerialSink.
func (s *WriterSink) OnSpace(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onSpace = f
}

// Close writes what is queued, stops the goroutine and waits for it. A writer with deadlines is given two seconds; any
// other one as long as it takes. It does not close the writer. The error is the first that the writer returned.
func (s *WriterSink) Close() error {
	s.mu.Lock()
	s.closing = true
	s.wake.Signal()
	s.mu.Unlock()
	if d, ok := s.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		// Files on a disk and most terminals have no deadlines and say so; they are not slow for ever either.
		_ = d.SetWriteDeadline(time.Now().Add(2 * time.Second))
		// The writer may be somebody else's next.
		defer func() { _ = d.SetWriteDeadline(time.Time{}) }()
	}
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *WriterSink) run() {
	defer close(s.done)
	out := make([]byte, 0, WriterSinkDepth)
	for {
		var ok bool
		if out, ok = s.next(out); !ok {
			return
		}
		n, err := s.w.Write(out)
		if err == nil && n < len(out) {
			err = io.ErrShortWrite
		}
		if err != nil {
			s.fail(err)
		}
	}
}

// next swaps the queue for out, which has been written; false means that the sink is closed and all is written.
func (s *WriterSink) next(out []byte) ([]byte, bool) {
	s.mu.Lock()
	for len(s.queue) == 0 && !s.closing {
		s.wake.Wait()
	}
	s.queue, out = out[:0], s.queue
	notify := s.takeFull()
	s.mu.Unlock()
	if notify != nil {
		notify()
	}
	return out, len(out) > 0
}

func (s *WriterSink) takeFull() func() {
	if !s.full {
		return nil
	}
	s.full = false
	return s.onSpace
}

func (s *WriterSink) fail(err error) {
	s.mu.Lock()
	s.err = errors.Join(s.err, err)
	s.queue = s.queue[:0]
	notify := s.takeFull()
	s.mu.Unlock()
	if notify != nil {
		notify()
	}
}
