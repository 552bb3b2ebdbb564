package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/pollux-ha/pollux/checkpoint/member"
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio"
	"github.com/pollux-ha/pollux/netbuffer"
	"github.com/pollux-ha/pollux/vmm"
)

// Guest is a machine with everything that attaches it to this host.
type Guest struct {
	*vmm.Machine

	disks       []*virtio.File
	ports       []*netbuffer.Port
	console     *console
	description []byte
	encoder     state.Encoder

	exit vmm.Exit // set by Run
}

// build makes a guest that does nothing yet and lets nothing out: its output is held, its taps are down. baseline is the CPU of
// the machine whose twin this is, nil for one of its own.
func build(spec Spec, baseline vmm.Baseline, term terminal, log *slog.Logger) (_ *Guest, err error) {
	makeRoom(spec.CPUs)
	g := &Guest{}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	cfg := vmm.Config{
		Name: spec.Name, MemoryBytes: spec.MemoryBytes, CPUs: spec.CPUs,
		Kernel: spec.Kernel, Initrd: spec.Initrd, Cmdline: spec.Cmdline,
		Baseline: baseline, KVM: spec.KVM, Logger: log,
	}
	for i, d := range spec.Disks {
		file, err := virtio.OpenFile(d.Path, d.ReadOnly)
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
		g.disks = append(g.disks, file)
		cfg.Disks = append(cfg.Disks, vmm.Disk{Backend: file, ID: fmt.Sprintf("pollux-disk%d", i)})
	}
	for i, n := range spec.Nets {
		port, err := netbuffer.OpenPort(netbuffer.PortConfig{Tap: n.Tap, Bridge: n.Bridge, MAC: n.MAC[:], Logger: log})
		if err != nil {
			return nil, fmt.Errorf("network interface %d: %w", i, err)
		}
		g.ports = append(g.ports, port)
		cfg.Nets = append(cfg.Nets, vmm.Net{Backend: port, MAC: n.MAC})
	}
	if g.console, err = newConsole(term, log); err != nil {
		return nil, err
	}
	cfg.Serial = g.console
	if g.Machine, err = vmm.New(cfg); err != nil {
		return nil, err
	}
	g.description, err = describe(spec, g.Machine.Description())
	return g, err
}

// makeRoom lets Go run its goroutines beside this many vCPU threads. A thread in the guest counts against GOMAXPROCS for up to
// 10 ms until the runtime's monitor notices, and whoever is to freeze the guest would wait for that long.
func makeRoom(cpus int) {
	if want := runtime.NumCPU() + cpus; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}

// Description is what the twin must be built from.
func (g *Guest) Description() []byte { return g.description }

// Run executes the guest until it ends or ctx is done. The error is not nil when the VMM failed; Exit tells the rest.
func (g *Guest) Run(ctx context.Context) error {
	var err error
	g.exit, err = g.Machine.Run(ctx)
	return err
}

// Exit says how the guest ended, once Run has returned.
func (g *Guest) Exit() vmm.Exit { return g.exit }

const guestStateVersion = 1

// SaveState appends the machine's state and what was learnt about its network addresses, which a takeover announces.
func (g *Guest) SaveState(b []byte) ([]byte, error) {
	e := &g.encoder
	e.Reset(b)
	section := e.Begin("guest", guestStateVersion)
	for _, p := range g.ports {
		p.Save(e)
	}
	machine := e.Begin("vmm", guestStateVersion)
	out, err := g.Machine.SaveState(e.Bytes())
	e.Reset(out)
	e.End(machine)
	e.End(section)
	return e.Bytes(), err
}

// LoadState takes over what SaveState of the same kind of guest wrote.
func (g *Guest) LoadState(b []byte) error {
	outer := state.NewDecoder(b)
	_, d := outer.Section("guest", guestStateVersion)
	for i, p := range g.ports {
		if err := p.Load(d); err != nil {
			return fmt.Errorf("load addresses of network interface %d: %w", i, err)
		}
	}
	_, machine := d.Section("vmm", guestStateVersion)
	if err := errors.Join(d.Finish(), outer.Finish()); err != nil {
		return fmt.Errorf("load guest: %w", err)
	}
	rest := make([]byte, machine.Len())
	machine.Raw(rest)
	return g.Machine.LoadState(rest)
}

// Outputs are all the ways in which the outside can observe the guest.
func (g *Guest) Outputs() []member.Output {
	outputs := []member.Output{quiet{g.console.Buffer}}
	for _, p := range g.ports {
		outputs = append(outputs, p.Buffer())
	}
	return outputs
}

// quiet is an output that waits for the next epoch and does not ask for one: people read consoles, and a guest that boots
// prints without end.
type quiet struct{ *netbuffer.Buffer }

// Waiting implements member.Output. Nothing is ever received from a nil channel.
func (quiet) Waiting() <-chan struct{} { return nil }

// Full reports whether the network has refused a frame: the guest's transmit queue stands still.
func (g *Guest) Full() bool {
	for _, p := range g.ports {
		if p.Buffer().Snapshot().Stalled {
			return true
		}
	}
	return false
}

// Held counts the frames that wait for their epoch, and their bytes.
func (g *Guest) Held() (frames, bytes uint64) {
	for _, p := range g.ports {
		s := p.Buffer().Snapshot()
		frames, bytes = frames+s.HeldFrames, bytes+s.HeldBytes
	}
	return frames, bytes
}

// Activate attaches the guest to its networks.
func (g *Guest) Activate() error {
	for i, p := range g.ports {
		if err := p.Activate(); err != nil {
			return fmt.Errorf("network interface %d: %w", i, err)
		}
	}
	return nil
}

// Announce tells the networks that the guest is here now, several times, until it is done or ctx is.
func (g *Guest) Announce(ctx context.Context) error {
	var each errgroup.Group
	for _, p := range g.ports {
		each.Go(func() error { return p.Announce(ctx) })
	}
	return each.Wait()
}

// Close gives everything back; Run must have returned or never been called. Output that may leave is written first.
func (g *Guest) Close() error {
	var errs []error
	// The ports go first: a Receive that waits must end before its device can.
	for _, p := range g.ports {
		errs = append(errs, p.Close())
	}
	if g.Machine != nil {
		errs = append(errs, g.Machine.Close())
	}
	if g.console != nil {
		errs = append(errs, g.console.Close())
	}
	for _, d := range g.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
