package devices

// PvpanicPort is where the DSDT says that the pvpanic device is; one byte wide.
const PvpanicPort = 0x505

// PanicEvents are what a guest tells through pvpanic, as bits.
type PanicEvents uint8

// The events of QEMU's pvpanic specification that this device offers.
const (
	// PanicPanicked: the guest's kernel has panicked and is not going to do anything about it itself.
	PanicPanicked PanicEvents = 1 << 0
	// PanicCrashLoaded: the guest's kernel has panicked, and its crash kernel takes over.
	PanicCrashLoaded PanicEvents = 1 << 1

	panicOffered = PanicPanicked | PanicCrashLoaded
)

// Pvpanic is the device through which a guest's kernel reports that it has panicked.
type Pvpanic struct {
	gate
	name    string
	onPanic func(PanicEvents)

	seen PanicEvents // all events so far: a guest that was taken over has still panicked
}

// NewPvpanic returns a frozen pvpanic device. The callback runs on the vCPU that reported, with at least one event, and
// must neither block nor freeze the machine.
func NewPvpanic(name string, onPanic func(PanicEvents)) *Pvpanic {
	v := &Pvpanic{name: name, onPanic: onPanic}
	v.frozen = true
	return v
}

// Name implements Device.
func (v *Pvpanic) Name() string { return v.name }

// Thaw implements Device.
func (v *Pvpanic) Thaw() {
	v.mu.Lock()
	v.frozen = false
	v.mu.Unlock()
}

// Read implements Handler: the events that are understood.
func (v *Pvpanic) Read(_ uint64, p []byte) {
	clear(p)
	p[0] = uint8(panicOffered)
}

// Write implements Handler.
func (v *Pvpanic) Write(_ uint64, p []byte) {
	events := PanicEvents(p[0]) & panicOffered
	if events == 0 {
		return
	}
	v.mu.Lock()
	v.seen |= events
	v.mu.Unlock()
	v.onPanic(events)
}

// Seen is every event that the guest has reported, here or on the host that this machine was taken over from.
func (v *Pvpanic) Seen() PanicEvents {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}
