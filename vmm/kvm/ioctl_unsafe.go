package kvm

import (
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Numbers of the ioctls that gokvm lacks (include/uapi/linux/kvm.h), by the object they are made on.
var (
	// System.
	ioctlGetMSRIndexList = gokvm.IIOWR(0x02, 4)

	// VM.
	ioctlSetUserMemoryRegion = gokvm.IIOW(0x46, unsafe.Sizeof(gokvm.UserspaceMemoryRegion{}))
	ioctlGetDirtyLog         = gokvm.IIOW(0x42, unsafe.Sizeof(dirtyLog{}))
	ioctlSetIdentityMapAddr  = gokvm.IIOW(0x48, 8)
	ioctlIRQLine             = gokvm.IIOW(0x61, unsafe.Sizeof(irqLevel{}))
	ioctlSetGSIRouting       = gokvm.IIOW(0x6a, 8)
	ioctlIRQFD               = gokvm.IIOW(0x76, unsafe.Sizeof(irqfd{}))
	ioctlCreatePIT2          = gokvm.IIOW(0x77, unsafe.Sizeof(pitConfig{}))
	ioctlIOEventFD           = gokvm.IIOW(0x79, unsafe.Sizeof(ioeventfd{}))
	ioctlEnableCap           = gokvm.IIOW(0xa3, unsafe.Sizeof(enableCap{}))
	ioctlSignalMSI           = gokvm.IIOW(0xa5, unsafe.Sizeof(msi{}))
	ioctlClearDirtyLog       = gokvm.IIOWR(0xc0, unsafe.Sizeof(clearDirtyLog{}))

	// vCPU.
	ioctlRun          = gokvm.IIO(0x80)
	ioctlGetRegs      = gokvm.IIOR(0x81, unsafe.Sizeof(Regs{}))
	ioctlGetSregs     = gokvm.IIOR(0x83, unsafe.Sizeof(Sregs{}))
	ioctlGetMSRs      = gokvm.IIOWR(0x88, 8)
	ioctlSetMSRs      = gokvm.IIOW(0x89, 8)
	ioctlGetXSAVE     = gokvm.IIOR(0xa4, minXSAVE)
	ioctlSetXSAVE     = gokvm.IIOW(0xa5, minXSAVE)
	ioctlKVMClockCtrl = gokvm.IIO(0xad)
	ioctlGetXSAVE2    = gokvm.IIOR(0xcf, minXSAVE)
)

// ioctl makes the call with a pointer argument and repeats it when a signal interrupts it: the Go runtime sends signals
// to its threads at any time. Not for KVM_RUN, where being interrupted is a result.
func ioctl(fd, op uintptr, arg unsafe.Pointer) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, op, uintptr(arg))
		if errno == 0 {
			return r, nil
		}
		if errno != unix.EINTR {
			return r, errno
		}
	}
}

// ioctlValue is ioctl with a plain number as its argument.
func ioctlValue(fd, op, arg uintptr) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, op, arg)
		if errno == 0 {
			return r, nil
		}
		if errno != unix.EINTR {
			return r, errno
		}
	}
}
