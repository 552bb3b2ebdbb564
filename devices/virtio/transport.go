package virtio

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/pollux-ha/pollux/devices/pci"
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

// Device status bits (virtio 1.2 §2.1).
const (
	statusAcknowledge = 1 << 0
	statusDriver      = 1 << 1
	statusDriverOK    = 1 << 2
	statusFeaturesOK  = 1 << 3
	statusNeedsReset  = 1 << 6
	statusFailed      = 1 << 7

	statusByDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// Feature bits that are not of one device class (§6).
const (
	featureIndirectDesc = 1 << 28
	featureEventIdx     = 1 << 29
	featureVersion1     = 1 << 32

	transportFeatures = featureIndirectDesc | featureEventIdx | featureVersion1
)

// noVector says that something has no MSI-X vector (§4.1.5.1.2).
const noVector = 0xffff

// Bits of the ISR status (§4.1.4.5).
const (
	isrQueue  = 1 << 0
	isrConfig = 1 << 1
)

// class is what makes a virtio device a network card, a disk or something else. Its methods are called with the device's
// lock held.
type class interface {
	// accept says why the driver cannot have these features together. They are a subset of the offered ones.
	accept(features uint64) error
	// config is the device-specific configuration as the driver reads it now.
	config() []byte
	// writeConfig is a driver's write into it. Out of bounds is ignored by the class.
	writeConfig(offset int, p []byte)
	// process does a bounded batch of the work that queue i has, and reports whether there is more to do at once. It is
	// called by the queue's worker, while the driver is ready.
	process(i int) (more bool)
	// resume prepares to run: the driver has become ready, or the device is being thawed (in whatever state the driver is).
	resume()
	// reset forgets the driver. It reports false when requests are still in flight; the class calls finishReset after the last
	// one.
	reset() (done bool)
	// save appends the class's own state.
	save(e *state.Encoder)
	// decode reads it back and checks it against r, the registers that come with it; errors stick in d. The function that it
	// returns puts it in force, and is called only if all of the device's state was right.
	decode(d *state.Decoder, r *registers) (apply func())
}

// virtqueue is one queue with what the transport keeps for it.
type virtqueue struct {
	*queue.Queue
	kick *kick
	// owed says that whoever works on the queue has stopped before it was done, because the device was being frozen: Thaw
	// notifies it. Also after a load, when nobody knows what had been done.
	owed *atomic.Bool
	// worked says that a worker processes the queue whenever it is notified. Constant.
	worked bool
}

// registers is what the driver sets and sees, apart from PCI's.
type registers struct {
	deviceFeatureSelect uint32
	driverFeatureSelect uint32
	driverFeatures      uint64
	configVector        uint16
	queueSelect         uint16
	status              uint8
	generation          uint8
	isr                 uint8
	queues              []queueRegisters
}

type queueRegisters struct {
	queue.Config
	vector  uint16
	enabled bool
	at      queue.Position // only in saved state, of enabled queues
}

// transport is the part that all virtio devices have in common. Its exported methods are theirs.
type transport struct {
	gate
	name    string
	host    Host
	log     *slog.Logger
	class   class
	offered uint64

	function *pci.Function
	msix     *pci.MSIX
	bar      *registerBAR
	queues   []virtqueue
	workers  sync.WaitGroup

	blank registers // after a reset; constant

	// Guarded by gate.mu.
	regs      registers
	resetting bool   // a reset waits for requests in flight
	faults    uint64 // how many there were
}

// identity is what the PCI configuration space says about a class.
type identity struct {
	deviceType uint16 // §5
	pciClass   uint32
}

// init builds the transport, with one queue per element of sizes, whose values are the largest sizes.
func (t *transport) init(name string, id identity, c class, features uint64, sizes []uint16, host Host) error {
	t.name, t.host, t.class = name, host, c
	t.log = host.Logger.With("device", name)
	t.offered = features | transportFeatures
	t.frozen = true
	t.closing.Store(true)
	for i, size := range sizes {
		k, err := newKick(fmt.Sprintf("%s queue %d", name, i))
		if err != nil {
			return errors.Join(err, t.closeKicks())
		}
		t.queues = append(t.queues, virtqueue{Queue: queue.New(host.Memory, size), kick: k, owed: new(atomic.Bool)})
	}
	t.blank = t.blankRegisters()
	t.regs = t.blankRegisters()
	if err := t.initPCI(id); err != nil {
		return errors.Join(err, t.closeKicks())
	}
	return nil
}

// startWorkers starts one worker for each of the given queues.
func (t *transport) startWorkers(queues ...int) {
	for _, i := range queues {
		t.queues[i].worked = true
		t.workers.Go(func() { t.work(i) })
	}
}

// work processes queue i whenever it is notified.
func (t *transport) work(i int) {
	for t.queues[i].kick.wait() == nil {
		for more := true; more && t.enterFor(i); t.leave() {
			more = t.running(i) && t.class.process(i)
		}
	}
}

// enterFor is enter, for the one who works on queue i: refused, it is notified when the device is thawed.
func (t *transport) enterFor(i int) bool {
	for !t.enter() {
		t.queues[i].owed.Store(true)
		if t.closing.Load() {
			return false // Thaw clears closing first, and looks at owed then: it sees this one
		}
	}
	return true
}

// blankRegisters are the registers of a device after reset.
func (t *transport) blankRegisters() registers {
	r := registers{configVector: noVector, queues: make([]queueRegisters, len(t.queues))}
	for i := range r.queues {
		r.queues[i] = queueRegisters{vector: noVector, Config: queue.Config{Size: t.queues[i].Max()}}
	}
	return r
}

// Name implements devices.Device.
func (t *transport) Name() string { return t.name }

// Function is the device's PCI function, to be attached to the machine's bus.
func (t *transport) Function() *pci.Function { return t.function }

// Thaw implements devices.Device.
func (t *transport) Thaw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.frozen || t.closed {
		return
	}
	t.frozen = false
	t.msix.Flush()
	t.class.resume()
	t.closing.Store(false)
	t.kickOwed()
}

// kickOwed notifies those who have something to do. Not everybody: it runs in every checkpoint.
func (t *transport) kickOwed() {
	for _, q := range t.queues {
		if q.owed.Swap(false) || (q.worked && q.Waiting()) {
			q.kick.signal()
		}
	}
}

// close stops the workers and waits for them. before, if not nil, is called when no worker will begin anything any more,
// to wake those that wait for something else than a notification.
func (t *transport) close(before func() error) error {
	t.closing.Store(true)
	t.mu.Lock()
	again := t.closed
	t.closed = true
	t.closing.Store(true) // once more: a Thaw may have come between
	t.mu.Unlock()
	if again {
		return nil
	}
	t.bar.detach()
	var errs []error
	if before != nil {
		errs = append(errs, before())
	}
	errs = append(errs, t.closeKicks())
	t.workers.Wait()
	return errors.Join(errs...)
}

func (t *transport) closeKicks() error {
	var errs []error
	for _, q := range t.queues {
		errs = append(errs, q.kick.close())
	}
	return errors.Join(errs...)
}

// kickAll makes every worker look at its queue.
func (t *transport) kickAll() {
	for _, q := range t.queues {
		q.kick.signal()
	}
}

// ready reports whether the driver uses the device (§3.1.1), and none of the two gave up.
func (t *transport) ready() bool {
	return t.regs.status&(statusDriverOK|statusNeedsReset|statusFailed) == statusDriverOK && !t.resetting
}

// running reports whether queue i can be worked on: the device must not touch memory unless it is bus master.
func (t *transport) running(i int) bool {
	return t.ready() && t.queues[i].Enabled() && t.function.BusMaster()
}

// negotiated reports whether the driver has accepted a feature. Meaningful once features are final.
func (t *transport) negotiated(feature uint64) bool { return t.regs.driverFeatures&feature != 0 }

// publish makes the driver see the used buffers of queue i, and interrupts it if it wants that.
func (t *transport) publish(i int) {
	if t.queues[i].Publish() {
		t.regs.isr |= isrQueue
		t.signal(t.regs.queues[i].vector)
	}
}

func (t *transport) signal(vector uint16) {
	if vector != noVector {
		t.msix.Signal(vector)
	}
}

// configChanged tells the driver that the configuration is another one (§2.5.3).
func (t *transport) configChanged() {
	t.regs.generation++
	t.interruptConfig()
}

func (t *transport) interruptConfig() {
	if t.regs.status&statusDriverOK != 0 {
		t.regs.isr |= isrConfig
		t.signal(t.regs.configVector)
	}
}

// breakDown stops the device until the driver resets it (§2.1.2), because of what the driver did.
func (t *transport) breakDown(err error) {
	t.fault(err)
	if t.regs.status&statusNeedsReset == 0 {
		t.regs.status |= statusNeedsReset
		t.interruptConfig()
	}
}

// fault tells whoever watches. A guest can cause any number of faults, so only the 1st, 2nd, 4th, 8th… is logged.
func (t *transport) fault(err error) {
	t.faults++
	if bits.OnesCount64(t.faults) == 1 {
		t.log.Warn("device fault", "error", err, "count", t.faults)
	}
	if t.host.OnFault != nil {
		t.host.OnFault(t.name, err)
	}
}

// setStatus is the driver's write to the device status (§2.1, §3.1.1). Bits can be added, and all cleared by a reset.
func (t *transport) setStatus(v uint8) {
	if v == 0 {
		t.reset()
		return
	}
	added := v & statusByDriver &^ t.regs.status
	if added&statusFeaturesOK != 0 {
		if err := t.checkFeatures(t.regs.driverFeatures); err != nil {
			// The driver reads the status again and sees that the bit did not stay (§3.1.1 step 6).
			t.log.Debug("features refused", "features", t.regs.driverFeatures, "error", err)
			added &^= statusFeaturesOK
		}
	}
	if (t.regs.status|added)&statusFeaturesOK == 0 {
		added &^= statusDriverOK
	}
	t.regs.status |= added
	if added&statusDriverOK != 0 && t.ready() {
		t.class.resume()
		t.kickAll() // buffers may have been made available before
	}
}

// checkFeatures says why a driver cannot have exactly these features (§2.2, §6.1, §6.2).
func (t *transport) checkFeatures(features uint64) error {
	if extra := features &^ t.offered; extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	if features&featureVersion1 == 0 {
		return errors.New("VIRTIO_F_VERSION_1 is required")
	}
	return t.class.accept(features)
}

// queueFeatures are the negotiated features of the queues.
func queueFeatures(features uint64) queue.Features {
	return queue.Features{Indirect: features&featureIndirectDesc != 0, EventIdx: features&featureEventIdx != 0}
}

// reset is the driver's reset (§2.4). It is complete when the status reads 0: not before the last request in flight, which
// may still write into the driver's buffers.
func (t *transport) reset() {
	if t.resetting {
		return
	}
	t.resetting = true
	for _, q := range t.queues {
		q.Disable()
	}
	if t.class.reset() {
		t.finishReset()
	}
}

// finishReset completes a reset.
func (t *transport) finishReset() {
	queues, generation := t.regs.queues, t.regs.generation
	copy(queues, t.blank.queues)
	t.regs = t.blank
	// The generation goes on: a driver that reads the configuration across a reset must notice changes.
	t.regs.queues, t.regs.generation = queues, generation
	t.resetting = false
}

// enableQueue is the driver's write to queue_enable (§4.1.4.3).
func (t *transport) enableQueue(i int) {
	r := &t.regs.queues[i]
	if r.enabled || t.regs.status&statusFeaturesOK == 0 {
		return
	}
	if err := t.queues[i].Enable(r.Config, queueFeatures(t.regs.driverFeatures)); err != nil {
		t.breakDown(fmt.Errorf("enable queue %d: %w", i, err))
		return
	}
	r.enabled = true
	t.queues[i].kick.signal()
}
