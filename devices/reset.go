package devices

// ResetPort is the reset control register of the PIIX and its successors; the FADT names it (ACPI 6.5 §4.8.3.6) with
// ResetValue. It lies inside of the double word of PCI's configuration address, which takes only four-byte accesses; the
// PCI root hands one-byte accesses on (pci.Config.ResetControl).
const (
	ResetPort  = 0xcf9
	ResetValue = resetCPU | resetSystem
)

const (
	resetSystem = 0x02 // a hard reset, rather than one of the processor alone
	resetCPU    = 0x04 // its rising edge resets
)

// Reset is the reset control register. The callback runs on the vCPU that wrote it and must neither block nor freeze the
// machine; it tells the machine's owner, who does.
type Reset struct {
	gate
	name    string
	onReset func()
	value   uint8
}

// NewReset returns a frozen reset register that calls onReset when the guest asks for a reset.
func NewReset(name string, onReset func()) *Reset {
	r := &Reset{name: name, onReset: onReset}
	r.frozen = true
	return r
}

// Name implements Device.
func (r *Reset) Name() string { return r.name }

// Thaw implements Device.
func (r *Reset) Thaw() {
	r.mu.Lock()
	r.frozen = false
	r.mu.Unlock()
}

// Read implements Handler.
func (r *Reset) Read(_ uint64, p []byte) {
	clear(p)
	r.mu.Lock()
	p[0] = r.value
	r.mu.Unlock()
}

// Write implements Handler.
func (r *Reset) Write(_ uint64, p []byte) {
	r.mu.Lock()
	fire := p[0]&resetCPU != 0 && r.value&resetCPU == 0
	// The trigger bit does not stay: the machine that comes out of the reset finds it clear, and one whose owner
	// ignores the reset can ask again.
	r.value = p[0] & resetSystem
	r.mu.Unlock()
	if fire {
		r.onReset()
	}
}
