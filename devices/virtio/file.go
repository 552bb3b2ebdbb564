package virtio

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// File is a BlockBackend: a raw file or a block device.
type File struct {
	file     *os.File
	fd       int // of file, which stays open as long as File is used
	path     string
	size     int64
	readOnly bool
}

const (
	// maxVec is how many buffers one system call takes (IOV_MAX).
	maxVec = 1024
	// zeroChunk is what is written at a time where the file system cannot make zeroes by itself.
	zeroChunk = 1 << 20
)

// OpenFile opens a raw disk image or a block device. It is locked against another Pollux that would write to it too.
func OpenFile(path string, readOnly bool) (*File, error) {
	flags, lock := os.O_RDWR, unix.LOCK_EX
	if readOnly {
		flags, lock = os.O_RDONLY, unix.LOCK_SH
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	f := &File{file: file, fd: int(file.Fd()), path: path, readOnly: readOnly}
	if err := unix.Flock(f.fd, lock|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("it is in use by another virtual machine")
		}
		return nil, errors.Join(fmt.Errorf("lock disk %s: %w", path, err), file.Close())
	}
	if f.size, err = diskSize(file); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", path, err), file.Close())
	}
	return f, nil
}

// diskSize is the size in bytes of a regular file or a block device that can be a disk.
func diskSize(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	switch mode := info.Mode(); {
	case mode.IsRegular():
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		if size, err = file.Seek(0, io.SeekEnd); err != nil {
			return 0, fmt.Errorf("find the size of the block device: %w", err)
		}
	default:
		return 0, errors.New("neither a regular file nor a block device")
	}
	if size == 0 || size%SectorSize != 0 {
		return 0, fmt.Errorf("size of %d bytes is not a multiple of %d, or is 0", size, SectorSize)
	}
	return size, nil
}

// Close closes the file. No other method may be called after.
func (f *File) Close() error { return f.file.Close() }

// Size implements BlockBackend.
func (f *File) Size() int64 { return f.size }

// ReadOnly implements BlockBackend.
func (f *File) ReadOnly() bool { return f.readOnly }

// ReadVec implements BlockBackend.
func (f *File) ReadVec(bufs [][]byte, off int64) error {
	if err := f.transfer(false, bufs, off); err != nil {
		return f.failed("read", off, err)
	}
	return nil
}

// WriteVec implements BlockBackend.
func (f *File) WriteVec(bufs [][]byte, off int64) error {
	if err := f.transfer(true, bufs, off); err != nil {
		return f.failed("write", off, err)
	}
	return nil
}

// transfer reads or writes all of bufs. The system calls may do less than they are asked for.
func (f *File) transfer(write bool, bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := f.vector(write, bufs[:min(len(bufs), maxVec)], off)
		if err != nil {
			return err
		}
		off += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n == 0 {
			continue
		}
		for n < len(bufs[0]) { // stopped inside of a buffer; the caller's slices must stay as they are
			m, err := f.single(write, bufs[0][n:], off)
			if err != nil {
				return err
			}
			off, n = off+int64(m), n+m
		}
		bufs = bufs[1:]
	}
	return nil
}

func (f *File) vector(write bool, bufs [][]byte, off int64) (n int, err error) {
	for {
		if write {
			n, err = unix.Pwritev(f.fd, bufs, off)
		} else {
			n, err = unix.Preadv(f.fd, bufs, off)
		}
		if !errors.Is(err, unix.EINTR) {
			return progress(n, err)
		}
	}
}

func (f *File) single(write bool, p []byte, off int64) (n int, err error) {
	for {
		if write {
			n, err = unix.Pwrite(f.fd, p, off)
		} else {
			n, err = unix.Pread(f.fd, p, off)
		}
		if !errors.Is(err, unix.EINTR) {
			return progress(n, err)
		}
	}
}

// progress makes an error of a transfer of nothing: the file was cut behind our back.
func progress(n int, err error) (int, error) {
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Flush implements BlockBackend.
func (f *File) Flush() error {
	for {
		err := unix.Fdatasync(f.fd)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return f.failed("flush", 0, err)
		}
	}
}

// Discard implements BlockBackend. A file system that cannot give space back keeps it: nothing is lost but the space.
func (f *File) Discard(off, n int64) error {
	err := f.allocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return f.failed("discard", off, err)
}

// WriteZeroes implements BlockBackend.
func (f *File) WriteZeroes(off, n int64, mayUnmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if mayUnmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := f.allocate(mode, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.writeZeroes(off, n)
	}
	return f.failed("write zeroes", off, err)
}

// allocate changes the allocation of a range. Linux does the same for block devices (fallocate(2), since 4.9).
func (f *File) allocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// writeZeroes writes them as data.
func (f *File) writeZeroes(off, n int64) error {
	zeroes := make([]byte, min(n, zeroChunk))
	for n > 0 {
		piece := zeroes[:min(n, zeroChunk)]
		if err := f.WriteVec([][]byte{piece}, off); err != nil {
			return err
		}
		off, n = off+int64(len(piece)), n-int64(len(piece))
	}
	return nil
}

// failed says what failed where; nil stays nil.
func (f *File) failed(what string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s disk %s at %d: %w", what, f.path, off, err)
}
