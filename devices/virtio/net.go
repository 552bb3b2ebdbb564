package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

// NetBackend is where a network device sends frames to and receives them from: a tap behind a netbuffer, or a test.
//
// A frame is a virtio_net_hdr_v1 of 12 bytes (little endian, virtio 1.2 §5.1.6), whose num_buffers means nothing here, and the
// Ethernet frame, at most NetFrameMax bytes in all.
type NetBackend interface {
	// Send queues one frame, scattered over parts, of which the first is the header. It copies before it returns. False: there
	// is no room, nothing was taken, and the function given to OnSpace is called once there is. Calls come one at a time, in
	// the order in which the guest sent, while the device is not frozen.
	Send(parts [][]byte) bool
	// OnSpace is called once, before any Send. f may be called from any goroutine, and does not block.
	OnSpace(f func())
	// Receive waits for one frame and copies it to p, which has NetFrameMax bytes. It returns the number of bytes, and an
	// error only for good: after Close, or when the backend is lost.
	Receive(p []byte) (int, error)
	// SetOffloads tells which frames the guest can take: without a complete checksum, and TCP segments over IPv4 and IPv6 (with
	// ECN) that are larger than the MTU. The backend completes and cuts the others.
	SetOffloads(csum, tso4, tso6, ecn bool) error
	// Close makes a Receive that waits, and later ones, return an error. The device calls it when it is closed; it may be
	// called more than once.
	Close() error
}

// NetConfig describes a network device.
type NetConfig struct {
	MAC     [6]byte // of one station
	MTU     uint16  // what the guest is told to use at most, from 68 on; 0: nothing
	Backend NetBackend
}

const (
	// NetFrameMax is the size of the largest frame, with its header (§5.1.6.3.1).
	NetFrameMax = 65562
	// NetHeaderSize is the size of struct virtio_net_hdr_v1.
	NetHeaderSize = 12

	ethernetHeaderSize = 14
	minMTU             = 68 // §5.1.4.1
)

// Feature bits of network devices (§5.1.3).
const (
	netCsum          = 1 << 0
	netGuestCsum     = 1 << 1
	netMTU           = 1 << 3
	netMAC           = 1 << 5
	netGuestTSO4     = 1 << 7
	netGuestTSO6     = 1 << 8
	netGuestECN      = 1 << 9
	netHostTSO4      = 1 << 11
	netHostTSO6      = 1 << 12
	netHostECN       = 1 << 13
	netMergeRxBufs   = 1 << 15
	netStatus        = 1 << 16
	netCtrlVQ        = 1 << 17
	netGuestAnnounce = 1 << 21

	netFeatures = netCsum | netGuestCsum | netMAC | netGuestTSO4 | netGuestTSO6 | netGuestECN | netHostTSO4 |
		netHostTSO6 | netHostECN | netMergeRxBufs | netStatus | netCtrlVQ | netGuestAnnounce
)

// netNeeds says which features need another one (§5.1.3.1): each needs one of those on its right.
var netNeeds = []struct{ feature, oneOf uint64 }{
	{netGuestTSO4, netGuestCsum},
	{netGuestTSO6, netGuestCsum},
	{netGuestECN, netGuestTSO4 | netGuestTSO6},
	{netHostTSO4, netCsum},
	{netHostTSO6, netCsum},
	{netHostECN, netHostTSO4 | netHostTSO6},
	{netGuestAnnounce, netCtrlVQ},
}

// Configuration (§5.1.4): mac, status, max_virtqueue_pairs, mtu.
const (
	netConfigStatus = 6
	netConfigMTU    = 10
	netConfigSize   = 12

	netLinkUp   = 1 << 0
	netAnnounce = 1 << 1
)

// Queues (§5.1.2).
const (
	rxQueue   = 0
	txQueue   = 1
	ctrlQueue = 2

	netQueueSize  = 256
	ctrlQueueSize = 64

	// netBatch bounds the frames sent under one hold of the lock, and so how long the other queues wait.
	netBatch = 64
)

// Net is a virtio network device (virtio 1.2 §5.1).
//
// Frames go to the backend in the order of the transmit queue, none is cut or dropped on the way: when the backend has no
// room the queue stops, and the frame stays available, so that it needs no place in the saved state. A frame that has arrived
// waits for the guest's buffers; meanwhile the backend's own queue fills up, and loses what a wire would lose.
type Net struct {
	transport
	backend NetBackend
	mac     [6]byte
	mtu     uint16

	// Guarded by gate.mu.
	configBytes [netConfigSize]byte
	link        uint16 // the configuration's status field
	announce    bool   // the guest is to be told to announce itself, when it runs
	offloads    uint64 // the features that the backend was told of, or all ones

	txChain   queue.Chain
	txHeader  [NetHeaderSize]byte
	txParts   [][]byte
	rxFirst   queue.Chain // of the frame being delivered: holds its header
	rxMore    queue.Chain // its other buffers, one after the other
	rxQuiet   bool        // the driver was asked not to notify about receive buffers
	ctrlChain queue.Chain

	rxFrame [NetFrameMax]byte // the receiver's own
}

// NewNet returns a frozen network device. The device closes the backend when it is closed.
func NewNet(name string, cfg NetConfig, host Host) (*Net, error) {
	if cfg.MAC[0]&1 != 0 || cfg.MAC == [6]byte{} {
		return nil, fmt.Errorf("%s: %x is not the MAC address of one station", name, cfg.MAC)
	}
	if cfg.MTU != 0 && cfg.MTU < minMTU {
		return nil, fmt.Errorf("%s: MTU %d is below %d", name, cfg.MTU, minMTU)
	}
	n := &Net{backend: cfg.Backend, mac: cfg.MAC, mtu: cfg.MTU, link: netLinkUp, offloads: ^uint64(0)}
	features := uint64(netFeatures)
	if cfg.MTU != 0 {
		features |= netMTU
	}
	id := identity{deviceType: 1, pciClass: 0x020000}
	if err := n.init(name, id, n, features, []uint16{netQueueSize, netQueueSize, ctrlQueueSize}, host); err != nil {
		return nil, err
	}
	n.backend.OnSpace(n.queues[txQueue].kick.signal)
	n.startWorkers(txQueue, ctrlQueue)
	n.workers.Go(n.receive)
	return n, nil
}

// Close stops the device, and closes its backend.
func (n *Net) Close() error { return n.close(n.backend.Close) }

// SetLink tells the guest whether there is a link.
func (n *Net) SetLink(up bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	link := n.link &^ netLinkUp
	if up {
		link |= netLinkUp
	}
	n.setLinkStatus(link)
}

// Announce asks the guest to announce its addresses on the network, because it now runs elsewhere (§5.1.6.5.4). While the
// device is frozen the request waits for Thaw. A guest that has not negotiated it is not asked.
func (n *Net) Announce() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.announce = true
	if !n.frozen {
		n.askAnnounce()
	}
}

func (n *Net) askAnnounce() {
	if n.announce && n.ready() && n.negotiated(netGuestAnnounce) {
		n.setLinkStatus(n.link | netAnnounce)
	}
	n.announce = false
}

func (n *Net) setLinkStatus(v uint16) {
	if v == n.link {
		return
	}
	n.link = v
	if n.frozen {
		n.regs.generation++ // the interrupt follows from resume
		return
	}
	n.configChanged()
}

func (n *Net) accept(features uint64) error {
	for _, need := range netNeeds {
		if features&need.feature != 0 && features&need.oneOf == 0 {
			return fmt.Errorf("network feature %#x needs one of %#x", need.feature, need.oneOf)
		}
	}
	return nil
}

func (n *Net) config() []byte {
	copy(n.configBytes[:], n.mac[:])
	binary.LittleEndian.PutUint16(n.configBytes[netConfigStatus:], n.link)
	binary.LittleEndian.PutUint16(n.configBytes[netConfigMTU:], n.mtu)
	return n.configBytes[:]
}

// writeConfig ignores the driver: nothing is writable for a driver with VERSION_1 (§5.1.4).
func (n *Net) writeConfig(int, []byte) {}

func (n *Net) resume() {
	if !n.ready() {
		return
	}
	const mask = netGuestCsum | netGuestTSO4 | netGuestTSO6 | netGuestECN
	if f := n.regs.driverFeatures & mask; f != n.offloads {
		n.offloads = f
		if err := n.backend.SetOffloads(f&netGuestCsum != 0, f&netGuestTSO4 != 0, f&netGuestTSO6 != 0, f&netGuestECN != 0); err != nil {
			n.fault(fmt.Errorf("set the backend's offloads: %w", err))
		}
	}
	n.askAnnounce()
}

func (n *Net) reset() bool {
	n.rxQuiet = false
	n.link &^= netAnnounce
	return true
}

func (n *Net) process(i int) (more bool) {
	if i == txQueue {
		return n.transmit()
	}
	return n.control()
}

// Control commands (§5.1.6.5): only announcements are offered, all else is refused.
const (
	ctrlClassAnnounce = 3
	ctrlAnnounceAck   = 0
	ctrlOK            = 0
	ctrlError         = 1
)

var errNoAnswer = errors.New("control command without room for the answer")

// control answers the commands of the control queue.
func (n *Net) control() (more bool) {
	q := n.queues[ctrlQueue].Queue
	for range ctrlQueueSize {
		if n.hurry() {
			break
		}
		ok, err := q.Next(&n.ctrlChain)
		if err == nil && ok && n.ctrlChain.WritableBytes == 0 {
			err = errNoAnswer
		}
		if err != nil {
			n.breakDown(fmt.Errorf("control queue: %w", err))
			return false
		}
		if !ok {
			return q.StartNotify()
		}
		answer := [1]byte{n.command()}
		q.WriteAt(&n.ctrlChain, answer[:], 0)
		q.Take()
		q.Put(n.ctrlChain.Head, 1)
		n.publish(ctrlQueue)
	}
	return true
}

func (n *Net) command() uint8 {
	var head [2]byte // class, command
	if n.ctrlChain.ReadAt(head[:], 0) == len(head) && head == [2]byte{ctrlClassAnnounce, ctrlAnnounceAck} &&
		n.negotiated(netGuestAnnounce) {
		n.link &^= netAnnounce
		return ctrlOK
	}
	return ctrlError
}
