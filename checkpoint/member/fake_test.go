package member

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/netbuffer"
)

// A fake guest keeps a counter in its memory. For each count it writes one page, at a place that follows from the count, and sends one frame
// with the count. So memory at count c is a function of c, and can be checked whole; and outside, counts may only ever go up.

const (
	fakeMemory  = 16 << 20
	fakePages   = 512 // the working set
	counterGPA  = 0x1000
	workingSet  = 0x100000
	fakePadding = 300 // bytes of state besides the counter
)

// fakeMachine is a Machine whose guest is a goroutine.
type fakeMachine struct {
	memory      *guestmem.Memory
	description []byte
	output      *netbuffer.Buffer
	pace        time.Duration // between counts
	idle        bool          // do nothing at all

	// running is held by whatever keeps the guest from running: each freeze, and by the guest for one count.
	mu     sync.Mutex
	wake   *sync.Cond
	frozen int
	inStep bool
	over   bool
	count  uint64

	failFreeze, failSave, failCollect error // guarded by mu
}

func newFakeMachine(description string, memory uint64, output *netbuffer.Buffer) (*fakeMachine, error) {
	mem, err := guestmem.New(memory)
	if err != nil {
		return nil, err
	}
	f := &fakeMachine{memory: mem, description: []byte(description), output: output, pace: 50 * time.Microsecond}
	f.wake = sync.NewCond(&f.mu)
	return f, nil
}

func (f *fakeMachine) Memory() *guestmem.Memory { return f.memory }
func (f *fakeMachine) Description() []byte      { return f.description }

func (f *fakeMachine) Freeze() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failFreeze != nil {
		return f.failFreeze
	}
	if f.over {
		return errors.New("fake machine is over")
	}
	f.frozen++
	for f.inStep {
		f.wake.Wait()
	}
	return nil
}

func (f *fakeMachine) Thaw() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen == 0 {
		return errors.New("fake machine is not frozen")
	}
	f.frozen--
	f.wake.Broadcast()
	return nil
}

// failing reads a failure that a test may set meanwhile.
func (f *fakeMachine) failing(err *error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *err
}

func (f *fakeMachine) still() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen > 0 && !f.inStep
}

func (f *fakeMachine) SaveState(b []byte) ([]byte, error) {
	if err := f.failing(&f.failSave); err != nil {
		return b, err
	}
	if !f.still() {
		return b, errors.New("save of a running fake machine")
	}
	b = binary.LittleEndian.AppendUint64(b, f.count)
	for i := range fakePadding {
		b = append(b, byte(f.count)+byte(i))
	}
	return b, nil
}

func (f *fakeMachine) LoadState(b []byte) error {
	if len(b) != 8+fakePadding {
		return fmt.Errorf("fake state of %d bytes", len(b))
	}
	f.count = binary.LittleEndian.Uint64(b)
	for i, v := range b[8:] {
		if v != byte(f.count)+byte(i) {
			return fmt.Errorf("fake state of count %d is torn at %d", f.count, i)
		}
	}
	return f.check()
}

// check compares all of memory with what it must be at the counter.
func (f *fakeMachine) check() error {
	var b [8]byte
	if err := f.memory.ReadAt(b[:], counterGPA); err != nil {
		return err
	}
	if c := binary.LittleEndian.Uint64(b[:]); c != f.count {
		return fmt.Errorf("state is of count %d, memory of %d", f.count, c)
	}
	want := make([]byte, guestmem.PageSize)
	for p := range uint64(fakePages) {
		got, err := f.memory.Slice(workingSet+p*guestmem.PageSize, guestmem.PageSize)
		if err != nil {
			return err
		}
		fakePage(want, lastCount(f.count, p))
		if !bytes.Equal(got, want) {
			return fmt.Errorf("page %d at count %d: not as of count %d", p, f.count, lastCount(f.count, p))
		}
	}
	return nil
}

// lastCount is the newest count up to c that wrote page p; 0: none did.
func lastCount(c, p uint64) uint64 {
	for i := range uint64(fakePages) {
		if c < i+1 {
			return 0
		}
		if place(c-i) == p {
			return c - i
		}
	}
	return 0
}

// place is the page that a count writes. It visits all pages in fakePages counts.
func place(c uint64) uint64 { return c * 211 % fakePages }

// fakePage fills a page as a count does; every eighth count clears it, so that zero pages are among them.
func fakePage(p []byte, c uint64) {
	clear(p)
	if c%8 == 0 {
		return
	}
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], c*0x9e3779b97f4a7c15+uint64(i))
	}
}

func (f *fakeMachine) StartDirtyLog() error {
	f.memory.CollectDirty(nil)
	return nil
}

func (f *fakeMachine) StopDirtyLog() error { return nil }

func (f *fakeMachine) CollectDirty(dst *guestmem.Bitmap) error {
	if err := f.failing(&f.failCollect); err != nil {
		return err
	}
	f.memory.CollectDirty(dst)
	return nil
}

func (f *fakeMachine) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.over = true
		f.wake.Broadcast()
	})
	defer stop()
	var frame [64]byte
	for f.begin() {
		if !f.idle {
			f.step(frame[:])
		}
		f.end()
		time.Sleep(f.pace)
	}
	return nil
}

func (f *fakeMachine) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.frozen > 0 && !f.over {
		f.wake.Wait()
	}
	f.inStep = !f.over
	return !f.over
}

func (f *fakeMachine) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inStep = false
	f.wake.Broadcast()
}

func (f *fakeMachine) step(frame []byte) {
	binary.LittleEndian.PutUint64(frame, f.count+1)
	if !f.output.Send([][]byte{frame}) {
		return // full: as a guest whose queue stops
	}
	f.count++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], f.count)
	page := make([]byte, guestmem.PageSize)
	fakePage(page, f.count)
	if err := errors.Join(f.memory.WriteAt(b[:], counterGPA), f.memory.WriteAt(page, workingSet+place(f.count)*guestmem.PageSize)); err != nil {
		panic(err)
	}
}

// world is what sees the guest's frames.
type world struct {
	t *testing.T

	mu       sync.Mutex
	last     uint64
	lastNode string
	frames   uint64
	bad      []string
}

// sink is the world's end for one copy of the guest.
type sink struct {
	w    *world
	node string
}

func (s sink) Write(frame []byte) error {
	c := binary.LittleEndian.Uint64(frame)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	switch {
	case c <= s.w.last:
		s.w.bad = append(s.w.bad, fmt.Sprintf("count %d from %s after %d from %s", c, s.node, s.w.last, s.w.lastNode))
	case c != s.w.last+1 && s.node == s.w.lastNode:
		s.w.bad = append(s.w.bad, fmt.Sprintf("count %d right after %d from %s", c, s.w.last, s.node))
	}
	s.w.last, s.w.lastNode = c, s.node
	s.w.frames++
	return nil
}

func (w *world) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, b := range w.bad {
		if i < 10 {
			w.t.Error(b)
		}
	}
}

func (w *world) seen() (last, frames uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.frames
}

// fakeHost builds fake guests.
type fakeHost struct {
	w           *world
	node        string
	description string
	memory      uint64
	capacity    int // of the output, in bytes
	twinError   error
	change      func(*fakeMachine)

	mu       sync.Mutex
	machines []*fakeMachine
	number   int
}

func (h *fakeHost) build(description string) (*Guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.number++
	capacity := h.capacity
	if capacity == 0 {
		capacity = 1 << 20
	}
	buffer, err := netbuffer.NewBuffer(capacity, sink{h.w, fmt.Sprintf("%s.%d", h.node, h.number)}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	memory := h.memory
	if memory == 0 {
		memory = fakeMemory
	}
	f, err := newFakeMachine(description, memory, buffer)
	if err != nil {
		return nil, err
	}
	if h.change != nil {
		h.change(f)
	}
	h.machines = append(h.machines, f)
	return &Guest{
		Machine: f, Outputs: []Output{buffer},
		Full:  func() bool { return buffer.Snapshot().Stalled },
		Close: func() error { return errors.Join(buffer.Close(), f.memory.Close()) },
	}, nil
}

func (h *fakeHost) Boot(context.Context) (*Guest, error) { return h.build(h.description) }

func (h *fakeHost) Twin(description []byte) (*Guest, error) {
	if h.twinError != nil {
		return nil, h.twinError
	}
	return h.build(string(description))
}

// newest is the machine that was built last.
func (h *fakeHost) newest() *fakeMachine {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.machines) == 0 {
		return nil
	}
	return h.machines[len(h.machines)-1]
}

func testRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x706f6c6c7578)) }
