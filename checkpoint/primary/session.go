package primary

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// piece is a part of an epoch, or all of it, on its way from the capturer to the shipper.
type piece struct {
	area     *checkpoint.Area
	epoch    uint64
	pages    uint64 // of the whole epoch
	first    bool
	last     bool
	captured time.Time // when the guest ran again
}

// session ships the machine to one twin.
type session struct {
	e      *Engine
	id     uint64
	link   Link
	flight *flight

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	asked  chan bool     // captures that were asked for; true: stay frozen
	resume chan struct{} // the frozen guest runs again
	free   chan *piece
	filled chan *piece

	pages *wire.PageWriter // the shipper's; the capturer's before the shipper has anything to do
}

var errStopped = errors.New("the session was stopped")

func newSession(e *Engine, id uint64, link Link) *session {
	s := &session{
		e: e, id: id, link: link, flight: newFlight(),
		asked: make(chan bool, 2), resume: make(chan struct{}, 1),
		free: make(chan *piece, areas), filled: make(chan *piece, areas),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	for _, p := range e.areas {
		p.area.Reset()
		s.free <- p
	}
	w := link.Begin()
	s.pages = wire.NewPageWriter(w)
	_ = link.End(nil, false) // an error is seen by the first frame
	return s
}

func (s *session) start(after <-chan struct{}) {
	s.wg.Go(s.ship)
	s.wg.Go(func() {
		defer close(s.filled)
		select {
		case <-after:
		case <-s.ctx.Done():
			return
		}
		err := s.run()
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause
		}
		if !errors.Is(err, errStopped) {
			s.cancel(err)
			s.e.cfg.Events.SyncFailed(s.id, err)
		}
	})
}

func (s *session) stop() {
	s.cancel(errStopped)
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		// Most likely a write to a peer that doesn't read. Whatever it is, without a link it can't send.
		_ = s.link.Close()
		<-done
	}
}

func (s *session) wake() {
	select {
	case s.resume <- struct{}{}:
	default:
	}
}

// run copies memory in rounds, then captures epochs until the session ends.
func (s *session) run() (err error) {
	m := s.e.cfg.Machine
	if err := m.StartDirtyLog(); err != nil {
		return fmt.Errorf("start the dirty log: %w", err)
	}
	defer func() {
		if stop := m.StopDirtyLog(); stop != nil {
			err = errors.Join(err, fmt.Errorf("stop the dirty log: %w", stop))
		}
	}()
	s.e.cfg.Stats.Update(func(c *checkpoint.Counts) { c.Session = s.id })
	if err := s.sync(); err != nil {
		return err
	}
	s.e.cfg.Events.SyncReady(s.id)
	return s.epochs()
}

// epochs captures the final round when it is asked for, and from then on whenever an epoch is due.
func (s *session) epochs() error {
	select {
	case frozen := <-s.asked:
		if err := s.capture(true, frozen, true); err != nil {
			return err
		}
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	clock := newClock(s.e.cfg.Pace)
	clock.last = time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	held := false
	for {
		room := s.flight.outstanding() < inFlight
		wait := clock.due(time.Now(), held, s.flight.outstanding() == 0)
		if room && wait <= 0 {
			now := time.Now()
			dirty, err := s.captureCounted(false, false, false)
			if err != nil {
				return err
			}
			clock.began(now, dirty, held)
			held = false
			continue
		}
		var due <-chan time.Time // never, while an acknowledgement has to come first
		if room {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-due:
		case <-s.e.cfg.Buffer.Waiting():
			held = true
		case <-s.flight.changed:
		case frozen := <-s.asked:
			if err := s.capture(true, frozen, false); err != nil {
				return err
			}
			clock.began(time.Now(), idlePages+1, false)
			held = false
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

func (s *session) capture(asked, frozen, final bool) error {
	_, err := s.captureCounted(asked, frozen, final)
	if err == nil && frozen {
		select {
		case <-s.resume:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	return err
}

// take waits for a free area. The session's end is an error.
func (s *session) take() (*piece, error) {
	select {
	case p := <-s.free:
		return p, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// captureCounted captures one epoch, hands it to the shipper, and returns its number of pages.
func (s *session) captureCounted(asked, frozen, final bool) (int, error) {
	begin := time.Now()
	p, err := s.take()
	if err != nil {
		return 0, err
	}
	stats := s.e.cfg.Stats
	stats.Record(checkpoint.PhaseWait, time.Since(begin))
	n := s.e.lastEpoch() + 1
	p, dirty, err := s.freezeAndCopy(p, n, frozen)
	if err != nil {
		return 0, fmt.Errorf("capture epoch %d: %w", n, err)
	}
	if final {
		// The whole pause of what the sync left over, for the one who tunes the rounds.
		s.e.cfg.Logger.Info("sync: final round captured", "session", s.id, "epoch", n, "pages", dirty, "pause", p.captured.Sub(begin))
	}
	s.e.cfg.Events.Captured(n, asked)
	s.filled <- p // has room for every area
	return dirty, nil
}

func (e *Engine) lastEpoch() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.epoch
}

// freezeAndCopy is the guest's pause. It returns the last piece of epoch n; earlier ones, if staging was too small, are with the
// shipper already. On an error the guest runs again (or the error says that it can't), and nothing was closed or counted.
func (s *session) freezeAndCopy(p *piece, n uint64, stayFrozen bool) (_ *piece, dirty int, err error) {
	cfg := &s.e.cfg
	t := stopwatch{begin: time.Now(), stats: cfg.Stats}
	t.last = t.begin
	if err := cfg.Machine.Freeze(); err != nil {
		return nil, 0, err
	}
	t.lap(checkpoint.PhaseKick)
	p, dirty, err = s.copyOut(p, n, &t)
	if err == nil {
		err = s.close(n, dirty, len(p.area.State))
	}
	if err == nil && stayFrozen {
		s.e.keepFrozen()
	} else if thaw := cfg.Machine.Thaw(); thaw != nil {
		err = errors.Join(err, thaw)
	}
	if err != nil {
		return nil, 0, err
	}
	t.lap(checkpoint.PhaseThaw)
	cfg.Stats.Record(checkpoint.PhasePause, t.last.Sub(t.begin))
	p.captured = t.last
	return p, dirty, nil
}

// close ends epoch n, when nothing can fail any more: the guest stands still, so no frame comes between. A frame that waited was
// signalled before, and is in the epoch now.
func (s *session) close(n uint64, dirty, state int) error {
	select {
	case <-s.e.cfg.Buffer.Waiting():
	default:
	}
	s.e.mu.Lock()
	s.e.epoch = n // also on an error: the number must not be used again
	s.e.mu.Unlock()
	if err := s.e.cfg.Buffer.CloseEpoch(n); err != nil {
		return fmt.Errorf("close the epoch's output: %w", err)
	}
	s.e.dirty.Clear()
	s.flight.noteCaptured(n)
	s.e.cfg.Stats.Update(func(c *checkpoint.Counts) {
		c.Captured, c.DirtyPages, c.StateBytes = n, uint64(dirty), uint64(state)
	})
	return nil
}

func (e *Engine) keepFrozen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frozen = true
}

// copyOut copies the frozen machine's state and changed pages into staging.
func (s *session) copyOut(p *piece, n uint64, t *stopwatch) (_ *piece, dirty int, err error) {
	m := s.e.cfg.Machine
	// State comes first: should saving it touch memory, the dirty log knows.
	p.area.Reset()
	if p.area.State, err = m.SaveState(p.area.State); err != nil {
		return nil, 0, fmt.Errorf("save state: %w", err)
	}
	if l := len(p.area.State); l == 0 || l > wire.MaxStateTotal {
		return nil, 0, fmt.Errorf("save state: %d bytes, must be 1 to %d", l, wire.MaxStateTotal)
	}
	t.lap(checkpoint.PhaseState)
	if err := m.CollectDirty(s.e.dirty); err != nil {
		return nil, 0, fmt.Errorf("collect dirty pages: %w", err)
	}
	dirty = s.e.dirty.Count()
	t.lap(checkpoint.PhaseDirty)
	p.epoch, p.pages, p.first, p.last = n, uint64(dirty), true, false
	memory := m.Memory()
	for first, pages := s.e.dirty.NextRun(0); pages > 0; first, pages = s.e.dirty.NextRun(first + pages) {
		data, err := memory.Slice(first<<guestmem.PageShift, pages<<guestmem.PageShift)
		if err != nil {
			return nil, 0, fmt.Errorf("copy dirty pages: %w", err)
		}
		if p, err = s.fill(p, first, data); err != nil {
			return nil, 0, err
		}
	}
	p.last = true
	t.lap(checkpoint.PhaseCopy)
	return p, dirty, nil
}

// fill copies a run of pages into staging. A full area goes to the shipper, and the next free one goes on; the guest waits meanwhile.
func (s *session) fill(p *piece, first uint64, data []byte) (*piece, error) {
	for {
		n := p.area.Copy(first, data)
		first, data = first+uint64(n), data[n*wire.PageSize:]
		if len(data) == 0 {
			return p, nil
		}
		if p.first {
			s.e.cfg.Stats.Update(func(c *checkpoint.Counts) { c.Oversized++ })
		}
		epoch, pages := p.epoch, p.pages
		s.filled <- p
		var err error
		if p, err = s.take(); err != nil {
			return nil, err
		}
		p.area.Reset()
		p.epoch, p.pages, p.first, p.last = epoch, pages, false, false
	}
}

// stopwatch splits the pause into phases.
type stopwatch struct {
	begin, last time.Time
	stats       *checkpoint.Stats
}

func (t *stopwatch) lap(p checkpoint.Phase) {
	now := time.Now()
	t.stats.Record(p, now.Sub(t.last))
	t.last = now
}
