package netbuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// recorderBuffer is how many bytes the kernel may keep for a recorder that is behind.
const recorderBuffer = 32 << 20

// snapLength is the longest frame that is recorded whole: one segment of 64 KiB with its headers.
const snapLength = 1 << 17

// Recorder writes every frame that goes over an interface, in either direction, to a pcap file with times in
// nanoseconds as the kernel saw them.
type Recorder struct {
	file   *os.File
	raw    syscall.RawConn
	out    *pcapgo.Writer
	index  int
	done   chan struct{}
	frames uint64
	err    error // of the recording goroutine; valid after done
}

// Record starts to write what goes over the interface name to w; it is recording when it returns.
func Record(name string, w io.Writer) (*Recorder, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("record interface %q: %w", name, err)
	}
	fd, err := packetSocket(ifi.Index)
	if err != nil {
		return nil, fmt.Errorf("record interface %q: %w", name, err)
	}
	r := &Recorder{file: os.NewFile(uintptr(fd), "recorder of "+name), out: pcapgo.NewWriterNanos(w), index: ifi.Index, done: make(chan struct{})}
	if err := r.out.WriteFileHeader(snapLength, layers.LinkTypeEthernet); err != nil {
		return nil, errors.Join(fmt.Errorf("record interface %q: write the pcap header: %w", name, err), r.file.Close())
	}
	if r.raw, err = r.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("record interface %q: %w", name, err), r.file.Close())
	}
	go r.run()
	return r, nil
}

// packetSocket opens a socket that sees all frames of one interface, with times.
func packetSocket(index int) (int, error) {
	// Protocol 0 until it is bound: nothing of other interfaces gets in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open a packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recorderBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
	)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("prepare a packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (r *Recorder) run() {
	defer close(r.done)
	frame := make([]byte, snapLength)
	oob := make([]byte, 256)
	wait := r.raw.Read
	for {
		n, at, err := receive(wait, frame, oob)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			wait = r.poll // stopped: what has arrived is still to be written
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENETDOWN):
			// The interface may come up again.
		case err != nil:
			r.err = fmt.Errorf("record: receive: %w", err)
			return
		default:
			if err := r.write(frame, n, at); err != nil {
				r.err = fmt.Errorf("record: write: %w", err)
				return
			}
		}
	}
}

// write appends a frame of n bytes, of which frame holds what fits.
func (r *Recorder) write(frame []byte, n int, at time.Time) error {
	info := gopacket.CaptureInfo{Timestamp: at, CaptureLength: min(n, len(frame)), Length: n, InterfaceIndex: r.index}
	if err := r.out.WritePacket(info, frame[:info.CaptureLength]); err != nil {
		return err
	}
	r.frames++
	return nil
}

// poll calls f once, as RawConn.Read would if there were something to read.
func (r *Recorder) poll(f func(fd uintptr) bool) error {
	return r.raw.Control(func(fd uintptr) { f(fd) })
}

// receive takes one frame by wait; n is its length, also if it was cut.
func receive(wait func(func(fd uintptr) bool) error, frame, oob []byte) (n int, at time.Time, err error) {
	var oobn int
	var recvErr error
	err = wait(func(fd uintptr) bool {
		n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), frame, oob, unix.MSG_TRUNC)
		return !errors.Is(recvErr, unix.EAGAIN)
	})
	if err == nil {
		err = recvErr
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	at, err = timestamp(oob[:oobn])
	return n, at, err
}

// timestamp finds the kernel's time of a frame in its control messages.
func timestamp(oob []byte) (time.Time, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, fmt.Errorf("parse the control messages of a frame: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), nil
		}
	}
	return time.Time{}, errors.New("a frame came without its time")
}

// Stop writes what has arrived so far, ends the recording and returns how many frames were recorded and how many the
// kernel dropped because the recorder was behind: a proof needs that to be zero.
func (r *Recorder) Stop() (frames, dropped uint64, err error) {
	// What is on its way through the kernel gets a moment; then the recording goes on only as long as frames are waiting.
	deadlineErr := r.file.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	<-r.done
	var stats *unix.TpacketStats
	var statsErr error
	err = r.raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(r.err, deadlineErr, err, statsErr, r.file.Close()); err != nil {
		return r.frames, 0, err
	}
	return r.frames, uint64(stats.Drops), nil
}
