package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeyboard(t *testing.T) {
	for _, c := range []struct {
		typed string
		want  string
		leave bool
	}{
		{"ls\n", "ls\n", false},
		{"\x01x", "", true},
		{"ab\x01Xcd", "ab", true},
		{"\x01\x01", "\x01", false},
		{"\x01a", "a", false},
		{"\x01\x01x", "\x01x", false},
		{"x", "x", false},
	} {
		// However the bytes arrive, what comes of them is the same.
		for size := 1; size <= len(c.typed); size++ {
			var k keyboard
			var got []byte
			left := false
			for rest := []byte(c.typed); len(rest) > 0 && !left; {
				n := min(size, len(rest))
				typed, leave := k.filter(bytes.Clone(rest[:n]))
				got, left, rest = append(got, typed...), leave, rest[n:]
			}
			if string(got) != c.want || left != c.leave {
				t.Errorf("%q in pieces of %d: typed %q, leave %v; want %q, %v", c.typed, size, got, left, c.want, c.leave)
			}
		}
	}
}

// A Read that waits on a descriptor without deadlines can be ended, and what comes first is not lost.
func TestInputIsInterrupted(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	in, err := newInput(int(r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := in.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := in.Read(buf)
		ended <- err
	}()
	in.interrupt()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("an interrupted read ended with %v, want EOF", err)
	}
	if err := in.close(); err != nil {
		t.Error(err)
	}
}

// writer is a terminal's output that a test can hold up.
type writer struct {
	mu  sync.Mutex
	out strings.Builder
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

func (w *writer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.String()
}

// Console output is output: it waits for its epoch, leaves in order, and a fenced copy prints nothing more.
func TestConsoleWaitsForItsEpoch(t *testing.T) {
	w := &writer{}
	c, err := newConsole(w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	put := func(s string) {
		t.Helper()
		if n := c.Put([]byte(s)); n != len(s) {
			t.Fatalf("the console took %d bytes of %d", n, len(s))
		}
	}
	prints := func(want string) {
		t.Helper()
		for range 500 {
			if w.String() == want {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		t.Fatalf("the terminal shows %q, want %q", w.String(), want)
	}
	put("one ")
	must(t, c.CloseEpoch(1))
	put("two ")
	must(t, c.CloseEpoch(2))
	must(t, c.Release(1))
	prints("one ")
	must(t, c.Release(2))
	put("three")
	prints("one two ")
	c.Fence()
	if err := c.Passthrough(); err == nil {
		t.Error("a fenced console can be opened again")
	}
	must(t, c.Close())
	if got := w.String(); got != "one two " {
		t.Errorf("after the fence the terminal shows %q", got)
	}
}

func TestOpenTerminalRefusals(t *testing.T) {
	for _, name := range []string{"smoke", "file:", "unix:", "file:/nonexistent/x", "unix:/nonexistent/x", "stdio:1"} {
		if term, err := openTerminal(name, slog.New(slog.DiscardHandler)); err == nil {
			term.Close()
			t.Errorf("--serial=%s was accepted", name)
		}
	}
}

func TestSilentTerminalEnds(t *testing.T) {
	term, err := openTerminal("none", slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, term.Run(ctx, nil))
	must(t, term.Close())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
