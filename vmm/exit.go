package vmm

import "fmt"

// ExitReason is why a machine is over.
type ExitReason int

// The reasons; zero is invalid.
const (
	// ExitPowerOff: the guest switched itself off (ACPI S5).
	ExitPowerOff ExitReason = iota + 1
	// ExitReboot: the guest asked for a reset.
	ExitReboot
	// ExitPanic: the guest's kernel died: it said so (pvpanic), or a vCPU shut down (triple fault).
	ExitPanic
	// ExitError: the VMM cannot go on; Run's error says why.
	ExitError
	// ExitStopped: Run's context was cancelled or Stop was called.
	ExitStopped
)

func (r ExitReason) String() string {
	switch r {
	case ExitPowerOff:
		return "power-off"
	case ExitReboot:
		return "reboot"
	case ExitPanic:
		return "guest panic"
	case ExitError:
		return "VMM error"
	case ExitStopped:
		return "stopped"
	}
	return fmt.Sprintf("exit reason %d", int(r))
}

// Exit says how a machine ended.
type Exit struct {
	Reason ExitReason
	Detail string // for people: which vCPU, which register, which port; may be empty
}

func (e Exit) String() string {
	if e.Detail == "" {
		return e.Reason.String()
	}
	return e.Reason.String() + ": " + e.Detail
}
