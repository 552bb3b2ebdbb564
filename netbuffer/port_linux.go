package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/pollux-ha/pollux/devices/state"
)

// DefaultCapacity is how many bytes of frames are held by default: what 10 Gbit/s sends in about 6 ms, 1 Gbit/s in 60.
const DefaultCapacity = 8 << 20

// PortConfig says how one network card of a guest is connected.
type PortConfig struct {
	Tap      string           // name of the tap; empty: chosen by the kernel
	Bridge   string           // that it joins when it is active; empty: none
	MAC      net.HardwareAddr // of the guest
	Capacity int              // of the buffer, in bytes; 0: DefaultCapacity
	Logger   *slog.Logger
}

// Port is a guest's network card as seen from the host: a tap behind a Buffer. It starts inactive, which is how a standby
// has it before a takeover: the tap exists, but it is down and on no bridge, so nothing arrives; and it starts
// holding, so nothing leaves. Activate and Buffer().Passthrough() change that.
type Port struct {
	tap     *Tap
	buffer  *Buffer
	learner *Learner
	bridge  string

	mu     sync.Mutex // serialises Activate, Deactivate and Close
	active bool
	closed bool
}

// OpenPort creates the tap and the buffer. A bridge that does not exist is refused now, not at a takeover.
func OpenPort(c PortConfig) (*Port, error) {
	learner, err := NewLearner(c.MAC)
	if err != nil {
		return nil, err
	}
	if c.Bridge != "" {
		if _, err := findBridge(c.Bridge); err != nil {
			return nil, err
		}
	}
	if c.Capacity == 0 {
		c.Capacity = DefaultCapacity
	}
	tap, err := OpenTap(c.Tap)
	if err != nil {
		return nil, err
	}
	// A tap that was made beforehand may be up and on a bridge.
	if err = part(tap.Name()); err == nil {
		err = prepare(tap.Name(), c.MAC)
	}
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	buffer, err := NewBuffer(c.Capacity, tap, c.Logger)
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return &Port{tap: tap, buffer: buffer, learner: learner, bridge: c.Bridge}, nil
}

// Name is the tap's name.
func (p *Port) Name() string { return p.tap.Name() }

// MAC is the guest's Ethernet address.
func (p *Port) MAC() net.HardwareAddr { return p.learner.MAC() }

// Buffer is where epochs are closed and released.
func (p *Port) Buffer() *Buffer { return p.buffer }

// Learner knows the guest's addresses; it is saved and loaded with the checkpoint.
func (p *Port) Learner() *Learner { return p.learner }

// Activate brings the tap up and onto its bridge: from here on frames arrive.
func (p *Port) Activate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("activate tap %q: %w", p.Name(), ErrClosed)
	}
	if p.active {
		return nil
	}
	if err := join(p.Name(), p.bridge); err != nil {
		return err
	}
	p.active = true
	return nil
}

// Deactivate takes the tap down and off its bridge. Frames that the guest sends stay in the buffer.
func (p *Port) Deactivate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.active || p.closed {
		return nil
	}
	p.active = false
	return part(p.Name())
}

// Send puts one frame of the guest (vnet header first) into the buffer; see Buffer.Send.
func (p *Port) Send(parts [][]byte) bool {
	p.learner.Sent(parts)
	return p.buffer.Send(parts)
}

// OnSpace sets what is called when there is room again; see Buffer.OnSpace.
func (p *Port) OnSpace(f func()) { p.buffer.OnSpace(f) }

// Receive waits for one frame to the guest, vnet header first, and returns its length. It fails after Close.
func (p *Port) Receive(b []byte) (int, error) { return p.tap.Read(b) }

// SetOffloads says what the guest can take; see Tap.SetOffloads.
func (p *Port) SetOffloads(csum, tso4, tso6, ecn bool) error {
	return p.tap.SetOffloads(csum, tso4, tso6, ecn)
}

// Save appends what was learnt about the guest's addresses.
func (p *Port) Save(e *state.Encoder) { p.learner.Save(e) }

// Load takes over what Save wrote.
func (p *Port) Load(d *state.Decoder) error { return p.learner.Load(d) }

// Announce tells the network that the guest is here now, several times over one and a half seconds; it returns when done
// or when ctx ends. The announcements go through the buffer: a copy that may not send can't claim the guest's addresses.
func (p *Port) Announce(ctx context.Context) error {
	parts := make([][]byte, 1)
	return announce(ctx, p.learner, func(frame []byte) bool {
		parts[0] = frame
		return p.buffer.Send(parts)
	})
}

// Close ends a waiting Receive, writes what the buffer may still let out, and closes the tap, which is then gone unless it
// was made persistent beforehand.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return errors.Join(p.buffer.Close(), p.tap.Close())
}
