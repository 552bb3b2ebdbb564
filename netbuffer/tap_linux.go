package netbuffer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// VnetHeader is the length of the header in front of every frame: virtio_net_hdr_v1, little endian (virtio 1.2 §5.1.6).
const VnetHeader = 12

// Tap is one end of a tap device whose frames carry vnet headers. Write and Read may be used at the same time, each by
// one goroutine.
type Tap struct {
	name string
	file *os.File
	raw  syscall.RawConn

	// The frame in Write's hands and its outcome: fields, so that the closure needs no allocation per frame.
	out      []byte
	outErr   error
	writeOut func(fd uintptr) bool
}

// OpenTap creates the tap name, or opens it if it exists and nobody else uses it; an empty name lets the kernel choose one.
// The device goes when Tap is closed, unless it was made persistent before.
func OpenTap(name string) (*Tap, error) {
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("open tap %q: the name has %d characters, at most %d are possible", name, len(name), unix.IFNAMSIZ-1)
	}
	// Non-blocking from the start, so that the runtime's poller takes the descriptor and Close ends a Read.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open tap %q: %w: load the kernel module tun", name, &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err})
	case err != nil:
		return nil, fmt.Errorf("open tap %q: %w", name, &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err})
	}
	name, err = attach(fd, name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	t := &Tap{name: name, file: os.NewFile(uintptr(fd), "tap "+name)}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("open tap %q: %w", name, err), t.file.Close())
	}
	t.writeOut = func(fd uintptr) bool {
		_, t.outErr = unix.Write(int(fd), t.out)
		return true // never wait: the caller decides what to do with a tap that is busy
	}
	return t, nil
}

// attach makes fd the tap name with vnet headers and returns the name that it got.
func attach(fd int, name string) (string, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return "", fmt.Errorf("open tap %q: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	switch {
	case errors.Is(err, unix.EBUSY):
		return "", fmt.Errorf("open tap %q: it is taken by another process: %w", name, err)
	case errors.Is(err, unix.EPERM):
		return "", fmt.Errorf("open tap %q: no permission: run as root, with CAP_NET_ADMIN, or on a tap that belongs to this user: %w", name, err)
	case errors.Is(err, unix.EINVAL):
		return "", fmt.Errorf("open tap %q: the name is impossible, or an interface of that name is no tap with one queue: %w", name, err)
	case err != nil:
		return "", fmt.Errorf("open tap %q: %w", name, err)
	}
	name = ifr.Name()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, VnetHeader); err != nil {
		return "", fmt.Errorf("set the vnet header of tap %q: %w", name, err)
	}
	// A guest that says nothing about offloads gets plain frames.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return "", fmt.Errorf("clear the offloads of tap %q: %w", name, err)
	}
	return name, nil
}

// Name is the interface's name.
func (t *Tap) Name() string { return t.name }

// Close detaches from the device and ends a Read that waits.
func (t *Tap) Close() error { return t.file.Close() }

// SetOffloads says what the reader can take: frames without a checksum, and segments of TCP larger than the MTU.
func (t *Tap) SetOffloads(csum, tso4, tso6, ecn bool) error {
	flags := 0
	for _, o := range []struct {
		on   bool
		flag int
	}{{csum, unix.TUN_F_CSUM}, {tso4, unix.TUN_F_TSO4}, {tso6, unix.TUN_F_TSO6}, {ecn, unix.TUN_F_TSO_ECN}} {
		if o.on {
			flags |= o.flag
		}
	}
	var ioctlErr error
	err := t.raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, flags) })
	if err = errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("set the offloads of tap %q to %#x: %w", t.name, flags, err)
	}
	return nil
}

// Read waits for one frame towards the guest and returns its length with the vnet header. A frame longer than p is cut.
func (t *Tap) Read(p []byte) (int, error) {
	n, err := t.file.Read(p)
	if err != nil {
		return 0, fmt.Errorf("read from tap %q: %w", t.name, err)
	}
	return n, nil
}

// Write implements Sink.
func (t *Tap) Write(frame []byte) error {
	t.out = frame
	err := t.raw.Write(t.writeOut)
	t.out = nil
	if err == nil {
		err = t.outErr
	}
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EINTR),
		// The kernel's answer for an interface that is down, which it may not stay.
		errors.Is(err, unix.EIO), errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("write to tap %q: %w: %w", t.name, ErrTryAgain, err)
	}
	return fmt.Errorf("write to tap %q: %w", t.name, err)
}
