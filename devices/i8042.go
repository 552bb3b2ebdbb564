package devices

// The ports of the keyboard controller. 0x61 between them belongs to the timer.
const (
	I8042DataPort    = 0x60
	I8042CommandPort = 0x64
)

// Commands 0xF0 to 0xFF pulse the output lines whose bits are 0; bit 0 is the processor's reset.
const (
	i8042PulseMask  = 0xf0
	i8042PulseReset = 0x01
)

// I8042 answers on both ports of the keyboard controller of a machine without a keyboard, one byte wide each. All that
// is there is the command that pulses the processor's reset line. Everything else reads as an absent device, so that a
// driver which probes in spite of the FADT ("no 8042") gives up at its first read instead of waiting for time-outs.
//
// It has no state, and so is not a Device.
type I8042 struct {
	// OnReset is called when the guest pulses the reset line. It runs on the vCPU that asked and must neither block nor
	// freeze the machine.
	OnReset func()
}

// CommandPort is the handler for I8042CommandPort.
func (k I8042) CommandPort() Handler { return i8042Command(k) }

// DataPort is the handler for I8042DataPort.
func (k I8042) DataPort() Handler { return absent{} }

type i8042Command struct {
	OnReset func()
}

func (i8042Command) Read(_ uint64, p []byte) { absent{}.Read(0, p) }

func (c i8042Command) Write(_ uint64, p []byte) {
	if p[0]&i8042PulseMask == i8042PulseMask && p[0]&i8042PulseReset == 0 {
		c.OnReset()
	}
}

// absent answers like an empty bus.
type absent struct{}

func (absent) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

func (absent) Write(uint64, []byte) {}
