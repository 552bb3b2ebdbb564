package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layout of struct kvm_run, the run page (include/uapi/linux/kvm.h).
const (
	runExitReason = 8
	runUnion      = 32
	runPageMin    = runUnion + 256

	runIODirection  = runUnion
	runIOSize       = runUnion + 1
	runIOPort       = runUnion + 2
	runIOCount      = runUnion + 4
	runIODataOffset = runUnion + 8

	runMMIOAddress = runUnion
	runMMIOData    = runUnion + 8
	runMMIOLength  = runUnion + 16
	runMMIOIsWrite = runUnion + 20
)

// ErrInterrupted is Run's result when the vCPU was kicked out, or did not enter because of SetImmediateExit. There is no
// exit to handle, and every exit handled before is complete: the vCPU's registers are consistent and may be saved.
var ErrInterrupted = errors.New("vCPU interrupted")

// immediateExit is the second byte of the run page; the first, request_interrupt_window, is always 0 here.
const immediateExit = 0x0100

// SetImmediateExit makes the next Run, or the one that is entering, return ErrInterrupted without executing the guest,
// but not before it has completed the exit handled last (KVM API §5, "immediate_exit"). It stays until taken back. It
// may be called from any goroutine.
//
// A vCPU that is already executing the guest takes a signal to its thread too: set this first, then send the signal, and
// there is no moment at which both are missed.
func (c *VCPU) SetImmediateExit(on bool) {
	var v uint32
	if on {
		v = immediateExit
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&c.run[0])), v)
}

// Run enters the guest until it exits. On nil, Exit tells why. ErrInterrupted is no failure; after any error there is no
// exit to look at.
func (c *VCPU) Run() error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.fd, ioctlRun, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			return ErrInterrupted
		case unix.EAGAIN:
			// A vCPU that waited for another one to start it was woken, perhaps because it has been started.
			continue
		default:
			return fmt.Errorf("run vCPU %d: %w", c.id, errno)
		}
	}
}

// Exit is the reason of the exit that Run returned nil for.
func (c *VCPU) Exit() ExitReason {
	return ExitReason(binary.LittleEndian.Uint32(c.run[runExitReason:]))
}

// IO describes an ExitIO. Data aliases the run page: for a write it holds the guest's bytes, for a read the caller fills
// it before the next Run.
type IO struct {
	Write bool
	Port  uint16
	Size  int // of one access: 1, 2 or 4
	Count int // of accesses, more than 1 for a string instruction; len(Data) is Size * Count
	Data  []byte
}

// IO decodes an ExitIO.
func (c *VCPU) IO() (IO, error) {
	io := IO{
		Write: c.run[runIODirection] == 1,
		Size:  int(c.run[runIOSize]),
		Port:  binary.LittleEndian.Uint16(c.run[runIOPort:]),
		Count: int(binary.LittleEndian.Uint32(c.run[runIOCount:])),
	}
	offset := binary.LittleEndian.Uint64(c.run[runIODataOffset:])
	n := uint64(io.Size) * uint64(io.Count)
	if offset > uint64(len(c.run)) || n > uint64(len(c.run))-offset {
		return IO{}, fmt.Errorf("vCPU %d: I/O exit with %d bytes at offset %#x of its run page", c.id, n, offset)
	}
	io.Data = c.run[offset : offset+n : offset+n]
	return io, nil
}

// MMIO describes an ExitMMIO. Data aliases the run page, as with IO; it is 1 to 8 bytes long.
type MMIO struct {
	Write   bool
	Address uint64
	Data    []byte
}

// MMIO decodes an ExitMMIO.
func (c *VCPU) MMIO() (MMIO, error) {
	n := binary.LittleEndian.Uint32(c.run[runMMIOLength:])
	if n == 0 || n > 8 {
		return MMIO{}, fmt.Errorf("vCPU %d: MMIO exit with %d bytes", c.id, n)
	}
	return MMIO{
		Write:   c.run[runMMIOIsWrite] != 0,
		Address: binary.LittleEndian.Uint64(c.run[runMMIOAddress:]),
		Data:    c.run[runMMIOData : runMMIOData+n : runMMIOData+n],
	}, nil
}

// SystemEvent is the type of an ExitSystemEvent.
func (c *VCPU) SystemEvent() SystemEvent {
	return SystemEvent(binary.LittleEndian.Uint32(c.run[runUnion:]))
}

// FailEntry is the hardware's reason of an ExitFailEntry.
func (c *VCPU) FailEntry() uint64 { return binary.LittleEndian.Uint64(c.run[runUnion:]) }

// InternalError is the suberror of an ExitInternalError, and the data words that came with it.
func (c *VCPU) InternalError() (suberror InternalError, data []uint64) {
	u := c.run[runUnion:]
	suberror = InternalError(binary.LittleEndian.Uint32(u))
	n := min(binary.LittleEndian.Uint32(u[4:]), 16)
	for i := range n {
		data = append(data, binary.LittleEndian.Uint64(u[8+8*i:]))
	}
	return suberror, data
}
