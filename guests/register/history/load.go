package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pollux-ha/pollux/guests/register"
)

// sharedRegisters is how many registers, the last ones, all clients of a load use; every client has one of its own as well.
const (
	sharedRegisters = 8
	firstShared     = register.Registers - sharedRegisters
)

// LoadOptions says what traffic Load makes.
type LoadOptions struct {
	Address  string        // host:port of the server, for TCP and UDP
	TCP, UDP int           // clients over each, each with one connection or flow for the whole time
	Pace     time.Duration // time between an answer and the client's next request
	// TCPTimeout and UDPTimeout bound one attempt; see register.ClientOptions.
	TCPTimeout, UDPTimeout time.Duration
	// Reconnect makes a TCP client whose connection broke open another one. The break is recorded either way.
	Reconnect bool
}

// Load runs clients that read, write and swap registers, their own and shared ones, and records what they see in h, until
// ctx ends, which is no error. It returns early if a client cannot connect or its connection breaks (see Reconnect); the
// others stop then. All clients have stopped when it returns.
func Load(ctx context.Context, options LoadOptions, h *History) error {
	if options.TCP < 0 || options.UDP < 0 || options.TCP+options.UDP == 0 {
		return fmt.Errorf("register load with %d TCP and %d UDP clients: want at least one", options.TCP, options.UDP)
	}
	if options.TCP+options.UDP > firstShared {
		return fmt.Errorf("register load with %d clients: at most %d have a register of their own", options.TCP+options.UDP, firstShared)
	}
	// Values are never used twice, not even by two loads on one server.
	run := uint64(rand.Uint32()) << 40
	g, ctx := errgroup.WithContext(ctx)
	for i := range options.TCP + options.UDP {
		c := loader{options: options, history: h, network: "tcp", own: uint16(i), value: run | uint64(i)<<32}
		if i >= options.TCP {
			c.network = "udp"
		}
		g.Go(func() error { return c.run(ctx) })
	}
	return g.Wait()
}

// loader is one client of a load.
type loader struct {
	options LoadOptions
	history *History
	network string
	own     uint16
	value   uint64
	last    [sharedRegisters]uint64 // what the shared registers held when this client used them last
}

func (l *loader) run(ctx context.Context) error {
	for {
		err := l.connected(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !l.options.Reconnect {
			return err
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// connected makes traffic over one connection until it breaks or ctx ends.
func (l *loader) connected(ctx context.Context) error {
	timeout := l.options.TCPTimeout
	if l.network == "udp" {
		timeout = l.options.UDPTimeout
	}
	c, err := register.Dial(ctx, l.network, l.options.Address, register.ClientOptions{Timeout: timeout, Recorder: l.history})
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		a, err := c.Do(ctx, l.request())
		if err != nil {
			return err
		}
		if a.Register >= firstShared {
			l.last[a.Register-firstShared] = a.Value
		}
		sleep(ctx, l.options.Pace)
	}
	return nil
}

// request chooses what to do next: mostly the client's own register, which only it writes.
func (l *loader) request() register.Request {
	l.value++
	n := rand.IntN(sharedRegisters)
	shared := uint16(firstShared + n)
	switch action := rand.IntN(10); {
	case action < 4:
		return register.Request{Op: register.Write, Register: l.own, Value: l.value}
	case action < 7:
		return register.Request{Op: register.Read, Register: l.own}
	case action < 8:
		return register.Request{Op: register.Write, Register: shared, Value: l.value}
	case action < 9:
		return register.Request{Op: register.CompareAndSwap, Register: shared, Expect: l.last[n], Value: l.value}
	default:
		return register.Request{Op: register.Read, Register: shared}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
