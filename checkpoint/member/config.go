package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/standby"
)

// Machine is a virtual machine on this host.
type Machine interface {
	primary.Machine
	standby.Machine
	// Description is all that a twin's machine must match. It doesn't change.
	Description() []byte
	// Run runs the machine until the guest stops it (nil), ctx is over (nil) or the VMM fails.
	Run(ctx context.Context) error
}

// Output is where a network device's frames wait: a netbuffer. It starts holding.
type Output interface {
	Hold() error
	Release(n uint64) error
	Passthrough() error // release all, hold no more
	Fence()             // nothing leaves any more, ever
	primary.Buffer
}

// Guest is one copy of the VM on this host: a machine and what belongs to it.
type Guest struct {
	Machine Machine
	Outputs []Output
	// Full reports whether an output is at its bound. Nil: never.
	Full func() bool
	// Activate connects the guest's network devices when the guest is about to run here. Nil: nothing to do.
	Activate func() error
	// Announce tells the network where the guest's addresses are now. It may take its time, until ctx is over. Nil: nobody to tell.
	Announce func(ctx context.Context) error
	// Close gives back everything, after the machine's Run has returned or without one.
	Close func() error
}

// Host builds guests.
type Host interface {
	// Boot builds the VM from this host's own configuration, ready to run from its beginning.
	Boot(ctx context.Context) (*Guest, error)
	// Twin builds a fresh copy of the VM that the description of another host's machine describes. The error's text is sent there.
	Twin(description []byte) (*Guest, error)
}

// Arbiter is where the role record is; see arbiter.Client.
type Arbiter interface {
	Read(ctx context.Context, vm string) (role.Record, error)
	Swap(ctx context.Context, vm string, old, next role.Record) (role.Record, error)
}

// Config describes a Member.
type Config struct {
	VM   string // name of the VM, the same on both hosts
	Node string // name of this host, unique

	Create bool // may make the VM's first record, and boot it
	Boot   bool // may boot the VM from this host's disks again

	Host Host
	// Arbiter decides ties. Nil: nobody does, and a twin doesn't take over by itself; UnsafeTakeover, for the lab, lets it all the same.
	Arbiter        Arbiter
	UnsafeTakeover bool

	Credentials *checkpoint.Credentials
	// Exactly one of Listen and Dial, host:port. It says nothing about roles. With neither, there is no peer.
	Listen, Dial string
	// PeerName is the name that the peer's certificate must carry. Empty: the host dialled; whoever the CA has signed, when listening.
	PeerName string

	Pace      primary.Pace
	AreaPages int // of staging; see primary.Config

	Heartbeat time.Duration // DefaultHeartbeat if 0
	Misses    int           // silent heartbeats until the peer counts as lost; DefaultMisses if 0
	// Grey is how long a twin may make no progress with acknowledgements. 0: DefaultGrey, or longer if the heartbeats are slow.
	Grey time.Duration
	// ArbiterTimeout is how long a request's answer is waited for; DefaultArbiterTimeout if 0.
	ArbiterTimeout time.Duration

	Logger *slog.Logger
	// Notify is told what an operator may want to know (role.ActionRaise), in order. It must not block. Nil: it is logged.
	Notify func(role.Action)
}

// The defaults of Config.
const (
	DefaultHeartbeat      = 20 * time.Millisecond
	DefaultMisses         = 5
	DefaultGrey           = 3 * time.Second
	DefaultArbiterTimeout = 500 * time.Millisecond
)

// greySilences is the least default for Grey, in times that a peer may be silent.
const greySilences = 20

// tick is the role machine's unit of time.
const tick = 10 * time.Millisecond

// ErrConfig is wrapped by the errors for a Config that can't be.
var ErrConfig = errors.New("configuration of the pair")

func (c *Config) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	switch {
	case c.VM == "":
		return bad("the VM has no name")
	case c.Node == "":
		return bad("this node has no name")
	case c.Host == nil || c.Logger == nil:
		return bad("a Host and a Logger are needed")
	case c.Listen != "" && c.Dial != "":
		return bad("listen on %s or dial %s, not both", c.Listen, c.Dial)
	case (c.Listen != "" || c.Dial != "") && c.Credentials == nil:
		return bad("the link to the peer needs a certificate, its key and a CA")
	case c.Heartbeat < 0 || c.Misses < 0 || c.Grey < 0 || c.ArbiterTimeout < 0:
		return bad("a time is negative")
	case c.UnsafeTakeover && c.Arbiter != nil:
		return bad("there is an arbiter: an unsafe takeover is not needed")
	}
	if c.Dial != "" && c.PeerName == "" {
		host, _, err := net.SplitHostPort(c.Dial)
		if err != nil {
			return bad("the peer's address: %v", err)
		}
		c.PeerName = host
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.Misses == 0 {
		c.Misses = DefaultMisses
	}
	if c.Grey == 0 {
		// Hosts that are slow with heartbeats are slow with epochs too.
		c.Grey = max(DefaultGrey, greySilences*c.silence())
	}
	if c.ArbiterTimeout == 0 {
		c.ArbiterTimeout = DefaultArbiterTimeout
	}
}

// silence is how long a peer may say nothing.
func (c *Config) silence() time.Duration { return c.Heartbeat * time.Duration(c.Misses) }

func ticks(d time.Duration) uint64 { return uint64(max((d+tick-1)/tick, 1)) }

func (c *Config) role(self role.Member) role.Config {
	mode := role.Arbitrated
	if c.Arbiter == nil {
		mode = role.Unarbitrated
		if c.UnsafeTakeover {
			mode = role.Unsafe
		}
	}
	return role.Config{
		Self: self, Arbiter: mode,
		RetryTicks:  5,
		StatusTicks: ticks(500 * time.Millisecond),
		AckTicks:    ticks(c.Grey),
		// A node that slept longer than the peer's patience may have been replaced.
		StallTicks: ticks(c.silence() + 5*tick),
		SyncTicks:  ticks(500 * time.Millisecond),
	}
}
