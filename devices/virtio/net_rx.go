package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

var (
	errRxSmall   = errors.New("receive buffers are too small")
	errRxShort   = errors.New("frame from the backend has no whole Ethernet header")
	errRxOffload = errors.New("frame from the backend needs an offload that the guest has not negotiated")
	errRxStarved = errors.New("no receive buffer") // internal: the frame waits
)

// receive takes frames from the backend and gives them to the guest, one after the other.
func (n *Net) receive() {
	for {
		size, err := n.backend.Receive(n.rxFrame[:])
		if err != nil {
			n.receiveFailed(err)
			return
		}
		if !n.deliver(n.rxFrame[:size]) {
			return
		}
	}
}

// receiveFailed reports the end of the backend, unless the device ends too.
func (n *Net) receiveFailed(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.fault(fmt.Errorf("receive: %w", err))
	}
}

// deliver gives one frame to the guest, waiting while the device is frozen or the guest has no buffers. It returns false when
// the device is closed. A frame that waits is not part of the state: to the twin it is a frame that came before it listened.
func (n *Net) deliver(frame []byte) bool {
	for {
		if n.enterFor(rxQueue) {
			done := n.tryDeliver(frame)
			n.leave()
			if done {
				return true
			}
		}
		if n.queues[rxQueue].kick.wait() != nil {
			return false
		}
	}
}

// tryDeliver reports whether it is done with the frame: delivered, or dropped. Otherwise the driver notifies when it has made
// buffers available.
func (n *Net) tryDeliver(frame []byte) (done bool) {
	if !n.running(rxQueue) {
		return true // nobody listens
	}
	if err := n.checkRx(frame); err != nil {
		n.fault(fmt.Errorf("receive: %w", err))
		return true
	}
	q := n.queues[rxQueue].Queue
	if !n.rxQuiet {
		q.StopNotify()
		n.rxQuiet = true
	}
	switch err := n.fillBuffers(q, frame); {
	case err == nil:
		n.publish(rxQueue)
	case errors.Is(err, errRxStarved):
		n.rxQuiet = false
		return false
	case errors.Is(err, errRxSmall):
		n.fault(err) // only this frame is lost: a smaller one may fit
	default:
		n.breakDown(fmt.Errorf("receive queue: %w", err))
	}
	return true
}

// fillBuffers puts the frame into the next buffers of the guest, one, or with merged buffers as many as it takes
// (§5.1.6.4). On an error it has taken none. errRxStarved: there are not enough.
func (n *Net) fillBuffers(q *queue.Queue, frame []byte) (err error) {
	merge := n.negotiated(netMergeRxBufs)
	taken := uint16(0)
	defer func() {
		if err != nil {
			q.Unwind(taken)
		}
	}()
	c := &n.rxFirst
	for rest := frame; len(rest) > 0; {
		ok, err := q.Next(c)
		if err != nil {
			return err
		}
		if !ok {
			// Asked here, where all that is available is taken: the driver notifies about a further buffer.
			if q.StartNotify() {
				continue
			}
			return errRxStarved
		}
		if c.WritableBytes == 0 || (taken == 0 && c.WritableBytes < NetHeaderSize) {
			return fmt.Errorf("%w: room for %d bytes", queue.ErrBroken, c.WritableBytes)
		}
		if (!merge && c.WritableBytes < uint64(len(frame))) || taken == q.Size() {
			return errRxSmall
		}
		q.Take()
		taken++
		written := q.WriteAt(c, rest, 0)
		q.Put(c.Head, uint32(written))
		rest = rest[written:]
		c = &n.rxMore
	}
	if taken > 1 {
		var count [2]byte
		binary.LittleEndian.PutUint16(count[:], taken)
		q.WriteAt(&n.rxFirst, count[:], hdrNumBuffers)
	}
	return nil
}

// checkRx checks a frame from the backend against what the guest can take (§5.1.6.4.1), and makes it say that it lies in one
// buffer.
func (n *Net) checkRx(frame []byte) error {
	if len(frame) < NetHeaderSize+ethernetHeaderSize {
		return errRxShort
	}
	features := n.regs.driverFeatures
	flags, kind := frame[hdrFlags], frame[hdrGSOType]
	if flags&hdrNeedsCsum != 0 && features&netGuestCsum == 0 {
		return errRxOffload
	}
	if kind != gsoNone && !gsoAllowed(kind, features, netGuestTSO4, netGuestTSO6, netGuestECN) {
		return errRxOffload
	}
	if features&netGuestCsum == 0 {
		frame[hdrFlags] = 0
	} else {
		frame[hdrFlags] &= hdrNeedsCsum | hdrDataValid
	}
	binary.LittleEndian.PutUint16(frame[hdrNumBuffers:], 1)
	return nil
}
