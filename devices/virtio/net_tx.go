package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

// Fields of struct virtio_net_hdr_v1 (virtio 1.2 §5.1.6): offsets, flags and types.
const (
	hdrFlags      = 0
	hdrGSOType    = 1
	hdrLength     = 2
	hdrGSOSize    = 4
	hdrCsumStart  = 6
	hdrCsumOffset = 8
	hdrNumBuffers = 10

	hdrNeedsCsum = 1 << 0
	hdrDataValid = 1 << 1

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoECN   = 0x80
)

var (
	errFrameSize   = errors.New("frame is too short or too long")
	errFrameHeader = errors.New("frame header asks for what was not negotiated or cannot be")
	errTxWritable  = errors.New("transmit buffer is for writing")
)

// transmit sends a batch of the transmit queue.
func (n *Net) transmit() (more bool) {
	q := n.queues[txQueue].Queue
	q.StopNotify()
	more, err := n.sendBatch(q)
	n.publish(txQueue)
	if err != nil {
		n.breakDown(fmt.Errorf("transmit queue: %w", err))
		return false
	}
	return more
}

func (n *Net) sendBatch(q *queue.Queue) (more bool, err error) {
	for range netBatch {
		if n.hurry() {
			return true, nil
		}
		ok, err := q.Next(&n.txChain)
		if err != nil {
			return false, err
		}
		if !ok {
			return q.StartNotify(), nil
		}
		if err := n.prepareFrame(); err != nil {
			// What the guest should not have sent is lost, as on a wire; its driver gets the buffer back.
			n.fault(fmt.Errorf("transmit: %w", err))
		} else if !n.backend.Send(n.txParts) {
			return false, nil // OnSpace notifies this queue. The frame is still the next one.
		}
		q.Take()
		q.Put(n.txChain.Head, 0)
	}
	return true, nil
}

// prepareFrame makes txParts of txChain. The header is copied, so that the guest cannot change what was checked.
func (n *Net) prepareFrame() error {
	c := &n.txChain
	if len(c.Writable) != 0 {
		return errTxWritable
	}
	if c.ReadableBytes < NetHeaderSize+ethernetHeaderSize || c.ReadableBytes > NetFrameMax {
		return errFrameSize
	}
	c.ReadAt(n.txHeader[:], 0)
	if !sanitizeTx(&n.txHeader, uint32(c.ReadableBytes-NetHeaderSize), n.regs.driverFeatures) {
		return errFrameHeader
	}
	n.txParts = append(n.txParts[:0], n.txHeader[:])
	skip := NetHeaderSize
	for i := range c.Readable {
		data := c.Readable[i].Data
		if skip >= len(data) {
			skip -= len(data)
			continue
		}
		n.txParts = append(n.txParts, data[skip:])
		skip = 0
	}
	return nil
}

// sanitizeTx checks a header from the guest for a frame of the given length, and clears what means nothing (§5.1.6.2). It
// returns false for a frame that the backend must not get.
func sanitizeTx(h *[NetHeaderSize]byte, length uint32, features uint64) bool {
	le := binary.LittleEndian
	le.PutUint16(h[hdrNumBuffers:], 0)
	h[hdrFlags] &= hdrNeedsCsum // others are ignored (§5.1.6.2.2)
	needsCsum := h[hdrFlags] != 0
	if needsCsum {
		end := uint32(le.Uint16(h[hdrCsumStart:])) + uint32(le.Uint16(h[hdrCsumOffset:])) + 2
		if features&netCsum == 0 || end > length {
			return false
		}
	} else {
		clear(h[hdrCsumStart:hdrNumBuffers])
	}
	if h[hdrGSOType] == gsoNone {
		clear(h[hdrLength:hdrCsumStart])
		return true
	}
	if !needsCsum || !gsoAllowed(h[hdrGSOType], features, netHostTSO4, netHostTSO6, netHostECN) {
		return false
	}
	// hdr_len is a hint that backends take for the length of the headers: it has to lie inside of the frame.
	le.PutUint16(h[hdrLength:], uint16(min(uint32(le.Uint16(h[hdrLength:])), length)))
	return le.Uint16(h[hdrGSOSize:]) != 0
}

// gsoAllowed reports whether a GSO type is one of those that the features allow.
func gsoAllowed(kind uint8, features, tso4, tso6, ecn uint64) bool {
	if kind&gsoECN != 0 && features&ecn == 0 {
		return false
	}
	switch kind &^ gsoECN {
	case gsoTCPv4:
		return features&tso4 != 0
	case gsoTCPv6:
		return features&tso6 != 0
	}
	return false
}
