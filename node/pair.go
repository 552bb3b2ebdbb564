package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/arbiter"
	"github.com/pollux-ha/pollux/checkpoint/member"
	"github.com/pollux-ha/pollux/checkpoint/primary"
	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/control"
)

// Pair says how this host works with its twin.
type Pair struct {
	Node         string // this host's name
	Listen, Dial string // exactly one of them, host:port
	Interval     time.Duration

	// Heartbeat is how often the hosts say that they are alive, and Misses after how many of them the other one counts as
	// lost. Zero: the defaults.
	Heartbeat time.Duration
	Misses    int

	// Arbiter lists the endpoints of the etcd that decides who may run. Without one a twin doesn't take over by itself,
	// unless UnsafeTakeover lets it.
	Arbiter                      []string
	ArbiterUser, ArbiterPassword string
	UnsafeTakeover               bool

	Credentials *checkpoint.Credentials
}

// arbiterTimeout bounds how long this host's first question to the arbiter may take.
const arbiterTimeout = 10 * time.Second

// RunProtected boots the machine here and keeps a twin of it, until the guest ends here or another host has it.
func RunProtected(ctx context.Context, o Options, p Pair) (vmm.Exit, error) {
	switch {
	case o.Restore != "":
		return vmm.Exit{Reason: vmm.ExitError}, errors.New("a machine from a snapshot can't be protected: its twin may hold a newer state; boot it instead")
	case len(o.Spec.Disks) > 0:
		return vmm.Exit{Reason: vmm.ExitError}, errNoMirror
	}
	return live(ctx, o, p, true)
}

// StandBy is the twin of a machine that another host runs, and runs it when the role machine says so.
func StandBy(ctx context.Context, o Options, p Pair) (vmm.Exit, error) { return live(ctx, o, p, false) }

// live is a member's life with a console and a control socket.
func live(ctx context.Context, o Options, p Pair, boots bool) (exit vmm.Exit, err error) {
	failed := vmm.Exit{Reason: vmm.ExitError}
	term, err := openTerminal(o.Serial, o.Logger)
	if err != nil {
		return failed, err
	}
	defer func() { err = errors.Join(err, term.Close()) }()
	h := &host{spec: o.Spec, term: term, log: o.Logger}
	cfg := member.Config{
		VM: o.Spec.Name, Node: p.Node, Create: boots, Boot: boots, Host: h,
		Credentials: p.Credentials, Listen: p.Listen, Dial: p.Dial, UnsafeTakeover: p.UnsafeTakeover,
		Heartbeat: p.Heartbeat, Misses: p.Misses,
		Pace: primary.Pace{Interval: p.Interval}, Logger: o.Logger,
		Notify: func(a role.Action) { notify(o.Logger, a) },
	}
	// Hosts that are slow to answer each other are slow to hear from the arbiter too.
	cfg.ArbiterTimeout = max(member.DefaultArbiterTimeout, 2*p.Heartbeat*time.Duration(p.Misses))
	if len(p.Arbiter) > 0 {
		a, err := dialArbiter(ctx, p, o.Logger)
		if err != nil {
			return failed, err
		}
		defer a.Close()
		cfg.Arbiter = a
	} else {
		o.Logger.Warn("no arbiter is configured: nobody decides who may run when the hosts lose each other",
			"automatic_takeover", p.UnsafeTakeover)
	}
	m, err := member.New(cfg)
	if err != nil {
		return failed, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	operator := &operator{host: h, stop: cancel}
	c := control.Config{
		Machine: operator, Logger: o.Logger,
		Protection: func() any { return h.protection(m) },
	}
	if err := attended(ctx, o, term, c, h.typed, m.Run); err != nil {
		return failed, fmt.Errorf("machine %q: %w", o.Spec.Name, err)
	}
	if ctx.Err() != nil {
		return vmm.Exit{Reason: vmm.ExitStopped, Detail: context.Cause(ctx).Error()}, nil
	}
	return h.lastExit(), nil
}

func dialArbiter(ctx context.Context, p Pair, log *slog.Logger) (*arbiter.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	cfg := arbiter.Config{Endpoints: p.Arbiter, User: p.ArbiterUser, Password: p.ArbiterPassword, Logger: log}
	if p.Credentials != nil {
		cfg.TLS = p.Credentials.ClientTLS("")
	}
	return arbiter.Dial(ctx, cfg)
}

// notify logs what an operator wants to know; what endangers the machine is a warning.
func notify(log *slog.Logger, a role.Action) {
	level := slog.LevelInfo
	switch a.Notice {
	case role.NoticeUnprotected, role.NoticePeerLost, role.NoticePeerGrey, role.NoticeFenced, role.NoticeAwaitTwin,
		role.NoticeAwaitOperator, role.NoticeStalled, role.NoticeFaulted, role.NoticeForced, role.NoticeRefused:
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, a.Notice.String(), "generation", a.Generation, "epoch", a.Epoch, "record", a.Record.String())
}

// host builds the copies of one VM on this host, at most one at a time. It implements member.Host.
type host struct {
	spec Spec
	term terminal
	log  *slog.Logger

	mu    sync.Mutex
	guest *Guest   // the copy that exists, also one that isn't running
	exit  vmm.Exit // of the last one that ran
}

// Boot implements member.Host.
func (h *host) Boot(context.Context) (*member.Guest, error) {
	g, err := build(h.spec, nil, h.term, h.log)
	if err != nil {
		return nil, err
	}
	warnParavirtual(h.spec.Kernel, h.log)
	if err := g.Boot(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return h.keep(g), nil
}

// Twin implements member.Host.
func (h *host) Twin(description []byte) (*member.Guest, error) {
	spec, machine, err := twin(h.spec, description)
	if err != nil {
		return nil, err
	}
	g, err := build(spec, machine.Baseline, h.term, h.log)
	if err != nil {
		return nil, err
	}
	return h.keep(g), nil
}

func (h *host) keep(g *Guest) *member.Guest {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guest = g
	return &member.Guest{
		Machine: g, Outputs: g.Outputs(), Full: g.Full, Activate: g.Activate, Announce: g.Announce,
		Close: func() error {
			h.mu.Lock()
			h.guest, h.exit = nil, g.Exit()
			h.mu.Unlock()
			return g.Close()
		},
	}
}

// lastExit is how the last guest that ran here ended.
func (h *host) lastExit() vmm.Exit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.exit
}

// with calls f with the guest that is running here. The guest is not given back before f returns.
func (h *host) with(f func(*Guest) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.guest == nil || h.guest.State() == "fresh" {
		return errNoGuest
	}
	return f(h.guest)
}

// typed hands what was typed on the console to the guest; what is typed while there is none is lost.
func (h *host) typed(ctx context.Context, p []byte) error {
	h.mu.Lock()
	g := h.guest
	h.mu.Unlock()
	if g == nil || g.State() != "running" {
		return nil
	}
	return g.SerialInput(ctx, p)
}

// Protection is what the status of one of a pair shows.
type Protection struct {
	member.Status
	HeldFrames uint64 `json:"held_frames"` // that wait for their epoch
	HeldBytes  uint64 `json:"held_bytes"`
}

func (h *host) protection(m *member.Member) Protection {
	p := Protection{Status: m.Status()}
	// A host without a guest holds nothing.
	_ = h.with(func(g *Guest) error {
		p.HeldFrames, p.HeldBytes = g.Held()
		return nil
	})
	return p
}

// errNoGuest refuses what needs a running guest on a host that has none, such as a standby.
var errNoGuest = errors.New("the guest is not running on this host")

// operator is the control socket's way to whatever guest this host has. It implements control.Machine.
type operator struct {
	*host
	stop context.CancelCauseFunc
}

// Name implements control.Machine.
func (o *operator) Name() string { return o.spec.Name }

// CPUs implements control.Machine.
func (o *operator) CPUs() int {
	n := 0
	_ = o.with(func(g *Guest) error { n = g.CPUs(); return nil }) // none: zero
	return n
}

// State implements control.Machine.
func (o *operator) State() string {
	s := "standby"
	_ = o.with(func(g *Guest) error { s = g.State(); return nil }) // none: standby
	return s
}

// Pause implements control.Machine.
func (o *operator) Pause() error { return o.with(func(g *Guest) error { return g.Pause() }) }

// Resume implements control.Machine.
func (o *operator) Resume() error { return o.with(func(g *Guest) error { return g.Resume() }) }

// Snapshot implements control.Machine.
func (o *operator) Snapshot(path string) error {
	return o.with(func(g *Guest) error { return g.Snapshot(path) })
}

// PressPowerButton implements control.Machine.
func (o *operator) PressPowerButton() {
	_ = o.with(func(g *Guest) error { g.PressPowerButton(); return nil }) // a standby has no button
}

// Stop implements control.Machine: the member ends, and its twin takes over what it ran.
func (o *operator) Stop(why string) { o.stop(errors.New(why)) }
