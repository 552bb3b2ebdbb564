package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// stdio is the console on this process's standard input and output. A terminal is in raw mode while the machine runs, so that
// Ctrl-C reaches the guest; Ctrl-A x leaves.
type stdio struct {
	*os.File             // standard output
	in       input       // standard input
	before   *term.State // nil: the input is no terminal
	closed   closeOnce
}

func openStdio() (*stdio, error) {
	in, err := newInput(int(os.Stdin.Fd()))
	if err != nil {
		return nil, fmt.Errorf("console on standard input: %w", err)
	}
	s := &stdio{File: os.Stdout, in: in}
	if term.IsTerminal(in.fd) {
		if s.before, err = term.MakeRaw(in.fd); err != nil {
			return nil, errors.Join(fmt.Errorf("console on standard input: raw mode: %w", err), in.close())
		}
	}
	return s, nil
}

// Run implements terminal. The end of the input is not the end of the machine.
func (s *stdio) Run(ctx context.Context, feed func(context.Context, []byte) error) error {
	stop := context.AfterFunc(ctx, s.in.interrupt)
	defer stop()
	var k *keyboard
	if s.before != nil {
		k = &keyboard{}
	}
	err := pump(ctx, s.in, k, feed)
	if errors.Is(err, ErrEscape) {
		return err
	}
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	<-ctx.Done()
	return nil
}

// Close gives the terminal back as it was. Run has returned.
func (s *stdio) Close() error {
	return s.closed.do(func() error {
		var err error
		if s.before != nil {
			err = term.Restore(s.in.fd, s.before)
		}
		return errors.Join(err, s.in.close())
	})
}

// input reads a descriptor that was inherited, and can be interrupted. It polls, because the usual way, O_NONBLOCK, would
// belong to the open file that standard output and the shell share.
type input struct {
	fd   int
	wake [2]int // a pipe; something in it ends every Read
}

func newInput(fd int) (input, error) {
	in := input{fd: fd}
	if err := unix.Pipe2(in.wake[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return input{}, fmt.Errorf("make a pipe: %w", err)
	}
	return in, nil
}

// Read implements io.Reader. It ends with io.EOF after interrupt.
func (in input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(in.fd), Events: unix.POLLIN}, {Fd: int32(in.wake[0]), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, io.EOF
		}
		n, err := unix.Read(in.fd, p)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// interrupt ends the Read that waits and all later ones. A full pipe has done so already.
func (in input) interrupt() { _, _ = unix.Write(in.wake[1], []byte{0}) }

func (in input) close() error { return errors.Join(unix.Close(in.wake[0]), unix.Close(in.wake[1])) }
