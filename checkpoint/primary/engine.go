package primary

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// Freezer stops and restarts a machine. Freezes are counted: the guest runs again when each has had its Thaw.
type Freezer interface {
	Freeze() error
	Thaw() error
}

// Capturer gives a frozen machine's state, and what changed in its memory.
type Capturer interface {
	// SaveState appends all state but memory to b.
	SaveState(b []byte) ([]byte, error)
	// CollectDirty adds to dst what changed since the last call. It may also be called while the guest runs.
	CollectDirty(dst *guestmem.Bitmap) error
}

// DirtyLogger switches the log of changed pages.
type DirtyLogger interface {
	StartDirtyLog() error
	StopDirtyLog() error
}

// Machine is what an Engine captures.
type Machine interface {
	Freezer
	Capturer
	DirtyLogger
	Memory() *guestmem.Memory
}

// Buffer is the part of a netbuffer that an Engine needs.
type Buffer interface {
	// CloseEpoch says that all frames held so far belong to epoch n or earlier ones. The guest stands still.
	CloseEpoch(n uint64) error
	// Waiting gives a value when a frame is held that belongs to no closed epoch.
	Waiting() <-chan struct{}
}

// Link is what an Engine sends on; see checkpoint.Link.
type Link interface {
	Begin() *wire.Writer
	End(err error, flush bool) error
	Close() error
}

// Events is who an Engine reports to. The calls must return at once: whoever handles the events may be in StopSync, waiting for the
// caller.
type Events interface {
	SyncReady(session uint64)
	SyncFailed(session uint64, err error)
	Captured(epoch uint64, asked bool)
}

// Config says how an Engine works.
type Config struct {
	Machine Machine
	Buffer  Buffer
	Events  Events
	Stats   *checkpoint.Stats
	Logger  *slog.Logger
	Pace
	// AreaPages is the size of each of the two staging areas. 0: DefaultAreaPages, or all of a smaller guest.
	AreaPages int
}

// DefaultAreaPages makes areas of 64 MiB: what a guest that dirties 2.5 GB/s changes in 25 ms.
const DefaultAreaPages = 64 << 20 / wire.PageSize

// areas is the number of staging areas: one in flight, one being filled.
const areas = 2

// Engine captures one machine. Its methods may be called from any goroutine, except that StartSync, StopSync and Close are
// called by one.
type Engine struct {
	cfg   Config
	areas [areas]*piece
	dirty *guestmem.Bitmap

	mu      sync.Mutex
	epoch   uint64 // last one captured
	frozen  bool   // by a capture that was to leave the guest frozen
	session *session
}

// New returns an Engine whose first epoch will be last+1.
func New(cfg Config, last uint64) (*Engine, error) {
	frames := cfg.Machine.Memory().Frames()
	if cfg.AreaPages == 0 {
		cfg.AreaPages = int(min(DefaultAreaPages, cfg.Machine.Memory().Size()/wire.PageSize))
	}
	cfg.Pace = cfg.withDefaults()
	if err := cfg.Pace.check(); err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, dirty: guestmem.NewBitmap(frames), epoch: last}
	for i := range e.areas {
		area, err := checkpoint.NewArea(cfg.AreaPages)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("prepare to capture: %w", err), e.Close())
		}
		e.areas[i] = &piece{area: area}
	}
	return e, nil
}

// Close stops what is under way and frees staging. The guest is left as it is.
func (e *Engine) Close() error {
	e.StopSync()
	var errs []error
	for i, p := range e.areas {
		if p != nil {
			errs = append(errs, p.area.Close())
			e.areas[i] = nil
		}
	}
	return errors.Join(errs...)
}

// StartSync begins to ship the machine as the given session over link, once after is closed. It returns at once.
func (e *Engine) StartSync(id uint64, link Link, after <-chan struct{}) {
	e.StopSync()
	s := newSession(e, id, link)
	e.mu.Lock()
	e.session = s
	e.mu.Unlock()
	s.start(after)
}

// stopPatience is how long StopSync waits for a write under way before it closes the link.
const stopPatience = 20 * time.Millisecond

// StopSync ends the session, if there is one. When it returns, nothing more of it will be sent. If a write is stuck, the link is
// closed.
func (e *Engine) StopSync() {
	e.mu.Lock()
	s := e.session
	e.session = nil
	e.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

// current is the session with this id, nil if there is none.
func (e *Engine) current(id uint64) *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session == nil || e.session.id != id {
		return nil
	}
	return e.session
}

// Capture asks the session for a checkpoint as soon as possible; the first one is the sync's final round. frozen leaves the guest
// frozen after it, and there is no further one until Resume.
func (e *Engine) Capture(session uint64, frozen bool) {
	if s := e.current(session); s != nil {
		select {
		case s.asked <- frozen:
		case <-s.ctx.Done():
		}
	}
}

// Resume lets the guest run again after a Capture that left it frozen. It does nothing if none did.
func (e *Engine) Resume() error {
	e.mu.Lock()
	frozen, s := e.frozen, e.session
	e.frozen = false
	e.mu.Unlock()
	if !frozen {
		return nil
	}
	if s != nil {
		s.wake()
	}
	if err := e.cfg.Machine.Thaw(); err != nil {
		return fmt.Errorf("let the guest run again: %w", err)
	}
	return nil
}

// Acked takes an acknowledgement from the link. It reports whether it is that of a checkpoint of the current session. An error
// means that the peer holds something else than what was sent.
func (e *Engine) Acked(h wire.Header, a wire.Ack) (bool, error) {
	s := e.current(h.Session)
	if s == nil {
		return false, nil // of a session that was stopped
	}
	return s.flight.acked(h.Epoch, a, e.cfg.Stats)
}
