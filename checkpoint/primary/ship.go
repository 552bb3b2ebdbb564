package primary

import (
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// yieldBytes is how much is sent before others (heartbeats, statuses) get at the link.
const yieldBytes = wire.MaxPagesData

// ship sends what the capturer fills, until there is no more. After an error, or once the session has ended, it only gives the areas
// back: a capturer that waits for one must not wait for ever.
func (s *session) ship() {
	for p := range s.filled {
		if s.ctx.Err() == nil {
			if err := s.send(p); err != nil {
				s.cancel(fmt.Errorf("ship epoch %d: %w", p.epoch, err))
			}
		}
		s.free <- p
	}
}

func (s *session) send(p *piece) error {
	begin := time.Now()
	if p.first {
		if err := s.sendHead(p); err != nil {
			return err
		}
	}
	if err := s.sendPages(p.area); err != nil {
		return err
	}
	if p.last {
		if err := s.sendEnd(p); err != nil {
			return err
		}
	}
	s.e.cfg.Stats.Record(checkpoint.PhaseSend, time.Since(begin))
	return nil
}

func (s *session) sendHead(p *piece) error {
	w := s.link.Begin()
	w.Session = s.id
	err := w.EpochBegin(p.epoch, wire.EpochBegin{Kind: wire.Checkpoint, State: uint32(len(p.area.State)), Pages: p.pages})
	for rest := p.area.State; len(rest) > 0 && err == nil; {
		n := min(len(rest), wire.MaxState)
		err = w.State(p.epoch, rest[:n])
		rest = rest[n:]
	}
	s.pages.Begin(p.epoch)
	return s.link.End(err, false)
}

// sendPages sends an area's pages. It gives the link up now and then, so that a heartbeat waits for about one frame.
func (s *session) sendPages(a *checkpoint.Area) error {
	s.link.Begin()
	since := 0
	for first, data := range a.Runs {
		for len(data) > 0 {
			n := min(len(data), yieldBytes)
			if err := s.pages.Add(first, data[:n]); err != nil {
				return s.link.End(err, false)
			}
			first, data = first+uint64(n/wire.PageSize), data[n:]
			if since += n; since < yieldBytes {
				continue
			}
			since = 0
			if err := s.link.End(nil, false); err != nil {
				return err
			}
			if s.ctx.Err() != nil {
				return errStopped
			}
			s.link.Begin()
		}
	}
	// The pages must be out before the area is filled anew.
	return s.link.End(s.pages.Flush(), false)
}

func (s *session) sendEnd(p *piece) error {
	w := s.link.Begin()
	s.flight.noteSent(sent{epoch: p.epoch, digest: w.Digest(), captured: p.captured, sent: time.Now()})
	err := w.EpochEnd(p.epoch, s.pages.Pages, s.pages.Zero)
	s.e.cfg.Stats.Update(func(c *checkpoint.Counts) {
		c.Pages += s.pages.Pages
		c.ZeroPages += s.pages.Zero
	})
	return s.link.End(err, true)
}
