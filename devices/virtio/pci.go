package virtio

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/pollux-ha/pollux/devices/pci"
)

// The registers lie behind one BAR, a page for each kind, so that a driver may map them separately.
const (
	barIndex = 0
	barSize  = 0x8000

	commonBase = 0x0000
	isrBase    = 0x1000
	deviceBase = 0x2000
	notifyBase = 0x3000
	tableBase  = 0x4000
	pbaBase    = 0x5000
	pageSize   = 0x1000

	commonSize = 56 // up to queue_device: the later fields come with features that are not offered
	isrSize    = 1

	// notifyStride is the distance of the queues' notification registers (notify_off_multiplier, §4.1.4.4). An address for
	// each queue lets the kernel tell them apart without looking at what is written.
	notifyStride = 4
	// notifySize is the width of the driver's notification without VIRTIO_F_NOTIFICATION_DATA (§4.1.5.2).
	notifySize = 2
)

// Types of virtio PCI capabilities (§4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capPCI    = 5

	// Offsets in struct virtio_pci_cap, from its start.
	capFieldBAR    = 4
	capFieldOffset = 8
	capFieldLength = 12
	capFieldData   = 16
)

const (
	pciVendor     = 0x1af4
	pciDeviceBase = 0x1040 // plus the device type, for devices that are not transitional (§4.1.2)
	pciSubsystem  = 0x1100
)

// initPCI builds the PCI function: capabilities, BAR, MSI-X with a vector for each queue and one for the configuration.
func (t *transport) initPCI(id identity) error {
	t.function = pci.NewFunction(t.name, pci.Identity{
		Vendor: pciVendor, Device: pciDeviceBase + id.deviceType, Revision: 1, Class: id.pciClass,
		SubVendor: pciVendor, Subsystem: pciSubsystem,
	})
	t.bar = &registerBAR{t: t}
	if err := t.function.AddBAR(barIndex, barSize, t.bar); err != nil {
		return err
	}
	notifyLength := uint32(len(t.queues) * notifyStride)
	for _, c := range []struct {
		kind           uint8
		offset, length uint32
		extra          []byte
	}{
		{capCommon, commonBase, commonSize, nil},
		{capNotify, notifyBase, notifyLength, []byte{notifyStride, 0, 0, 0}},
		{capISR, isrBase, isrSize, nil},
		{capDevice, deviceBase, uint32(len(t.class.config())), nil},
	} {
		if c.length == 0 {
			continue // a class without configuration has no such capability (§4.1.4.6)
		}
		body, _ := vendorCapability(c.kind, c.offset, c.length, c.extra)
		if _, err := t.function.AddCapability(pci.CapVendor, body, nil); err != nil {
			return err
		}
	}
	if err := t.addWindow(); err != nil {
		return err
	}
	var err error
	t.msix, err = t.function.AddMSIX(barIndex, tableBase, pbaBase, len(t.queues)+1, t.host.MSI)
	t.function.OnBusMaster(t.kickAll)
	return err
}

// addWindow adds the capability through which a driver that cannot map the BAR reaches it (§4.1.4.9).
func (t *transport) addWindow() error {
	body, mask := vendorCapability(capPCI, 0, 0, make([]byte, 4))
	const header = 2 // body and mask begin after the capability's ID and link
	mask[capFieldBAR-header] = 0xff
	for i := capFieldOffset; i < capFieldData; i++ {
		mask[i-header] = 0xff
	}
	at, err := t.function.AddCapability(pci.CapVendor, body, mask)
	if err != nil {
		return fmt.Errorf("%s: window capability: %w", t.name, err)
	}
	t.function.SetWindow(at+capFieldData, 4, &configWindow{bar: t.bar, function: t.function, at: at})
	return nil
}

// vendorCapability is struct virtio_pci_cap without its first two bytes, and a mask of the same length, all zero.
func vendorCapability(kind uint8, offset, length uint32, extra []byte) (body, mask []byte) {
	body = make([]byte, 14, 14+len(extra))
	body[0] = uint8(16 + len(extra)) // cap_len
	body[1] = kind
	body[2] = barIndex
	binary.LittleEndian.PutUint32(body[6:], offset)
	binary.LittleEndian.PutUint32(body[10:], length)
	body = append(body, extra...)
	return body, make([]byte, len(body))
}

// configWindow is the field pci_cfg_data: an access to it is one to the BAR, where the rest of the capability says.
type configWindow struct {
	bar      *registerBAR
	function *pci.Function
	at       int
}

// ReadWindow implements pci.Window.
func (w *configWindow) ReadWindow(offset int, p []byte) {
	var data [4]byte
	if address, n, ok := w.target(); ok {
		w.bar.Read(address, data[:n])
	}
	copy(p, data[offset:])
}

// WriteWindow implements pci.Window.
func (w *configWindow) WriteWindow(offset int, p []byte) {
	address, n, ok := w.target()
	if ok && offset == 0 && len(p) >= n {
		w.bar.Write(address, p[:n])
	}
}

// target is where the driver wants to access; ok false: nowhere that is allowed (§4.1.4.9.1).
func (w *configWindow) target() (offset uint64, n int, ok bool) {
	offset = uint64(w.function.Field(w.at+capFieldOffset, 4))
	length := w.function.Field(w.at+capFieldLength, 4)
	ok = w.function.Field(w.at+capFieldBAR, 1) == barIndex && (length == 1 || length == 2 || length == 4) &&
		offset%uint64(length) == 0 && offset+uint64(length) <= barSize
	return offset, int(length), ok
}

// registerBAR is the memory behind the BAR.
type registerBAR struct {
	t *transport

	mu   sync.Mutex
	base uint64 // where the queues' eventfds are attached; 0: nowhere
}

// Moved implements pci.Region: notifications follow the BAR.
func (b *registerBAR) Moved(base uint64, mapped bool) {
	b.detach()
	if b.t.host.Notifier == nil || !mapped {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.base = base
	for i, q := range b.t.queues {
		if err := b.t.host.Notifier.Attach(notifyAddress(base, i), notifySize, q.kick.fd); err != nil {
			// Slower, not wrong: the write comes to the MMIO bus then.
			b.t.log.Warn("notifications go through the VMM", "queue", i, "error", err)
		}
	}
}

// detach undoes what Moved attached.
func (b *registerBAR) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.base == 0 {
		return
	}
	for i, q := range b.t.queues {
		if err := b.t.host.Notifier.Detach(notifyAddress(b.base, i), notifySize, q.kick.fd); err != nil {
			b.t.log.Warn("a notification stays attached", "queue", i, "error", err)
		}
	}
	b.base = 0
}

func notifyAddress(base uint64, queue int) uint64 {
	return base + notifyBase + uint64(queue)*notifyStride
}

// Read implements devices.Handler.
func (b *registerBAR) Read(offset uint64, p []byte) {
	clear(p)
	at := offset % pageSize
	switch offset - at {
	case commonBase:
		b.t.readCommon(at, p)
	case isrBase:
		b.t.readISR(at, p)
	case deviceBase:
		b.t.readConfig(at, p)
	case tableBase:
		b.t.msix.ReadTable(at, p)
	case pbaBase:
		b.t.msix.ReadPBA(at, p)
	}
}

// Write implements devices.Handler.
func (b *registerBAR) Write(offset uint64, p []byte) {
	at := offset % pageSize
	switch offset - at {
	case commonBase:
		b.t.writeCommon(at, p)
	case deviceBase:
		b.t.writeConfig(at, p)
	case notifyBase:
		if i := at / notifyStride; at%notifyStride == 0 && i < uint64(len(b.t.queues)) {
			b.t.queues[i].kick.signal()
		}
	case tableBase:
		b.t.msix.WriteTable(at, p)
	}
}
