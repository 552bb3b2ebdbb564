package virtiotest

import "github.com/pollux-ha/pollux/devices/pci"

// Device status bits and features that every driver knows (virtio 1.2 §2.1, §6).
const (
	StatusAcknowledge = 1
	StatusDriver      = 2
	StatusDriverOK    = 4
	StatusFeaturesOK  = 8
	StatusNeedsReset  = 64
	StatusFailed      = 128

	FeatureIndirect = 1 << 28
	FeatureEventIdx = 1 << 29
	FeatureVersion1 = 1 << 32
)

// Registers of the common configuration (§4.1.4.3).
const (
	RegDeviceFeatureSelect = 0
	RegDeviceFeature       = 4
	RegDriverFeatureSelect = 8
	RegDriverFeature       = 12
	RegConfigVector        = 16
	RegNumQueues           = 18
	RegStatus              = 20
	RegGeneration          = 21
	RegQueueSelect         = 22
	RegQueueSize           = 24
	RegQueueVector         = 26
	RegQueueEnable         = 28
	RegQueueNotifyOff      = 30
	RegQueueDesc           = 32
	RegQueueDriver         = 40
	RegQueueDevice         = 48
)

// Types of virtio capabilities (§4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capWindow = 5
)

// ConfigVector is the MSI-X vector that drivers use for configuration changes; queue i uses vector i+1. The message of
// vector v is MessageBase+v.
const (
	ConfigVector = 0
	MessageBase  = 0x40
)

// Driver drives one virtio device.
type Driver struct {
	*Guest
	Slot     int
	Features uint64 // what was negotiated
	Rings    []*Ring

	Common, ISR, Device, Notify uint64 // addresses of the register structures
	Table                       uint64 // of the MSI-X table
	WindowAt                    int    // of the PCI configuration access capability
	NotifyStride                uint64
}

// Find discovers the device in a slot: it walks the capabilities, lets the device be bus master, and gives every MSI-X vector
// a message.
func Find(g *Guest, slot int) *Driver {
	g.t.Helper()
	d := &Driver{Guest: g, Slot: slot}
	if v := g.ConfigRead(slot, 0, 2); v != 0x1af4 {
		g.t.Fatalf("slot %d: vendor %#x, want virtio's", slot, v)
	}
	g.ConfigWrite(slot, 4, 2, g.ConfigRead(slot, 4, 2)|6)
	bar := func(at int) uint64 {
		return uint64(g.ConfigRead(slot, 0x10+4*int(g.ConfigRead(slot, at, 1)&7), 4) &^ 0xf)
	}
	for at := int(g.ConfigRead(slot, 0x34, 1)); at != 0; at = int(g.ConfigRead(slot, at+1, 1)) {
		switch g.ConfigRead(slot, at, 1) {
		case pci.CapVendor:
			base := bar(at+4) + uint64(g.ConfigRead(slot, at+8, 4))
			switch g.ConfigRead(slot, at+3, 1) {
			case capCommon:
				d.Common = base
			case capNotify:
				d.Notify, d.NotifyStride = base, uint64(g.ConfigRead(slot, at+16, 4))
			case capISR:
				d.ISR = base
			case capDevice:
				d.Device = base
			case capWindow:
				d.WindowAt = at
			}
		case pci.CapMSIX:
			d.setUpMSIX(at, bar(at+4)+uint64(g.ConfigRead(slot, at+4, 4)&^7))
		}
	}
	if d.Common == 0 || d.Notify == 0 || d.ISR == 0 || d.Table == 0 || d.WindowAt == 0 {
		g.t.Fatalf("slot %d: a capability is missing: %+v", slot, d)
	}
	return d
}

func (d *Driver) setUpMSIX(at int, table uint64) {
	d.Table = table
	control := d.ConfigRead(d.Slot, at+2, 2)
	d.ConfigWrite(d.Slot, at+2, 2, control|1<<15)
	for v := range uint64(control&0x7ff) + 1 {
		d.Write(table+16*v, 4, 0xfee00000)
		d.Write(table+16*v+4, 4, 0)
		d.Write(table+16*v+8, 4, MessageBase+v)
		d.Write(table+16*v+12, 4, 0)
	}
}

// CommonRead and CommonWrite access a register of the common configuration.
func (d *Driver) CommonRead(reg uint64, n int) uint64     { return d.Read(d.Common+reg, n) }
func (d *Driver) CommonWrite(reg uint64, n int, v uint64) { d.Write(d.Common+reg, n, v) }

// Status is the device status.
func (d *Driver) Status() uint64 { return d.CommonRead(RegStatus, 1) }

// AddStatus sets bits of the device status.
func (d *Driver) AddStatus(bits uint64) { d.CommonWrite(RegStatus, 1, d.Status()|bits) }

// Reset resets the device, and waits until it is (§2.4.2).
func (d *Driver) Reset() {
	d.t.Helper()
	d.CommonWrite(RegStatus, 1, 0)
	d.Await("reset", func() bool { return d.Status() == 0 })
	d.Rings, d.Features = nil, 0
}

// Offered is the features that the device offers.
func (d *Driver) Offered() uint64 {
	d.CommonWrite(RegDeviceFeatureSelect, 4, 1)
	high := d.CommonRead(RegDeviceFeature, 4)
	d.CommonWrite(RegDeviceFeatureSelect, 4, 0)
	return high<<32 | d.CommonRead(RegDeviceFeature, 4)
}

// Accept writes exactly these features and reports whether the device takes them.
func (d *Driver) Accept(features uint64) bool {
	d.AddStatus(StatusAcknowledge)
	d.AddStatus(StatusDriver)
	for half := range uint64(2) {
		d.CommonWrite(RegDriverFeatureSelect, 4, half)
		d.CommonWrite(RegDriverFeature, 4, features>>(32*half)&0xffffffff)
	}
	d.AddStatus(StatusFeaturesOK)
	d.Features = features
	return d.Status()&StatusFeaturesOK != 0
}

// Start resets the device, negotiates those of the wanted features that are offered, sets all queues up with at most size
// descriptors, and makes the device ready (§3.1.1).
func (d *Driver) Start(wanted uint64, size uint16) {
	d.t.Helper()
	d.Reset()
	if !d.Accept(d.Offered() & (wanted | FeatureVersion1)) {
		d.t.Fatalf("features %#x are refused", d.Features)
	}
	d.CommonWrite(RegConfigVector, 2, ConfigVector)
	for i := range uint16(d.CommonRead(RegNumQueues, 2)) {
		d.Rings = append(d.Rings, d.setUpRing(i, size))
	}
	d.AddStatus(StatusDriverOK)
	if s := d.Status(); s != StatusAcknowledge|StatusDriver|StatusFeaturesOK|StatusDriverOK {
		d.t.Fatalf("status %#x after the start", s)
	}
}

func (d *Driver) setUpRing(i, size uint16) *Ring {
	d.t.Helper()
	d.CommonWrite(RegQueueSelect, 2, uint64(i))
	if limit := uint16(d.CommonRead(RegQueueSize, 2)); size > limit {
		size = limit
	}
	r := newRing(d, i, size)
	d.CommonWrite(RegQueueSize, 2, uint64(size))
	d.CommonWrite(RegQueueVector, 2, uint64(i)+1)
	for reg, address := range map[uint64]uint64{RegQueueDesc: r.desc, RegQueueDriver: r.avail, RegQueueDevice: r.used} {
		d.CommonWrite(reg, 4, address&0xffffffff)
		d.CommonWrite(reg+4, 4, address>>32)
	}
	d.CommonWrite(RegQueueEnable, 2, 1)
	r.notify = d.Notify + d.CommonRead(RegQueueNotifyOff, 2)*d.NotifyStride
	return r
}

// QueueInterrupts is how many interrupts queue i has raised.
func (d *Driver) QueueInterrupts(i int) int { return d.Interrupts(MessageBase + uint32(i) + 1) }

// ConfigInterrupts is how many interrupts the configuration has raised.
func (d *Driver) ConfigInterrupts() int { return d.Interrupts(MessageBase + ConfigVector) }

// MoveTo is this driver on another guest, which has inherited the memory of this one.
func (d *Driver) MoveTo(g *Guest) *Driver {
	moved := *d
	moved.Guest = g
	moved.Rings = nil
	for _, r := range d.Rings {
		ring := *r
		ring.d = &moved
		ring.free = append([]uint16(nil), r.free...)
		ring.chains = map[uint16][]uint16{}
		for head, chain := range r.chains {
			ring.chains[head] = append([]uint16(nil), chain...)
		}
		moved.Rings = append(moved.Rings, &ring)
	}
	return &moved
}
