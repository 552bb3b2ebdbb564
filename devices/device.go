package devices

import "github.com/pollux-ha/pollux/devices/state"

// Device is one piece of hardware that the guest sees and that a checkpoint carries to the twin.
//
// A device is created frozen, so that a standby can build its whole machine before takeover without a device consuming
// input or raising an interrupt. The first Thaw starts it. A device with goroutines also has Close() error, which stops
// them and waits.
type Device interface {
	// Name is stable and unique within the machine ("serial0", "net0"). It labels the device's section of the state.
	Name() string

	// Freeze returns when nothing of the device touches guest memory, its own state, the order in which output reaches
	// its backend, or an interrupt, until Thaw. It must not wait for slow I/O: requests in flight are part of the
	// state and are executed again after Load. The vCPUs have stopped before it is called. Idempotent.
	Freeze()

	// Thaw lets the device run again. It looks at its queues anew and raises again what is pending, because after a
	// Load nobody else will. The vCPUs start after it. Idempotent.
	Thaw()

	// Save appends the device's state. It may be called only while the device is frozen, and it does not allocate in
	// the steady state: it runs inside every checkpoint's pause.
	Save(e *state.Encoder)

	// Load replaces the state of a fresh, frozen device of the same configuration. The bytes come from a peer or a
	// file: values that cannot be are refused with an error that names the field, and then nothing has changed.
	Load(d *state.Decoder) error
}

// Line is an interrupt line into the interrupt controller (KVM API §4.25, KVM_IRQ_LINE). An edge-triggered interrupt is
// Set(true) followed by Set(false).
type Line interface {
	Set(level bool)
}

// MSISender delivers message-signalled interrupts (PCI 3.0 §6.8; KVM API §4.71, KVM_SIGNAL_MSI). Delivery is
// synchronous: when SignalMSI returns, the interrupt is in the local APIC's state, and a checkpoint captured afterwards
// holds it.
type MSISender interface {
	SignalMSI(address uint64, data uint32)
}

// Handler answers the guest's accesses to one range of a Bus. The offset is relative to the range's base; len(p) is 1,
// 2, 4 or 8, and the access lies whole inside the range. Reads fill p; bytes are little endian.
type Handler interface {
	Read(offset uint64, p []byte)
	Write(offset uint64, p []byte)
}
