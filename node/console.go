package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/netbuffer"
)

// ErrEscape is the cause with which a console ends a machine: its user typed Ctrl-A x.
var ErrEscape = errors.New("Ctrl-A x was typed on the console")

// terminal is the far end of a machine's serial port.
type terminal interface {
	io.Writer // what the guest prints
	// Run hands what is typed to feed until ctx is done. ErrEscape: the user wants to leave.
	Run(ctx context.Context, feed func(context.Context, []byte) error) error
	Close() error
}

// openTerminal opens what --serial names: stdio, none, file:PATH or unix:PATH.
func openTerminal(name string, log *slog.Logger) (terminal, error) {
	kind, path, _ := strings.Cut(name, ":")
	switch {
	case name == "" || name == "none":
		return silent{io.Discard}, nil
	case name == "stdio":
		return openStdio()
	case kind == "file" && path != "":
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open console file: %w", err)
		}
		return printer{f}, nil
	case kind == "unix" && path != "":
		return listenTerminal(path, log)
	}
	return nil, fmt.Errorf("serial port %q: want stdio, none, file:PATH or unix:PATH", name)
}

// silent is a console that nobody sees.
type silent struct{ io.Writer }

func (silent) Run(ctx context.Context, _ func(context.Context, []byte) error) error {
	<-ctx.Done()
	return nil
}
func (silent) Close() error { return nil }

// printer is a console that is only written.
type printer struct{ *os.File }

func (printer) Run(ctx context.Context, _ func(context.Context, []byte) error) error {
	<-ctx.Done()
	return nil
}

// consoleDepth is how much console output waits for its epoch; then the guest sees a busy serial port.
const consoleDepth = 1 << 20

// console carries a machine's serial output to a terminal: through a netbuffer, because it is output like any frame and must not
// show what the twin may forget, and then through a queue, because the terminal may be slow. It implements
// devices.SerialSink.
type console struct {
	*netbuffer.Buffer
	out *drain
}

func newConsole(w io.Writer, log *slog.Logger) (*console, error) {
	out := &drain{sink: devices.NewWriterSink(w)}
	b, err := netbuffer.NewBuffer(consoleDepth, out, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console: %w", err), out.sink.Close())
	}
	return &console{b, out}, nil
}

// Put implements devices.SerialSink.
func (c *console) Put(p []byte) int {
	if c.Send([][]byte{p}) {
		return len(p)
	}
	return 0
}

// Close prints what has been released and ends.
func (c *console) Close() error {
	return errors.Join(c.Buffer.Close(), c.out.sink.Close())
}

// drain is the netbuffer.Sink in front of a WriterSink.
type drain struct {
	sink *devices.WriterSink
	done int // of the frame at hand
}

// Write implements netbuffer.Sink. The buffer offers a frame again until it is taken whole; done says how far it got.
func (d *drain) Write(frame []byte) error {
	d.done += d.sink.Put(frame[d.done:])
	if d.done < len(frame) {
		return fmt.Errorf("console: %w", netbuffer.ErrTryAgain)
	}
	d.done = 0
	return nil
}

// keyboard finds Ctrl-A x in what is typed. Ctrl-A Ctrl-A types one Ctrl-A.
type keyboard struct {
	escaped bool
}

const ctrlA = 0x01

// filter returns what of p goes to the guest, in place, and whether the user wants to leave.
func (k *keyboard) filter(p []byte) (typed []byte, leave bool) {
	typed = p[:0]
	for _, c := range p {
		switch {
		case !k.escaped && c == ctrlA:
			k.escaped = true
			continue
		case k.escaped && (c == 'x' || c == 'X'):
			return typed, true
		}
		k.escaped = false
		typed = append(typed, c)
	}
	return typed, false
}

// pump reads r and feeds it until either ends.
func pump(ctx context.Context, r io.Reader, k *keyboard, feed func(context.Context, []byte) error) error {
	buf := make([]byte, 512)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			typed, leave := buf[:n], false
			if k != nil {
				typed, leave = k.filter(typed)
			}
			if len(typed) > 0 {
				if err := feed(ctx, typed); err != nil {
					return err
				}
			}
			if leave {
				return ErrEscape
			}
		}
		if err != nil {
			return err
		}
	}
}

// closeOnce makes an end that several places may call safe.
type closeOnce struct {
	once sync.Once
	err  error
}

func (c *closeOnce) do(f func() error) error {
	c.once.Do(func() { c.err = f() })
	return c.err
}
