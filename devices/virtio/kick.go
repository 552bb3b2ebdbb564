package virtio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kick is an eventfd on which one worker waits: the guest's driver signals it through KVM, everybody else with signal.
// Signals that come before a wait add up to one.
type kick struct {
	fd   int      // for KVM; owned by file
	file *os.File // non-blocking, so that a waiting goroutine holds no thread, and Close wakes it
	in   [8]byte  // the waiter's buffer
}

// one is what adds 1 to an eventfd, little endian.
var one = [8]byte{1}

func newKick(name string) (*kick, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("%s: create an eventfd: %w", name, err)
	}
	return &kick{fd: fd, file: os.NewFile(uintptr(fd), name)}, nil
}

// signal wakes the waiter. After close it does nothing: the only error there is.
func (k *kick) signal() { _, _ = k.file.Write(one[:]) }

// wait returns after the next signal, with an error after close.
func (k *kick) wait() error {
	_, err := k.file.Read(k.in[:])
	return err
}

func (k *kick) close() error { return k.file.Close() }
