package devices_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/devicestest"
	"github.com/pollux-ha/pollux/devices/state"
)

// Offsets and bits as a driver has them.
const (
	rbr, ier, iir, lcr, mcr, lsr, msr, scr = 0, 1, 2, 3, 4, 5, 6, 7

	driverMCR = 0x0b // DTR, RTS, OUT2
)

// sink is a SerialSink with room for a given number of bytes.
type sink struct {
	mu      sync.Mutex
	got     []byte
	room    int
	onSpace func()
}

func (s *sink) Put(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(p), s.room)
	s.got = append(s.got, p[:n]...)
	s.room -= n
	return n
}

func (s *sink) OnSpace(f func()) { s.onSpace = f }

func (s *sink) grow(n int) {
	s.mu.Lock()
	s.room += n
	s.mu.Unlock()
	s.onSpace()
}

func (s *sink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.got)
}

type port struct {
	*devices.Serial
	line *line
	sink *sink
}

func newPort(t testing.TB, room int) port {
	t.Helper()
	p := port{line: &line{}, sink: &sink{room: room}}
	s, err := devices.NewSerial(devices.SerialConfig{Name: "serial0", Line: p.line, Sink: p.sink})
	if err != nil {
		t.Fatal(err)
	}
	p.Serial = s
	return p
}

func TestSerialRefusesIncompleteConfig(t *testing.T) {
	if _, err := devices.NewSerial(devices.SerialConfig{Name: "serial0"}); err == nil {
		t.Error("a port without a line and a sink was made")
	}
}

// TestSerialProbe walks the steps by which Linux's 8250 driver recognises a 16550A.
func TestSerialProbe(t *testing.T) {
	p := newPort(t, 100)
	p.Thaw()
	out(p, ier, 0)
	expect(t, "IER", in(p, ier), 0)
	out(p, ier, 0x0f)
	expect(t, "IER", in(p, ier), 0x0f)
	out(p, ier, 0xff)
	expect(t, "IER with reserved bits", in(p, ier), 0x0f)
	out(p, ier, 0)
	out(p, mcr, 0x1a) // loopback, RTS, OUT2
	expect(t, "MSR in loopback", in(p, msr)&0xf0, 0x90)
	out(p, mcr, 0)
	out(p, iir, 0x01)
	expect(t, "IIR with FIFOs", in(p, iir), 0xc1)
	out(p, iir, 0)
	expect(t, "IIR without FIFOs", in(p, iir), 0x01)
	out(p, lcr, 0x80)
	out(p, 0, 0x34)
	out(p, 1, 0x12)
	expect(t, "DLL", in(p, 0), 0x34)
	expect(t, "DLM", in(p, 1), 0x12)
	out(p, lcr, 0x03)
	expect(t, "IER under the divisor latch", in(p, ier), 0)
	out(p, scr, 0x5a)
	expect(t, "scratch", in(p, scr), 0x5a)
	expect(t, "LSR", in(p, lsr), 0x60)
	expect(t, "MSR", in(p, msr)&0xf0, 0xb0)
	if p.line.count() != 0 {
		t.Error("probing raised an interrupt although OUT2 is off")
	}
}

func TestSerialTransmitInterrupt(t *testing.T) {
	p := newPort(t, 100)
	p.Thaw()
	out(p, mcr, driverMCR)
	out(p, ier, 0x02)
	if !p.line.high() {
		t.Fatal("enabling the transmit interrupt on an empty transmitter raises nothing")
	}
	expect(t, "IIR", in(p, iir), 0x02)
	expect(t, "IIR read again", in(p, iir), 0x01)
	if p.line.high() {
		t.Error("reading IIR does not acknowledge")
	}
	out(p, rbr, 'x')
	if !p.line.high() || p.sink.text() != "x" {
		t.Errorf("after a byte: interrupt %t, output %q", p.line.high(), p.sink.text())
	}
	out(p, ier, 0)
	if p.line.high() {
		t.Error("disabling the interrupt leaves the line high")
	}
}

func TestSerialInput(t *testing.T) {
	p := newPort(t, 0)
	p.Thaw()
	out(p, iir, 0x81) // FIFO, trigger at 8
	out(p, ier, 0x01)
	if err := p.Feed(t.Context(), []byte("abcdefghijklmnopqrst")); err != nil {
		t.Fatal(err)
	}
	if in(p, lsr)&0x01 != 0 || p.line.high() {
		t.Fatal("input arrives although the guest does not assert RTS")
	}
	out(p, iir, 0x83) // a driver starts by clearing the FIFO
	out(p, mcr, driverMCR)
	expect(t, "IIR above the trigger", in(p, iir), 0xc4)
	var got []byte
	for in(p, lsr)&0x01 != 0 {
		got = append(got, in(p, rbr))
		if len(got) == 14 {
			expect(t, "IIR below the trigger", in(p, iir), 0xcc)
		}
	}
	if string(got) != "abcdefghijklmnopqrst" {
		t.Errorf("read %q", got)
	}
	if p.line.high() {
		t.Error("the line stays high with nothing to read")
	}
}

func TestSerialFeedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort(t, 0)
		text := strings.Repeat("0123456789abcdef", 1000)
		done := make(chan error)
		go func() { done <- p.Feed(t.Context(), []byte(text)) }()
		synctest.Wait() // frozen: blocks, and does not return
		p.Thaw()
		out(p, mcr, driverMCR)
		out(p, iir, 0x01)
		var got strings.Builder
		for {
			synctest.Wait()
			if in(p, lsr)&0x01 == 0 {
				break
			}
			for in(p, lsr)&0x01 != 0 {
				got.WriteByte(in(p, rbr))
			}
		}
		if err := <-done; err != nil || got.String() != text {
			t.Errorf("error %v, %d of %d bytes arrived in order: %t", err, got.Len(), len(text), strings.HasPrefix(text, got.String()))
		}
		ctx, cancel := context.WithCancel(t.Context())
		out(p, mcr, 0)
		go func() { done <- p.Feed(ctx, make([]byte, 10_000)) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled Feed returns %v", err)
		}
	})
}

func TestSerialSlowSink(t *testing.T) {
	p := newPort(t, 4)
	p.Thaw()
	out(p, mcr, driverMCR)
	out(p, iir, 0x01)
	for i := range 30 { // 4 go out, 16 stay in the FIFO, 10 are lost
		out(p, rbr, 'a'+uint8(i))
	}
	expect(t, "LSR with a full sink", in(p, lsr)&0x60, 0)
	if p.Lost() != 10 {
		t.Errorf("%d bytes lost, want 10", p.Lost())
	}
	p.sink.grow(10)
	expect(t, "LSR with a sink that is full again", in(p, lsr)&0x60, 0)
	p.sink.grow(100)
	expect(t, "LSR with room", in(p, lsr)&0x60, 0x60)
	if got, want := p.sink.text(), "abcdefghijklmnopqrst"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	p.Freeze()
	p.sink.grow(1) // must not disturb the frozen port
	var e state.Encoder
	p.Save(&e)
}

// TestSerialOutputMovesWithTheState is the output rule of a takeover: what the sink has not taken, the twin writes.
func TestSerialOutputMovesWithTheState(t *testing.T) {
	p, q := newPort(t, 3), newPort(t, 100)
	p.Thaw()
	out(p, mcr, driverMCR)
	out(p, iir, 0x01)
	out(p, ier, 0x02)
	for _, c := range []byte("hello") {
		out(p, rbr, c)
	}
	transplant(t, p, q)
	q.Thaw()
	if p.sink.text() != "hel" || q.sink.text() != "lo" {
		t.Errorf("one wrote %q, the other %q", p.sink.text(), q.sink.text())
	}
	if !q.line.high() {
		t.Error("the twin's transmitter is empty and did not say so")
	}
}

func TestSerialLoopbackOverrun(t *testing.T) {
	p := newPort(t, 0)
	p.Thaw()
	out(p, mcr, 0x10)
	out(p, iir, 0x01)
	for i := range 17 {
		out(p, rbr, uint8(i))
	}
	expect(t, "LSR after 17 bytes in loopback", in(p, lsr), 0x63)
	expect(t, "LSR read again", in(p, lsr), 0x61)
	for i := range 16 {
		expect(t, "looped byte", in(p, rbr), uint8(i))
	}
	expect(t, "empty receiver", in(p, rbr), 0)
}

func TestSerialConformance(t *testing.T) {
	devicestest.Run(t, func(t testing.TB) *devicestest.Rig {
		p := newPort(t, 2)
		return &devicestest.Rig{
			Device: p,
			Prepare: func(t testing.TB) {
				out(p, mcr, driverMCR)
				out(p, iir, 0xc1)
				out(p, ier, 0x03)
				for _, c := range []byte("output") {
					out(p, rbr, c)
				}
				if err := p.Feed(context.Background(), []byte("this is longer than the FIFO")); err != nil {
					t.Error(err)
				}
			},
			CarryOn: func(t testing.TB) {
				if !p.line.high() {
					t.Error("input waits and the line is low")
				}
				expect(t, "IIR", in(p, iir), 0xc4)
				var got []byte
				for in(p, lsr)&0x01 != 0 {
					got = append(got, in(p, rbr))
				}
				if string(got) != "this is longer than the FIFO" {
					t.Errorf("read %q", got)
				}
				p.sink.grow(100)
				if text := p.sink.text(); !strings.HasSuffix(text, "tput") {
					t.Errorf("output %q", text)
				}
			},
		}
	})
}

// gatedWriter blocks until it is opened.
type gatedWriter struct {
	open chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
	err  error
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	<-w.open
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	return w.buf.Write(p)
}

func TestWriterSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gatedWriter{open: make(chan struct{})}
		s := devices.NewWriterSink(w)
		space := make(chan struct{}, 10)
		s.OnSpace(func() { space <- struct{}{} })
		sent := 0
		for {
			n := s.Put(bytes.Repeat([]byte("x"), 1000))
			sent += n
			synctest.Wait()
			if n < 1000 {
				break
			}
		}
		if sent > 2*devices.WriterSinkDepth+1000 {
			t.Errorf("a stuck writer made the sink take %d bytes", sent)
		}
		if s.Put([]byte("y")) != 0 {
			t.Error("a full sink takes more")
		}
		close(w.open)
		<-space
		if s.Put([]byte("end")) != 3 {
			t.Error("after OnSpace there is no room")
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if got := w.buf.Len(); got != sent+3 || !strings.HasSuffix(w.buf.String(), "end") {
			t.Errorf("%d of %d bytes were written", got, sent+3)
		}
		if s.Put([]byte("late")) != 4 {
			t.Error("a closed sink makes the guest wait")
		}
	})
}

func TestWriterSinkError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gatedWriter{open: make(chan struct{}), err: io.ErrClosedPipe}
		close(w.open)
		s := devices.NewWriterSink(w)
		for range 100 {
			if n := s.Put(make([]byte, 10_000)); n < 10_000 {
				synctest.Wait()
			}
		}
		if err := s.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("close returns %v", err)
		}
	})
}
