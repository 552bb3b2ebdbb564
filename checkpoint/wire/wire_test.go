package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testHello() *Hello {
	return &Hello{
		Node: "a", Incarnation: 5, VM: "db", PageSize: PageSize, Codecs: CodecsRequired, Description: []byte("two processors"),
		Regions: []Region{{Base: 0, Size: 3 << 30}, {Base: 4 << 30, Size: 1 << 30}},
	}
}

// image is a map from frame number to page content, what a receiver ends up with.
type image map[uint64]string

// sendEpoch writes a checkpoint of the given runs and state, and returns the digest.
func sendEpoch(t testing.TB, w *Writer, n uint64, kind Kind, runs []run, state []byte) uint32 {
	t.Helper()
	var pages uint64
	for _, r := range runs {
		pages += uint64(len(r.data) / PageSize)
	}
	must(t, w.EpochBegin(n, EpochBegin{Kind: kind, Pages: pages, State: uint32(len(state))}))
	pw := NewPageWriter(w)
	pw.Begin(n)
	for _, r := range runs {
		must(t, pw.Add(r.first, r.data))
	}
	must(t, pw.Flush())
	for len(state) > 0 {
		k := min(len(state), 1000)
		must(t, w.State(n, state[:k]))
		state = state[k:]
	}
	must(t, w.EpochEnd(n, pw.Pages, pw.Zero))
	return w.Digest()
}

type run struct {
	first uint64
	data  []byte
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// receive reads whole epochs from b, until the stream ends, and returns them all as the receiver sees them.
func receive(b []byte) (img image, state []byte, digests []uint32, err error) {
	r := NewReader(bytes.NewReader(b))
	var a Assembler
	img = image{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return img, state, digests, nil
		}
		if err != nil {
			return img, state, digests, err
		}
		p := make([]byte, h.Length)
		if err := r.Payload(p); err != nil {
			return img, state, digests, err
		}
		if err := receiveOne(&a, h, p, r.Checksum(), img, &state, &digests); err != nil {
			return img, state, digests, err
		}
	}
}

func receiveOne(a *Assembler, h Header, p []byte, crc uint32, img image, state *[]byte, digests *[]uint32) error {
	switch h.Type {
	case TypeEpochBegin:
		b, err := ParseEpochBegin(p)
		if err != nil {
			return err
		}
		return a.Begin(h, b, crc)
	case TypePages:
		pages, err := ParsePages(p)
		if err != nil {
			return err
		}
		for r := range pages.Runs {
			for i := range min(uint64(r.Count), 1<<16) {
				if r.Codec == CodecZero {
					img[r.First+i] = ""
				} else {
					img[r.First+i] = string(r.Data[i*PageSize : (i+1)*PageSize])
				}
			}
		}
		return a.Pages(h, pages, crc)
	case TypeState:
		if err := a.State(h, crc); err != nil {
			return err
		}
		*state = append(*state, p...)
	case TypeEpochEnd:
		e, err := ParseEpochEnd(p)
		if err != nil {
			return err
		}
		d, err := a.End(h, e)
		if err != nil {
			return err
		}
		*digests = append(*digests, d)
	case TypeHello:
		_, err := ParseHello(p)
		return err
	case TypeHelloAck:
		_, err := ParseHelloAck(p)
		return err
	case TypeAck:
		_, err := ParseAck(p)
		return err
	case TypeHeartbeat:
		_, err := ParseHeartbeat(p)
		return err
	case TypeRefuse, TypeBye:
		ParseText(p)
	}
	return nil
}

func TestEpochRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for trial := range 200 {
		want := image{}
		var runs []run
		next := uint64(0)
		for range rng.IntN(40) {
			next += 1 + uint64(rng.IntN(50))
			n := 1 + rng.IntN(5)
			if rng.IntN(20) == 0 {
				n = 300 + rng.IntN(300) // more than one frame holds
			}
			data := make([]byte, n*PageSize)
			for i := range n {
				page := data[i*PageSize : (i+1)*PageSize]
				want[next+uint64(i)] = ""
				if rng.IntN(3) > 0 {
					page[rng.IntN(PageSize)] = byte(1 + rng.IntN(255))
					want[next+uint64(i)] = string(page)
				}
			}
			runs = append(runs, run{next, data})
			next += uint64(n)
		}
		state := make([]byte, 1+rng.IntN(5000))
		for i := range state {
			state[i] = byte(rng.Uint32())
		}
		var buf bytes.Buffer
		w := NewWriter(&buf)
		digest := sendEpoch(t, w, uint64(trial), Checkpoint, runs, state)
		img, gotState, digests, err := receive(buf.Bytes())
		must(t, err)
		if !cmp.Equal(want, img) || !bytes.Equal(state, gotState) || !cmp.Equal(digests, []uint32{digest}) {
			t.Fatalf("trial %d: what arrived differs (%d of %d pages, digests %v want %v)", trial, len(img), len(want), digests, digest)
		}
	}
}

// smallEpoch is the stream of one epoch with a few pages and some state.
func smallEpoch(t testing.TB) []byte {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	w.Session = 7
	page := bytes.Repeat([]byte("pollux"), PageSize)[:2*PageSize]
	sendEpoch(t, w, 3, Checkpoint, []run{{5, page}, {9, make([]byte, 3*PageSize)}}, []byte("registers"))
	return buf.Bytes()
}

func TestEveryFlippedBitIsCaught(t *testing.T) {
	b := smallEpoch(t)
	step := 1
	if testing.Short() {
		step = 17
	}
	for i := 0; i < len(b)*8; i += step {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		if _, _, digests, err := receive(c); err == nil {
			t.Fatalf("bit %d of byte %d flipped, accepted with digests %v", i%8, i/8, digests)
		}
	}
}

func TestEveryTruncationIsCaught(t *testing.T) {
	b := smallEpoch(t)
	for n := range len(b) {
		_, _, digests, err := receive(b[:n])
		if len(digests) != 0 {
			t.Fatalf("cut at %d of %d: an epoch was accepted", n, len(b))
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
	}
}

// TestDroppedFramesAreCaught removes, repeats and swaps whole frames, each of which is valid by itself.
func TestDroppedFramesAreCaught(t *testing.T) {
	b := smallEpoch(t)
	var frames [][]byte
	for rest := b; len(rest) > 0; {
		h, err := parseHeader(bytes.Clone(rest[:HeaderSize]))
		must(t, err)
		n := HeaderSize + int(h.Length)
		frames = append(frames, rest[:n])
		rest = rest[n:]
	}
	check := func(what string, fs ...[][]byte) {
		t.Helper()
		var all [][]byte
		for _, f := range fs {
			all = append(all, f...)
		}
		if _, _, digests, err := receive(bytes.Join(all, nil)); err == nil && len(digests) > 0 {
			t.Errorf("%s: accepted", what)
		}
	}
	for i := range len(frames) - 1 {
		check("dropped", frames[:i], frames[i+1:])
		check("repeated", frames[:i+1], frames[i:])
		check("swapped", frames[:i], frames[i+1:i+2], frames[i:i+1], frames[i+2:])
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	w.Session = 12
	must(t, w.Hello(testHello()))
	must(t, w.HelloAck(&HelloAck{Node: "b"}))
	must(t, w.Refuse("another size of memory\x1b[0m"))
	must(t, w.Ack(9, Ack{Kind: Round, Digest: 1, ReceiveNanos: 2, ApplyNanos: 3}))
	must(t, w.Heartbeat(Heartbeat{Sequence: 4}))
	must(t, w.Role([]byte{1, 2, 3}))
	must(t, w.Bye(strings.Repeat("long", 1000)))
	r := NewReader(&buf)
	next := func(want Type) []byte {
		t.Helper()
		h, err := r.Next()
		must(t, err)
		if h.Type != want || (h.Session == 12) != (want == TypeAck) {
			t.Fatalf("got %+v, want %v", h, want)
		}
		p := make([]byte, h.Length)
		must(t, r.Payload(p))
		return p
	}
	h, err := ParseHello(next(TypeHello))
	must(t, err)
	if d := cmp.Diff(testHello(), h); d != "" {
		t.Error(d)
	}
	a, err := ParseHelloAck(next(TypeHelloAck))
	must(t, err)
	if a.Node != "b" {
		t.Errorf("%+v", a)
	}
	if s := ParseText(next(TypeRefuse)); s != "another size of memory?[0m" {
		t.Errorf("%q", s)
	}
	ack, err := ParseAck(next(TypeAck))
	must(t, err)
	if ack != (Ack{Kind: Round, Digest: 1, ReceiveNanos: 2, ApplyNanos: 3}) {
		t.Errorf("%+v", ack)
	}
	hb, err := ParseHeartbeat(next(TypeHeartbeat))
	must(t, err)
	if hb.Sequence != 4 {
		t.Errorf("%+v", hb)
	}
	if p := next(TypeRole); !bytes.Equal(p, []byte{1, 2, 3}) {
		t.Errorf("%v", p)
	}
	if p := next(TypeBye); len(p) != MaxText {
		t.Errorf("%d bytes", len(p))
	}
}

func TestHelloIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Hello){
		"no node":             func(h *Hello) { h.Node = "" },
		"long node":           func(h *Hello) { h.Node = strings.Repeat("n", 256) },
		"no VM":               func(h *Hello) { h.VM = "" },
		"page size":           func(h *Hello) { h.PageSize = 16384 },
		"no codecs":           func(h *Hello) { h.Codecs = 0 },
		"no incarnation":      func(h *Hello) { h.Incarnation = 0 },
		"no regions":          func(h *Hello) { h.Regions = nil },
		"no description":      func(h *Hello) { h.Description = nil },
		"overlapping regions": func(h *Hello) { h.Regions[1].Base = 1 << 30 },
		"empty region":        func(h *Hello) { h.Regions[0].Size = 0 },
		"unaligned region":    func(h *Hello) { h.Regions[0].Base = 12 },
		"wrapping region":     func(h *Hello) { h.Regions[1] = Region{Base: 1 << 63, Size: 1 << 63} },
		"long description":    func(h *Hello) { h.Description = make([]byte, MaxHello) },
	} {
		t.Run(name, func(t *testing.T) {
			h := testHello()
			change(h)
			if err := h.Check(); !errors.Is(err, ErrMessage) {
				t.Errorf("Check: %v", err)
			}
			b, err := canonicalEncoding.Marshal(h)
			must(t, err)
			if _, err := ParseHello(b); !errors.Is(err, ErrMessage) {
				t.Errorf("ParseHello: %v", err)
			}
			if err := NewWriter(io.Discard).Hello(h); !errors.Is(err, ErrMessage) {
				t.Errorf("Hello: %v", err)
			}
		})
	}
}

func TestOtherVersionIsNamed(t *testing.T) {
	b := smallEpoch(t)
	b[4] = 9
	_, err := NewReader(bytes.NewReader(b)).Next()
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("got %v", err)
	}
}

func TestPagesMustAscend(t *testing.T) {
	pw := NewPageWriter(NewWriter(io.Discard))
	pw.Begin(1)
	must(t, pw.Add(4, make([]byte, 2*PageSize)))
	if err := pw.Add(5, make([]byte, PageSize)); err == nil {
		t.Error("a page twice was accepted")
	}
	if err := pw.Add(9, make([]byte, 100)); err == nil {
		t.Error("a part of a page was accepted")
	}
}

// TestHotPathDoesNotAllocate: an epoch's frames, both ways.
func TestHotPathDoesNotAllocate(t *testing.T) {
	var buf bytes.Buffer
	buf.Grow(4 << 20)
	w := NewWriter(&buf)
	pw := NewPageWriter(w)
	data := bytes.Repeat([]byte{1}, 300*PageSize)
	clear(data[7*PageSize : 9*PageSize])
	state := make([]byte, 8<<10)
	payload := make([]byte, 2<<20)
	r := NewReader(&buf)
	var a Assembler
	epoch := func() {
		must(t, w.EpochBegin(1, EpochBegin{Kind: Checkpoint, Pages: 300, State: uint32(len(state))}))
		pw.Begin(1)
		must(t, pw.Add(10, data))
		must(t, pw.Flush())
		must(t, w.State(1, state))
		must(t, w.EpochEnd(1, pw.Pages, pw.Zero))
		must(t, w.Heartbeat(Heartbeat{}))
		must(t, w.Ack(1, Ack{Kind: Checkpoint}))
		for range 7 {
			h, err := r.Next()
			must(t, err)
			p := payload[:h.Length]
			must(t, r.Payload(p))
			switch h.Type {
			case TypeEpochBegin:
				b, err := ParseEpochBegin(p)
				must(t, err)
				must(t, a.Begin(h, b, r.Checksum()))
			case TypePages:
				pages, err := ParsePages(p)
				must(t, err)
				must(t, a.Pages(h, pages, r.Checksum()))
			case TypeState:
				must(t, a.State(h, r.Checksum()))
			case TypeEpochEnd:
				e, err := ParseEpochEnd(p)
				must(t, err)
				_, err = a.End(h, e)
				must(t, err)
			}
		}
		buf.Reset()
	}
	if n := testing.AllocsPerRun(50, epoch); n != 0 {
		t.Errorf("%v allocations per epoch", n)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(smallEpoch(f))
	var buf bytes.Buffer
	w := NewWriter(&buf)
	must(f, w.Hello(testHello()))
	must(f, w.HelloAck(&HelloAck{Node: "b"}))
	must(f, w.Refuse("no"))
	must(f, w.Heartbeat(Heartbeat{Sequence: 1}))
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _, _ = receive(b)
		// The checksum keeps a fuzzer out of the payloads: offer each one with every type to the parsers as well.
		for typ := TypeHello; typ < typeEnd; typ++ {
			var a Assembler
			var state []byte
			var digests []uint32
			h := Header{Type: typ, Length: uint32(len(b)), Epoch: 1}
			_ = receiveOne(&a, h, b, 1, image{}, &state, &digests)
		}
	})
}

func FuzzPages(f *testing.F) {
	var buf bytes.Buffer
	pw := NewPageWriter(NewWriter(&buf))
	pw.Begin(1)
	must(f, pw.Add(3, bytes.Repeat([]byte{1}, PageSize)))
	must(f, pw.Add(8, make([]byte, 2*PageSize)))
	must(f, pw.Flush())
	f.Add(buf.Bytes()[HeaderSize:])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePages(b)
		if err != nil {
			return
		}
		end, bytes := uint64(0), 0
		for r := range p.Runs {
			if r.First < end || r.Count == 0 {
				t.Fatalf("run %d+%d after %d", r.First, r.Count, end)
			}
			if r.Codec == CodecRaw && len(r.Data) != int(r.Count)*PageSize || r.Codec == CodecZero && len(r.Data) != 0 {
				t.Fatalf("run %d+%d with %d bytes", r.First, r.Count, len(r.Data))
			}
			end, bytes = r.First+uint64(r.Count), bytes+len(r.Data)
		}
		if bytes > len(b) {
			t.Fatalf("%d bytes of %d", bytes, len(b))
		}
	})
}

func BenchmarkPages(b *testing.B) {
	w := NewWriter(io.Discard)
	pw := NewPageWriter(w)
	data := bytes.Repeat([]byte{1}, 1024*PageSize)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for range b.N {
		pw.Begin(1)
		must(b, pw.Add(0, data))
		must(b, pw.Flush())
	}
}
