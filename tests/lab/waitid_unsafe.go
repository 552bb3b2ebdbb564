package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoBytes is the size of siginfo_t, and siginfoPID where si_pid is in it for SIGCHLD on 64-bit Linux (sigaction(2)).
const (
	siginfoBytes = 128
	siginfoPID   = 16
)

// peekChild returns the PID of a child that has ended and was not waited for, without waiting for it; 0 if there is none.
func peekChild() (int, error) {
	// x/sys wraps siginfo_t without its union, so it is read from plain memory. The array is as aligned as the kernel wants it.
	var info [siginfoBytes / 8]uint64
	err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil {
		return 0, fmt.Errorf("waitid: %w", err)
	}
	return int(*(*int32)(unsafe.Pointer(uintptr(unsafe.Pointer(&info)) + siginfoPID))), nil
}
