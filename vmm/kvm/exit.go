package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// ExitReason is why KVM returned to user space.
type ExitReason uint32

// The exits that can happen on x86 without features that Pollux never enables.
const (
	ExitUnknown       = ExitReason(gokvm.EXITUNKNOWN)
	ExitException     = ExitReason(gokvm.EXITEXCEPTION)
	ExitIO            = ExitReason(gokvm.EXITIO)
	ExitHypercall     = ExitReason(gokvm.EXITHYPERCALL)
	ExitDebug         = ExitReason(gokvm.EXITDEBUG)
	ExitHLT           = ExitReason(gokvm.EXITHLT)
	ExitMMIO          = ExitReason(gokvm.EXITMMIO)
	ExitIRQWindow     = ExitReason(gokvm.EXITIRQWINDOWOPEN)
	ExitShutdown      = ExitReason(gokvm.EXITSHUTDOWN)
	ExitFailEntry     = ExitReason(gokvm.EXITFAILENTRY)
	ExitInterrupted   = ExitReason(gokvm.EXITINTR)
	ExitSetTPR        = ExitReason(gokvm.EXITSETTPR)
	ExitTPRAccess     = ExitReason(gokvm.EXITTPRACCESS)
	ExitNMI           = ExitReason(gokvm.EXITNMI)
	ExitInternalError = ExitReason(gokvm.EXITINTERNALERROR)
	ExitSystemEvent   = ExitReason(24)
	ExitIOAPICEOI     = ExitReason(26)
)

func (r ExitReason) String() string {
	switch r {
	case ExitSystemEvent:
		return "system event"
	case ExitIOAPICEOI:
		return "I/O APIC EOI"
	}
	if r <= ExitInternalError {
		return gokvm.ExitType(r).String()
	}
	return fmt.Sprintf("exit %d", uint32(r))
}

// SystemEvent is what an ExitSystemEvent asks for.
type SystemEvent uint32

// KVM_SYSTEM_EVENT_*.
const (
	SystemShutdown SystemEvent = 1
	SystemReset    SystemEvent = 2
	SystemCrash    SystemEvent = 3
)

// InternalError is why KVM cannot go on with a vCPU.
type InternalError uint32

// KVM_INTERNAL_ERROR_*.
const (
	ErrorEmulation         InternalError = 1
	ErrorSimultaneous      InternalError = 2
	ErrorDeliveringEvent   InternalError = 3
	ErrorUnexpectedVMExit  InternalError = 4
	maxInternalErrorNumber               = ErrorUnexpectedVMExit
)

func (e InternalError) String() string {
	names := [...]string{
		ErrorEmulation:        "KVM cannot emulate an instruction",
		ErrorSimultaneous:     "two exceptions at once",
		ErrorDeliveringEvent:  "exit while delivering an event",
		ErrorUnexpectedVMExit: "unexpected exit reason",
	}
	if e == 0 || e > maxInternalErrorNumber {
		return fmt.Sprintf("internal error %d", uint32(e))
	}
	return names[e]
}
