package virtio

import (
	"crypto/rand"
	"fmt"

	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio/queue"
)

const (
	rngQueueSize = 64
	// rngBytes bounds what one request gets; the driver asks again for more (virtio 1.2 §5.4.6). A guest that asks without end
	// costs the host no more than rngBatch of these under one hold of the lock.
	rngBytes = 4096
	rngBatch = 16
)

// Rng is a virtio entropy device (virtio 1.2 §5.4): its buffers are filled from the host's getrandom.
type Rng struct {
	transport
	chain queue.Chain // guarded by gate.mu
}

// NewRng returns a frozen entropy device.
func NewRng(name string, host Host) (*Rng, error) {
	r := &Rng{}
	// PCI has no class for it: 0xff is a device that does not fit in any.
	if err := r.init(name, identity{deviceType: 4, pciClass: 0xff0000}, r, 0, []uint16{rngQueueSize}, host); err != nil {
		return nil, err
	}
	r.startWorkers(0)
	return r, nil
}

// Close stops the device.
func (r *Rng) Close() error { return r.close(nil) }

func (r *Rng) accept(uint64) error     { return nil }
func (r *Rng) config() []byte          { return nil }
func (r *Rng) writeConfig(int, []byte) {}
func (r *Rng) resume()                 {}
func (r *Rng) reset() bool             { return true }

func (r *Rng) process(i int) (more bool) {
	q := r.queues[i].Queue
	more, err := r.fill(q)
	r.publish(i)
	if err != nil {
		r.breakDown(fmt.Errorf("entropy queue: %w", err))
		return false
	}
	return more
}

func (r *Rng) fill(q *queue.Queue) (more bool, err error) {
	for range rngBatch {
		if r.hurry() {
			break
		}
		ok, err := q.Next(&r.chain)
		if err != nil {
			return false, err
		}
		if !ok {
			return q.StartNotify(), nil
		}
		written := 0
		for _, s := range r.chain.Writable {
			data := s.Data[:min(len(s.Data), rngBytes-written)]
			if _, err := rand.Read(data); err != nil {
				return false, fmt.Errorf("host entropy: %w", err)
			}
			r.host.Memory.MarkDirty(s.Addr, uint64(len(data)))
			written += len(data)
		}
		if written == 0 {
			return false, fmt.Errorf("%w: entropy buffer without room", queue.ErrBroken) // §5.4.6.1
		}
		q.Take()
		q.Put(r.chain.Head, uint32(written))
	}
	return true, nil
}

// save has nothing to append: the queue's position is the transport's.
func (r *Rng) save(*state.Encoder) {}

func (r *Rng) decode(d *state.Decoder, regs *registers) (apply func()) {
	decodeNothingInFlight(d, regs)
	return func() {}
}
