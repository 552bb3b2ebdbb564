package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/pollux-ha/pollux/node"
	"github.com/pollux-ha/pollux/vmm"
)

type runCmd struct {
	Name    string    `default:"vm" help:"The machine's name: in logs, and in the arbiter's record."`
	Kernel  string    `type:"existingfile" help:"A Linux bzImage or a PVH ELF." xor:"start" required:""`
	Initrd  string    `type:"existingfile" help:"An initial RAM disk."`
	Append  string    `help:"The kernel's command line." placeholder:"TEXT"`
	Memory  size      `default:"512M" help:"Guest memory: 512M, 4G."`
	CPUs    int       `name:"cpus" default:"1" help:"Number of processors."`
	Disk    []string  `help:"A raw file or block device; may be repeated." placeholder:"PATH" sep:"none"`
	Net     []netFlag `help:"A network interface: tap=NAME and/or bridge=NAME, mac=ADDRESS; may be repeated." placeholder:"SPEC" sep:"none"`
	Serial  string    `default:"stdio" help:"The first serial port: stdio (Ctrl-A x leaves), none, file:PATH or unix:PATH."`
	Control string    `help:"Path of the machine's control socket." placeholder:"PATH"`
	KVM     string    `name:"kvm" default:"/dev/kvm" help:"Path of KVM's device." placeholder:"PATH"`
	Restore string    `type:"existingfile" help:"Go on from a snapshot instead of booting." placeholder:"FILE" xor:"start" required:""`

	Protect  string        `help:"The twin's address; the machine survives the loss of this host." placeholder:"HOST:PORT" group:"protection"`
	Interval time.Duration `default:"25ms" help:"How often a checkpoint is taken at least while the guest is busy." group:"protection"`
	pairFlags
}

func (c *runCmd) Run(ctx context.Context, log *slog.Logger) error {
	o := node.Options{
		Spec: node.Spec{
			Name: c.Name, MemoryBytes: uint64(c.Memory), CPUs: c.CPUs,
			Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: c.Append, Nets: nets(c.Name, c.Net), KVM: c.KVM,
		},
		Restore: c.Restore, Serial: c.Serial, Control: c.Control, Logger: log,
	}
	for _, path := range c.Disk {
		o.Spec.Disks = append(o.Spec.Disks, node.Disk{Path: path})
	}
	var exit vmm.Exit
	var err error
	if c.Protect == "" {
		exit, err = node.Run(ctx, o)
	} else {
		p, perr := c.pair()
		if perr != nil {
			return perr
		}
		p.Dial, p.Interval = c.Protect, c.Interval
		exit, err = node.RunProtected(ctx, o, p)
	}
	return exitStatus(exit, err)
}

// exitStatus tells the ways in which a machine ends apart.
func exitStatus(exit vmm.Exit, err error) error {
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "pollux: %v\n", exit)
	switch exit.Reason {
	case vmm.ExitPowerOff:
		return nil
	case vmm.ExitReboot:
		return &exitError{status: exitReboot}
	case vmm.ExitPanic:
		return &exitError{status: exitPanic}
	case vmm.ExitStopped:
		return &exitError{status: exitStopped}
	}
	return &exitError{status: exitFailure}
}
