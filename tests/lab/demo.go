package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// DemoConfig is what the demo is made from.
type DemoConfig struct {
	Lab         Config        // Dir is the demo's own; a lab that is left in it is removed first
	GuestKernel string        // bzImage
	GuestInitrd string        // with the register workload
	GuestAppend string        // the guest kernel's command line
	KernelName  string        // the guest kernel as the report calls it
	RunArgs     []string      // more arguments for `pollux run`
	StandbyArgs []string      // more arguments for `pollux standby`
	Before      time.Duration // of traffic before the loss; 15 s if zero
	After       time.Duration // of traffic after it; 15 s if zero
	Report      string        // JSON file; none if empty
	Out         io.Writer
	Logger      *slog.Logger
}

const (
	demoTraffic = 15 * time.Second
	// demoPatience bounds the waits for a guest to boot and to be protected, in emulation on two CPUs.
	demoPatience = 4 * time.Minute
	// takeoverPatience bounds the wait for the twin, after which the demo has failed.
	takeoverPatience = 60 * time.Second
	takeoverPoll     = 20 * time.Millisecond

	witnessPort = 2379
	twinPort    = 7100
	guestPort   = 7777

	vmName      = "demo"
	guestMemory = "192M"
	controlPath = WorkDir + "/demo.sock"
	serialPath  = WorkDir + "/serial.log"
)

// Demo shows that a Linux guest survives the power loss of its host: it brings a lab up, protects a guest, has a client work
// on it, cuts host-a's power in mid-traffic and judges what the client saw. It prints what happens as it happens, writes the
// report and removes the lab, also when ctx ends. The error tells everything that was not as promised.
//
// A run in which an emulated node dies by itself is repeated once.
func Demo(ctx context.Context, cfg DemoConfig) (DemoReport, error) {
	if cfg.Before == 0 {
		cfg.Before = demoTraffic
	}
	if cfg.After == 0 {
		cfg.After = demoTraffic
	}
	var report DemoReport
	err := RepeatOnce(ctx, cfg.Logger, func(ctx context.Context, attempt int) error {
		d := &demo{cfg: cfg, began: time.Now()}
		if attempt > 1 {
			d.say("A host of the lab died by itself, which says nothing about Pollux. Once more, from the beginning.")
		}
		err := d.run(ctx)
		report = d.report
		return err
	})
	return report, err
}

// demo is one run.
type demo struct {
	cfg    DemoConfig
	lab    *Lab
	began  time.Time
	report DemoReport

	host, twin, witness *process
	client              *CheckingClient
}

// say prints a line with the time since the beginning.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.cfg.Out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := Down(d.cfg.Lab.Dir, d.cfg.Logger); err != nil {
		return err
	}
	if err := d.up(ctx); err != nil {
		return err
	}
	defer func() {
		d.say("Removing the lab.")
		err = errors.Join(err, d.lab.Down())
	}()
	guarded, stop, err := d.lab.Guard(ctx)
	if err != nil {
		return err
	}
	defer stop()
	err = d.story(guarded)
	if cause := context.Cause(guarded); err != nil && cause != nil {
		err = errors.Join(cause, err) // a node that died, or Ctrl-C
	}
	if err == nil || ctx.Err() != nil {
		return err // all is well, or nobody wants to know
	}
	d.keepLogs()
	return d.lab.Explain(err)
}

func (d *demo) up(ctx context.Context) (err error) {
	backend, why, err := Choose(d.cfg.Lab.Backend)
	if err != nil {
		return err
	}
	d.report.Tier, d.report.Kernel = backend.Tier(), d.cfg.KernelName
	d.say("Lab: %s.", why)
	d.say("Starting host-a, host-b, the witness and the client.")
	d.lab, err = Up(ctx, d.cfg.Lab)
	if err == nil {
		d.say("All nodes answer.")
	}
	return err
}

// story is the demo itself, in a lab that is up.
func (d *demo) story(ctx context.Context) error {
	defer d.closeAll()
	if err := d.furnish(ctx); err != nil {
		return err
	}
	if err := d.protect(ctx); err != nil {
		return err
	}
	if err := d.traffic(ctx); err != nil {
		return err
	}
	lost, err := d.lose(ctx)
	if err != nil {
		return err
	}
	if err := d.aftermath(ctx, lost); err != nil {
		return err
	}
	return d.judge()
}

// furnish gives the nodes certificates and the guest's files.
func (d *demo) furnish(ctx context.Context) error {
	nodes := []string{HostA, HostB, Witness}
	credentials, err := d.lab.MakeCredentials(nodes...)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, node := range nodes {
		files := map[string]string{
			inNode("ca.crt"): credentials[node].CA, inNode("node.crt"): credentials[node].Cert, inNode("node.key"): credentials[node].Key,
		}
		if node == HostA {
			files[inNode("kernel")] = d.cfg.GuestKernel
			if !d.bare() {
				files[inNode("initrd")] = d.cfg.GuestInitrd
			}
		}
		g.Go(func() error {
			for _, target := range sortedKeys(files) {
				if err := d.lab.Put(ctx, node, files[target], target); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func inNode(name string) string { return WorkDir + "/" + name }

// tlsArgs are what every pollux process of the pair is told.
func tlsArgs() []string {
	return []string{"--tls-cert", inNode("node.crt"), "--tls-key", inNode("node.key"), "--tls-ca", inNode("ca.crt")}
}

func endpoint(node, network string, port int) (string, error) {
	p, err := Addr(node, network)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", p.Addr(), port), nil
}

// protect starts the witness, the twin and the guest, and waits until the guest is protected.
func (d *demo) protect(ctx context.Context) (err error) {
	witness, err := endpoint(Witness, NetManage, witnessPort)
	if err != nil {
		return err
	}
	twin, err := endpoint(HostB, NetLink1, twinPort)
	if err != nil {
		return err
	}
	args := append([]string{"pollux", "witness", "--listen", witness, "--data-dir", inNode("witness")}, tlsArgs()...)
	if d.witness, err = d.start(ctx, Witness, args); err != nil {
		return err
	}
	if err := d.waitForPort(ctx, d.witness, Witness, witness); err != nil {
		return err
	}
	common := append([]string{"--name", vmName, "--control", controlPath, "--serial", "file:" + serialPath, "--arbiter", "https://" + witness}, tlsArgs()...)
	args = append([]string{
		"pollux", "run", "--kernel", inNode("kernel"), "--append", d.guestCmdline(), "--memory", guestMemory, "--cpus", "1",
		"--net", "bridge=" + ClientBridge + ",mac=" + GuestMAC().String(), "--protect", twin,
	}, common...)
	if !d.bare() {
		args = append(args, "--initrd", inNode("initrd"))
	}
	if d.host, err = d.start(ctx, HostA, append(args, d.cfg.RunArgs...)); err != nil {
		return err
	}
	d.say("A guest (%s) boots on host-a.", d.cfg.KernelName)
	if err := d.waitBooted(ctx); err != nil {
		return err
	}
	// Only now, because a booting guest dirties memory as fast as it can: in emulation, copying would not keep up for long.
	d.say("The guest is up. host-b becomes its twin: memory is copied while the guest runs.")
	args = append([]string{"pollux", "standby", "--listen", twin, "--net", "bridge=" + ClientBridge}, common...)
	if d.twin, err = d.start(ctx, HostB, append(args, d.cfg.StandbyArgs...)); err != nil {
		return err
	}
	return d.waitProtected(ctx)
}

// waitBooted waits until the guest's server takes connections. The bare guest, which takes none, is up at once.
func (d *demo) waitBooted(ctx context.Context) error {
	if d.bare() {
		return nil
	}
	for deadline := time.Now().Add(demoPatience); ; {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := d.lab.DialFrom(attempt, Client, "tcp", guestAddress())
		cancel()
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: the guest is not up after %v: %w", demoPatience, err)
		}
		if err := d.pause(ctx, 250*time.Millisecond, d.witness, d.host); err != nil {
			return err
		}
	}
}

// waitForPort waits until something listens at address, which p is to do.
func (d *demo) waitForPort(ctx context.Context, p *process, node, address string) error {
	for deadline := time.Now().Add(demoPatience); ; {
		conn, err := d.lab.DialNode(ctx, node, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: %s doesn't listen: %w", p, err)
		}
		if err := d.pause(ctx, 200*time.Millisecond, p); err != nil {
			return err
		}
	}
}

func (d *demo) waitProtected(ctx context.Context) error {
	phase := ""
	for deadline := time.Now().Add(demoPatience); ; {
		s, err := d.lab.VMStatus(ctx, HostA, controlPath)
		if err == nil && s.Pair.Phase != phase {
			phase = s.Pair.Phase
			d.say("host-a: %s", phase)
		}
		if err == nil && s.Protected() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: the guest is not protected after %v (host-a is %q)", demoPatience, phase)
		}
		if err := d.pause(ctx, 250*time.Millisecond, d.witness, d.twin, d.host); err != nil {
			return err
		}
	}
}

// pause waits, and fails when a process that has to run has ended, or with ctx.
func (d *demo) pause(ctx context.Context, wait time.Duration, running ...*process) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
	}
	for _, p := range running {
		select {
		case <-p.session.Done():
			return fmt.Errorf("demo: %s ended: %w", p, p.end())
		default:
		}
	}
	return nil
}

// guestCmdline is the guest kernel's command line: the workload's init takes the address from it.
func (d *demo) guestCmdline() string {
	if d.bare() {
		return strings.TrimSpace(fmt.Sprintf("mode=serve+dirty ip=%s port=%d %s", GuestAddr(), guestPort, d.cfg.GuestAppend))
	}
	// quiet: every character on an emulated guest's console is two exits of a nested guest, and the boot log has 40,000.
	return strings.TrimSpace(fmt.Sprintf("console=ttyS0 quiet panic=-1 pollux.ip=%s %s", GuestAddr(), d.cfg.GuestAppend))
}

// bare tells whether the guest is the bare one and not a Linux.
func (d *demo) bare() bool { return d.cfg.GuestInitrd == "" }

// guestAddress is where the guest's register server is.
func guestAddress() string {
	return net.JoinHostPort(GuestAddr().Addr().String(), fmt.Sprint(guestPort))
}

// traffic starts the client and shows the time before the loss.
func (d *demo) traffic(ctx context.Context) (err error) {
	address, flows := guestAddress(), "one TCP connection, one UDP flow"
	if d.bare() {
		address, flows = udpPrefix+address, "two UDP flows"
	}
	if d.client, err = d.lab.StartClient(ctx, address); err != nil {
		return err
	}
	d.say("The client talks to the guest at %s: %s.", guestAddress(), flows)
	for deadline := time.Now().Add(demoPatience); d.client.Stats().Answers == 0; {
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: the guest gave no answer within %v", demoPatience)
		}
		if err := d.clientRuns(); err != nil {
			return err
		}
		if err := d.pause(ctx, 100*time.Millisecond, d.witness, d.twin, d.host); err != nil {
			return err
		}
	}
	d.report.macBefore = d.lab.guestMAC()
	if err := d.watchFor(ctx, HostA, d.cfg.Before, d.witness, d.twin, d.host); err != nil {
		return err
	}
	s, err := d.lab.VMStatus(ctx, HostA, controlPath)
	if err != nil {
		return err
	}
	if !s.Protected() {
		return fmt.Errorf("demo: right before the loss the guest is not protected: host-a is %q", s.Pair.Phase)
	}
	d.report.Epochs = s.Pair.Stats.Commits
	d.cfg.Logger.Debug("right before the loss", "status", fmt.Sprintf("%+v", s))
	return nil
}

// clientRuns fails when the client has ended, with what it found wrong.
func (d *demo) clientRuns() error {
	select {
	case <-d.client.Ended():
	default:
		return nil
	}
	r, err := d.client.Finish()
	if err != nil {
		return err
	}
	d.report.take(r)
	return fmt.Errorf("demo: the client ended early: %s", r.Wrong)
}

// lose cuts host-a's power and waits for the twin. It returns the moment of the loss.
func (d *demo) lose(ctx context.Context) (time.Time, error) {
	began := time.Now()
	if err := d.lab.Kill(HostA); err != nil {
		return time.Time{}, err
	}
	lost := time.Now()
	d.say("POWER LOSS: host-a is gone, in the middle of traffic (%d answers so far).", d.client.Stats().Answers)
	if err := d.client.Lost(lost); err != nil {
		return lost, fmt.Errorf("demo: tell the client: %w", err)
	}
	for {
		s, err := d.lab.VMStatus(ctx, HostB, controlPath)
		if err == nil && s.Pair.Active {
			d.cfg.Logger.Debug("takeover", "status", fmt.Sprintf("%+v", s))
			d.report.TakeoverMS = milliseconds(time.Since(began))
			d.say("host-b runs the guest, %.0f ms after the loss (generation %d%s).", d.report.TakeoverMS, s.Pair.Generation, s.took())
			return lost, nil
		}
		if time.Since(lost) > takeoverPatience {
			return lost, fmt.Errorf("demo: no takeover within %v: host-b is %q", takeoverPatience, s.Pair.Phase)
		}
		if err := d.pause(ctx, takeoverPoll, d.witness, d.twin); err != nil {
			return lost, err
		}
	}
}

func (s VMStatus) took() string {
	t := s.Pair.Takeover
	if t == nil {
		return ""
	}
	return fmt.Sprintf(", from epoch %d, %v after it noticed", t.Epoch, t.Total.Round(100*time.Microsecond))
}

// aftermath waits for the first answer from the twin and shows the traffic that follows.
func (d *demo) aftermath(ctx context.Context, lost time.Time) error {
	for d.client.Stats().LastAnswer.Before(lost) {
		if time.Since(lost) > takeoverPatience {
			return fmt.Errorf("demo: no answer from the guest within %v of the loss", takeoverPatience)
		}
		if err := d.clientRuns(); err != nil {
			return err
		}
		if err := d.pause(ctx, 50*time.Millisecond, d.witness, d.twin); err != nil {
			return err
		}
	}
	d.say("The client has answers again. Its longest wait: %v.", d.client.Stats().LongestGap.Round(time.Millisecond))
	if err := d.watchFor(ctx, HostB, d.cfg.After, d.witness, d.twin); err != nil {
		return err
	}
	d.report.macAfter = d.lab.guestMAC()
	return nil
}

// judge takes the client's report, prints the table, writes the file and tells what failed.
func (d *demo) judge() error {
	r, err := d.client.Finish()
	if err != nil {
		return err
	}
	d.report.take(r)
	d.report.table(d.cfg.Out)
	if d.cfg.Report != "" {
		if err := d.report.write(d.cfg.Report); err != nil {
			return err
		}
		d.say("The report is in %s.", d.cfg.Report)
	}
	return d.report.verdict()
}
