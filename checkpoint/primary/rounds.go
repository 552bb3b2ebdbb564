package primary

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// sync copies memory while the guest runs, round after round: first all of it, then what changed during the round before. It ends when
// what is left can be captured at once, or when more rounds would not help. What is left stays in the engine's bitmap.
func (s *session) sync() error {
	m, dirty := s.e.cfg.Machine, s.e.dirty
	dirty.Clear()
	for _, r := range m.Memory().Regions() {
		first := r.Base >> guestmem.PageShift
		for gfn := first; gfn < first+uint64(len(r.Bytes))>>guestmem.PageShift; gfn++ {
			dirty.Set(gfn)
		}
	}
	left := dirty.Count()
	for round := 1; ; round++ {
		begin := time.Now()
		if err := s.round(uint64(round), left); err != nil {
			return fmt.Errorf("sync round %d: %w", round, err)
		}
		took := time.Since(begin)
		dirty.Clear()
		if err := m.CollectDirty(dirty); err != nil {
			return fmt.Errorf("sync round %d: collect dirty pages: %w", round, err)
		}
		before := left
		left = dirty.Count()
		s.e.cfg.Stats.Update(func(c *checkpoint.Counts) { c.Rounds++ })
		s.e.cfg.Logger.Info("sync: round done", "session", s.id, "round", round, "pages", before, "took", took, "dirty", left)
		if s.converged(round, before, left, took) {
			return nil
		}
	}
}

// converged reports whether the final round should be next.
func (s *session) converged(round, before, left int, took time.Duration) bool {
	pace := s.e.cfg.Pace
	// What is left will take this long at the speed of the round.
	rest := time.Duration(float64(took) * float64(left) / float64(max(before, 1)))
	switch {
	case rest <= pace.Interval && left <= s.e.cfg.AreaPages:
		return true
	case round >= pace.MaxRounds:
		return true
	case round > 2 && left >= before-before/8:
		// The guest writes as fast as the link carries: it won't get better.
		return true
	}
	return false
}

// round sends the pages in the engine's bitmap and waits for the twin to have them.
func (s *session) round(n uint64, pages int) error {
	p, err := s.take()
	if err != nil {
		return err
	}
	defer func() { s.free <- p }()
	w := s.link.Begin()
	w.Session = s.id
	s.pages.Begin(n)
	if err := s.link.End(w.EpochBegin(n, wire.EpochBegin{Kind: wire.Round, Pages: uint64(pages)}), false); err != nil {
		return err
	}
	p.area.Reset()
	dirty, memory := s.e.dirty, s.e.cfg.Machine.Memory()
	for first, count := dirty.NextRun(0); count > 0; first, count = dirty.NextRun(first + count) {
		data, err := memory.Slice(first<<guestmem.PageShift, count<<guestmem.PageShift)
		if err != nil {
			return err
		}
		if err := s.sendCopied(p.area, first, data); err != nil {
			return err
		}
	}
	if err := s.sendPages(p.area); err != nil {
		return err
	}
	w = s.link.Begin()
	s.flight.noteRound(sent{epoch: n, digest: w.Digest()})
	if err := s.link.End(w.EpochEnd(n, s.pages.Pages, s.pages.Zero), true); err != nil {
		return err
	}
	return s.awaitRound(n)
}

// sendCopied sends pages of the running guest, by way of staging: the checksum must be that of the bytes that leave.
func (s *session) sendCopied(a *checkpoint.Area, first uint64, data []byte) error {
	for len(data) > 0 {
		n := a.Copy(first, data)
		first, data = first+uint64(n), data[n*wire.PageSize:]
		if !a.Full() {
			continue
		}
		if err := s.sendPages(a); err != nil {
			return err
		}
		a.Reset()
	}
	return nil
}

func (s *session) awaitRound(n uint64) error {
	for !s.flight.roundDone(n) {
		select {
		case <-s.flight.changed:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	return nil
}
