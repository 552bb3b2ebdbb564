package virtio

import "encoding/binary"

// Fields of the common configuration structure (virtio 1.2 §4.1.4.3).
const (
	regDeviceFeatureSelect = 0
	regDeviceFeature       = 4
	regDriverFeatureSelect = 8
	regDriverFeature       = 12
	regConfigVector        = 16
	regNumQueues           = 18
	regStatus              = 20
	regGeneration          = 21
	regQueueSelect         = 22
	regQueueSize           = 24
	regQueueVector         = 26
	regQueueEnable         = 28
	regQueueNotifyOff      = 30
	regQueueDesc           = 32
	regQueueDriver         = 40
	regQueueDevice         = 48
)

// readCommon is a read of the common configuration at any offset and width. The lock makes it see one moment.
func (t *transport) readCommon(offset uint64, p []byte) {
	if offset >= commonSize {
		return
	}
	var image [commonSize]byte
	t.mu.Lock()
	t.commonImage(&image)
	t.mu.Unlock()
	copy(p, image[offset:])
}

func (t *transport) commonImage(b *[commonSize]byte) {
	le := binary.LittleEndian
	r := &t.regs
	le.PutUint32(b[regDeviceFeatureSelect:], r.deviceFeatureSelect)
	le.PutUint32(b[regDeviceFeature:], word(t.offered, r.deviceFeatureSelect))
	le.PutUint32(b[regDriverFeatureSelect:], r.driverFeatureSelect)
	le.PutUint32(b[regDriverFeature:], word(r.driverFeatures, r.driverFeatureSelect))
	le.PutUint16(b[regConfigVector:], r.configVector)
	le.PutUint16(b[regNumQueues:], uint16(len(r.queues)))
	b[regStatus] = r.status
	b[regGeneration] = r.generation
	le.PutUint16(b[regQueueSelect:], r.queueSelect)
	if int(r.queueSelect) >= len(r.queues) {
		return // a queue that does not exist has size 0
	}
	q := &r.queues[r.queueSelect]
	le.PutUint16(b[regQueueSize:], q.Size)
	le.PutUint16(b[regQueueVector:], q.vector)
	if q.enabled {
		b[regQueueEnable] = 1
	}
	le.PutUint16(b[regQueueNotifyOff:], r.queueSelect)
	le.PutUint64(b[regQueueDesc:], q.Desc)
	le.PutUint64(b[regQueueDriver:], q.Driver)
	le.PutUint64(b[regQueueDevice:], q.Device)
}

// word is 32 of the 64 feature bits; there are none beyond.
func word(features uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(features >> (32 * sel))
}

// writeCommon is a write to the common configuration. Fields have to be written whole, 64-bit ones also by halves
// (§4.1.3.1); anything else is ignored.
func (t *transport) writeCommon(offset uint64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resetting {
		return // the driver has to wait until the status reads 0 (§2.4.2)
	}
	switch len(p) {
	case 1:
		if offset == regStatus {
			t.setStatus(p[0])
		}
	case 2:
		t.writeCommon16(offset, binary.LittleEndian.Uint16(p))
	case 4:
		t.writeCommon32(offset, binary.LittleEndian.Uint32(p))
	case 8:
		if offset%8 == 0 && offset >= regQueueDesc {
			t.writeQueueAddress(offset, binary.LittleEndian.Uint32(p))
			t.writeQueueAddress(offset+4, binary.LittleEndian.Uint32(p[4:]))
		}
	}
}

func (t *transport) writeCommon16(offset uint64, v uint16) {
	switch offset {
	case regConfigVector:
		t.regs.configVector = t.checkedVector(v)
		return
	case regQueueSelect:
		t.regs.queueSelect = v
		return
	}
	q := t.selectedQueue()
	if q == nil {
		return
	}
	switch offset {
	case regQueueSize:
		if !q.enabled {
			q.Size = v // checked when the queue is enabled
		}
	case regQueueVector:
		q.vector = t.checkedVector(v)
	case regQueueEnable:
		if v == 1 {
			t.enableQueue(int(t.regs.queueSelect))
		}
	}
}

func (t *transport) writeCommon32(offset uint64, v uint32) {
	r := &t.regs
	switch offset {
	case regDeviceFeatureSelect:
		r.deviceFeatureSelect = v
	case regDriverFeatureSelect:
		r.driverFeatureSelect = v
	case regDriverFeature:
		// After FEATURES_OK the driver must not change them (§3.1.1), and the device relies on it.
		if r.status&statusFeaturesOK == 0 && r.driverFeatureSelect < 2 {
			shift := 32 * r.driverFeatureSelect
			r.driverFeatures = r.driverFeatures&^(0xffffffff<<shift) | uint64(v)<<shift
		}
	default:
		t.writeQueueAddress(offset, v)
	}
}

// writeQueueAddress is a write to one half of one of the selected queue's addresses.
func (t *transport) writeQueueAddress(offset uint64, v uint32) {
	q := t.selectedQueue()
	if q == nil || q.enabled {
		return
	}
	var field *uint64
	switch offset &^ 7 {
	case regQueueDesc:
		field = &q.Desc
	case regQueueDriver:
		field = &q.Driver
	case regQueueDevice:
		field = &q.Device
	default:
		return
	}
	switch offset % 8 {
	case 0:
		*field = *field&^0xffffffff | uint64(v)
	case 4:
		*field = *field&0xffffffff | uint64(v)<<32
	}
}

func (t *transport) selectedQueue() *queueRegisters {
	if int(t.regs.queueSelect) >= len(t.regs.queues) {
		return nil
	}
	return &t.regs.queues[t.regs.queueSelect]
}

// checkedVector is what a vector register reads back: no vector, if there is none such (§4.1.5.1.2.1).
func (t *transport) checkedVector(v uint16) uint16 {
	if int(v) >= t.msix.Vectors() {
		return noVector
	}
	return v
}

// readISR is a read of the ISR status, which clears it (§4.1.4.5).
func (t *transport) readISR(offset uint64, p []byte) {
	if offset != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p[0] = t.regs.isr
	t.regs.isr = 0
}

func (t *transport) readConfig(offset uint64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if config := t.class.config(); offset < uint64(len(config)) {
		copy(p, config[offset:])
	}
}

func (t *transport) writeConfig(offset uint64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.resetting {
		t.class.writeConfig(int(offset), p)
	}
}
