package standby

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
	"github.com/pollux-ha/pollux/devices/guestmem"
)

// machine takes a state and keeps it.
type machine struct {
	memory *guestmem.Memory
	state  []byte
	fail   error
}

func (m *machine) Memory() *guestmem.Memory { return m.memory }

func (m *machine) LoadState(b []byte) error {
	m.state = bytes.Clone(b)
	return m.fail
}

const testMemory = guestmem.MinSize

func newReceiver(t testing.TB) (*Receiver, *machine) {
	t.Helper()
	memory, err := guestmem.New(testMemory)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{memory: memory}
	r, err := New(m, checkpoint.NewStats(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), memory.Close()); err != nil {
			t.Error(err)
		}
	})
	return r, m
}

// page is a page full of one value.
func page(v byte) []byte { return bytes.Repeat([]byte{v}, wire.PageSize) }

// stream builds what a primary sends.
type stream struct {
	t   testing.TB
	buf bytes.Buffer
	w   *wire.Writer
}

func newStream(t testing.TB, session uint64) *stream {
	s := &stream{t: t}
	s.w = wire.NewWriter(&s.buf)
	s.w.Session = session
	return s
}

func (s *stream) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// epoch adds a whole epoch: pages by frame number, ascending, and state.
func (s *stream) epoch(kind wire.Kind, n uint64, state string, pages ...[]byte) *stream {
	s.t.Helper()
	s.must(s.w.EpochBegin(n, wire.EpochBegin{Kind: kind, State: uint32(len(state)), Pages: uint64(len(pages))}))
	if state != "" {
		s.must(s.w.State(n, []byte(state)))
	}
	pw := wire.NewPageWriter(s.w)
	pw.Begin(n)
	for i, p := range pages {
		s.must(pw.Add(uint64(10+2*i), p))
	}
	s.must(pw.Flush())
	s.must(s.w.EpochEnd(n, pw.Pages, pw.Zero))
	return s
}

// frame adds a frame of any content whose checksum is right.
func (s *stream) frame(typ wire.Type, session, epoch uint64, payload []byte) *stream {
	b := make([]byte, wire.HeaderSize, wire.HeaderSize+len(payload))
	binary.LittleEndian.PutUint32(b, 'P'|'L'<<8|'X'<<16|'W'<<24)
	binary.LittleEndian.PutUint16(b[4:], wire.Version)
	b[6] = byte(typ)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(b[16:], session)
	binary.LittleEndian.PutUint64(b[24:], epoch)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	s.buf.Write(b)
	return s
}

// receive feeds the stream to r. Whole checkpoints are applied if apply says so. It returns what was whole.
func receive(r *Receiver, b []byte, apply bool) (whole []Whole, err error) {
	in := wire.NewReader(bytes.NewReader(b))
	for {
		h, err := in.Next()
		if err != nil {
			return whole, err
		}
		if h.Type < wire.TypeEpochBegin || h.Type > wire.TypeEpochEnd {
			if err := in.Skip(make([]byte, 4096)); err != nil {
				return whole, err
			}
			continue
		}
		w, done, err := r.Receive(h, in)
		if err != nil {
			return whole, err
		}
		if !done {
			continue
		}
		whole = append(whole, w)
		if apply && w.Ack.Kind == wire.Checkpoint {
			if err := r.Apply(w.Epoch); err != nil {
				return whole, err
			}
		}
	}
}

func (m *machine) at(t testing.TB, gfn uint64) byte {
	t.Helper()
	s, err := m.memory.Slice(gfn<<guestmem.PageShift, guestmem.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s, page(s[0])) {
		t.Errorf("page %d is torn", gfn)
	}
	return s[0]
}

func TestImageFollowsCheckpoints(t *testing.T) {
	r, m := newReceiver(t)
	r.Begin(7)
	s := newStream(t, 7).epoch(wire.Round, 1, "", page(1), page(2), page(3))
	s.epoch(wire.Checkpoint, 5, "five", page(5), page(0)).epoch(wire.Checkpoint, 6, "six", page(6))
	whole, err := receive(r, s.buf.Bytes(), true)
	if len(whole) != 3 {
		t.Fatalf("%d whole epochs, %v", len(whole), err)
	}
	if a, b, c := m.at(t, 10), m.at(t, 12), m.at(t, 14); a != 6 || b != 0 || c != 3 {
		t.Errorf("image %d %d %d, want 6 0 3", a, b, c)
	}
	if err := r.TakeOver(5); !errors.Is(err, ErrNoCopy) {
		t.Errorf("takeover from 5 of an image at 6: %v", err)
	}
	if err := r.TakeOver(6); err != nil {
		t.Fatal(err)
	}
	if string(m.state) != "six" {
		t.Errorf("state %q", m.state)
	}
}

// TestNothingHalfApplied: a checkpoint that stops anywhere changes nothing; a whole one that was not acknowledged neither.
func TestNothingHalfApplied(t *testing.T) {
	first := newStream(t, 7).epoch(wire.Checkpoint, 1, "one", page(1), page(1), page(1)).buf.Bytes()
	second := newStream(t, 7).epoch(wire.Checkpoint, 2, "two", page(2), page(2), page(2)).buf.Bytes()
	for _, cut := range []int{0, 1, 40, 100, len(second) / 3, len(second) / 2, len(second) - 60, len(second) - 1, len(second)} {
		r, m := newReceiver(t)
		r.Begin(7)
		if whole, err := receive(r, first, true); len(whole) != 1 {
			t.Fatal(err)
		}
		whole, _ := receive(r, second[:cut], false)
		if (len(whole) == 1) != (cut == len(second)) {
			t.Fatalf("cut at %d of %d: %d whole", cut, len(second), len(whole))
		}
		if a, b, c := m.at(t, 10), m.at(t, 12), m.at(t, 14); a != 1 || b != 1 || c != 1 {
			t.Errorf("cut at %d: image %d %d %d", cut, a, b, c)
		}
		if err := r.TakeOver(1); err != nil || string(m.state) != "one" {
			t.Errorf("cut at %d: takeover with %q: %v", cut, m.state, err)
		}
	}
}

// TestTakeOverFinishesTheImage: a checkpoint that was acknowledged and not applied yet is applied by the takeover.
func TestTakeOverFinishesTheImage(t *testing.T) {
	r, m := newReceiver(t)
	r.Begin(7)
	if whole, err := receive(r, newStream(t, 7).epoch(wire.Checkpoint, 1, "one", page(1)).buf.Bytes(), false); len(whole) != 1 {
		t.Fatal(err)
	}
	if got := r.Complete(); got != 1 {
		t.Errorf("complete %d", got)
	}
	if err := r.TakeOver(1); err != nil || m.at(t, 10) != 1 {
		t.Errorf("takeover: %v, image %d", err, m.at(t, 10))
	}
	// The reader comes late with its Apply: nothing left to do, and nothing more is accepted.
	if err := r.Apply(1); err != nil {
		t.Error(err)
	}
	whole, err := receive(r, newStream(t, 7).epoch(wire.Checkpoint, 2, "two", page(2)).buf.Bytes(), true)
	if len(whole) != 0 || m.at(t, 10) != 1 {
		t.Errorf("after the takeover: %v %v, image %d", whole, err, m.at(t, 10))
	}
}

func TestSessions(t *testing.T) {
	r, m := newReceiver(t)
	old := newStream(t, 7).epoch(wire.Checkpoint, 1, "one", page(1), page(1))
	if whole, _ := receive(r, old.buf.Bytes(), true); len(whole) != 0 {
		t.Errorf("frames of no session were accepted: %v", whole)
	}
	r.Begin(7)
	half := old.buf.Bytes()[:old.buf.Len()-100]
	_, _ = receive(r, half, true)
	r.Begin(8)
	// The rest of the old session, then the new one, which begins with rounds again.
	s := newStream(t, 7).frame(wire.TypeState, 7, 1, []byte("late"))
	s.w.Session = 8
	s.epoch(wire.Round, 1, "", page(8)).epoch(wire.Checkpoint, 9, "nine", page(9))
	if whole, err := receive(r, s.buf.Bytes(), true); len(whole) != 2 || m.at(t, 10) != 9 {
		t.Errorf("new session: %v %v", whole, err)
	}
	r.Drop()
	if err := r.TakeOver(9); !errors.Is(err, ErrNoCopy) {
		t.Errorf("takeover from a dropped copy: %v", err)
	}
}

func TestLoadFails(t *testing.T) {
	r, m := newReceiver(t)
	r.Begin(7)
	if whole, err := receive(r, newStream(t, 7).epoch(wire.Checkpoint, 1, "one", page(1)).buf.Bytes(), true); len(whole) != 1 {
		t.Fatal(err)
	}
	m.fail = errors.New("no such register")
	if err := r.TakeOver(1); !errors.Is(err, m.fail) {
		t.Error(err)
	}
}

// TestHostilePeer: frames that are well-formed one by one and that no primary sends.
func TestHostilePeer(t *testing.T) {
	begin := func(kind wire.Kind, state uint32, pages uint64) []byte {
		p := make([]byte, 16)
		p[0] = byte(kind)
		binary.LittleEndian.PutUint32(p[4:], state)
		binary.LittleEndian.PutUint64(p[8:], pages)
		return p
	}
	runs := func(data []byte, entries ...[4]uint64) []byte { // first, count, length, codec
		p := binary.LittleEndian.AppendUint64(nil, uint64(len(entries)))
		for _, e := range entries {
			p = binary.LittleEndian.AppendUint64(p, e[0])
			p = binary.LittleEndian.AppendUint32(p, uint32(e[1]))
			p = binary.LittleEndian.AppendUint32(p, uint32(e[2]))
			p = binary.LittleEndian.AppendUint64(p, e[3])
		}
		return append(p, data...)
	}
	frames := uint64(testMemory / wire.PageSize)
	open := func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 1, begin(wire.Checkpoint, 4, frames)) }
	for name, tt := range map[string]struct {
		add  func(s *stream) *stream
		want error
	}{
		"page beyond memory": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(page(1), [4]uint64{frames, 1, 4096, 1}))
		}, ErrPeer},
		"page far beyond": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(page(1), [4]uint64{1 << 52, 1, 4096, 1}))
		}, ErrPeer},
		"run over the end": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{frames - 1, 2, 0, 2}))
		}, ErrPeer},
		"long run of zeros": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{0, 1<<32 - 1, 0, 2}))
		}, wire.ErrSequence},
		"page twice": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{3, 1, 0, 2})).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{3, 1, 0, 2}))
		}, wire.ErrSequence},
		"unknown codec": {func(s *stream) *stream { return open(s).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{3, 1, 0, 9})) }, wire.ErrMessage},
		"data missing": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{3, 1, 4096, 1}))
		}, wire.ErrMessage},
		"data too much": {func(s *stream) *stream {
			return open(s).frame(wire.TypePages, 7, 1, runs(page(1), [4]uint64{3, 1, 0, 2}))
		}, wire.ErrMessage},
		"state too long":        {func(s *stream) *stream { return open(s).frame(wire.TypeState, 7, 1, []byte("longer")) }, ErrPeer},
		"state without epoch":   {func(s *stream) *stream { return s.frame(wire.TypeState, 7, 1, []byte("stat")) }, ErrPeer},
		"pages without epoch":   {func(s *stream) *stream { return s.frame(wire.TypePages, 7, 1, runs(nil, [4]uint64{3, 1, 0, 2})) }, ErrPeer},
		"end without epoch":     {func(s *stream) *stream { return s.frame(wire.TypeEpochEnd, 7, 1, make([]byte, 24)) }, wire.ErrSequence},
		"another epoch's state": {func(s *stream) *stream { return open(s).frame(wire.TypeState, 7, 2, []byte("stat")) }, wire.ErrSequence},
		"epoch within an epoch": {func(s *stream) *stream { return open(open(s)) }, wire.ErrSequence},
		"epoch zero":            {func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 0, begin(wire.Checkpoint, 4, 1)) }, ErrPeer},
		"more pages than exist": {func(s *stream) *stream {
			return s.frame(wire.TypeEpochBegin, 7, 1, begin(wire.Checkpoint, 4, frames+1))
		}, ErrPeer},
		"no state":         {func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 1, begin(wire.Checkpoint, 0, 1)) }, wire.ErrMessage},
		"too much state":   {func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 1, begin(wire.Checkpoint, 1<<31, 1)) }, wire.ErrMessage},
		"round with state": {func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 1, begin(wire.Round, 4, 1)) }, wire.ErrMessage},
		"unknown kind":     {func(s *stream) *stream { return s.frame(wire.TypeEpochBegin, 7, 1, begin(9, 4, 1)) }, wire.ErrMessage},
		"end too soon":     {func(s *stream) *stream { return open(s).frame(wire.TypeEpochEnd, 7, 1, make([]byte, 24)) }, wire.ErrSequence},
		"epoch left out": {func(s *stream) *stream {
			return s.epoch(wire.Checkpoint, 1, "one", page(1)).epoch(wire.Checkpoint, 3, "three", page(3))
		}, ErrPeer},
		"epoch back": {func(s *stream) *stream {
			return s.epoch(wire.Checkpoint, 2, "two", page(1)).epoch(wire.Checkpoint, 1, "one", page(3))
		}, ErrPeer},
		"round after a checkpoint": {func(s *stream) *stream {
			return s.epoch(wire.Checkpoint, 1, "one", page(1)).epoch(wire.Round, 2, "", page(3))
		}, ErrPeer},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newReceiver(t)
			r.Begin(7)
			if _, err := receive(r, tt.add(newStream(t, 7)).buf.Bytes(), true); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// FuzzReceiver feeds frames with right checksums and any content.
func FuzzReceiver(f *testing.F) {
	// Zero pages keep the seeds short: there is much to try in the tables, and nothing in a page's content.
	f.Add(newStream(f, 7).epoch(wire.Checkpoint, 1, "one", page(0), page(0)).buf.Bytes())
	f.Add(newStream(f, 7).epoch(wire.Round, 1, "", page(0)).epoch(wire.Checkpoint, 2, "two", page(0)).buf.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, m := newReceiver(t)
		r.Begin(7)
		// Make the checksums right, so that the content gets through.
		fixed := newStream(t, 7)
		for len(b) >= wire.HeaderSize {
			n := min(int(binary.LittleEndian.Uint32(b[8:])), len(b)-wire.HeaderSize)
			fixed.frame(wire.Type(b[6]), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:]), b[wire.HeaderSize:wire.HeaderSize+n])
			b = b[wire.HeaderSize+n:]
		}
		whole, _ := receive(r, fixed.buf.Bytes(), true)
		if n := r.Complete(); n != 0 {
			if err := r.TakeOver(n); err != nil {
				t.Fatalf("complete at %d: %v", n, err)
			}
			if len(whole) == 0 || len(m.state) == 0 {
				t.Fatalf("complete at %d without a whole checkpoint", n)
			}
		}
	})
}
