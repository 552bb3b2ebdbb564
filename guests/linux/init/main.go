//go:build linux

// Command init is the first process of the Linux guest: the only one that its initramfs needs.
//
// It mounts the kernel's file systems, loads the modules that the builder put in, configures the network from the kernel
// command line, serves the register protocol, and gives a small shell on the console. It powers off when the power
// button is pressed, and never exits: that would be a kernel panic.
//
// The kernel command line may say:
//
//	pollux.ip=10.77.0.10/24         address of the first network card; of another one: pollux.ip=eth1:10.77.1.10/24
//	pollux.gw=10.77.0.1             default route
//	pollux.port=7777                of the register server
//	pollux.dirty=5000:20000         change 5000 pages a second over a working set of 20000, and check what they hold
package main

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/pollux-ha/pollux/guests/register"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pollux-guest: this is the first process of a guest, it does nothing elsewhere")
		os.Exit(2)
	}
	g := &guest{log: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))}
	g.children.start(g.log)
	g.up()
	for {
		err := g.shell()
		g.log.Warn("the console ended and is opened again", "error", err)
		time.Sleep(time.Second)
	}
}

// withoutTime leaves the time out of log lines: a guest's console is read together with its host's log, which has it.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// guest is what the process knows about itself.
type guest struct {
	log      *slog.Logger
	cmdline  options
	server   *register.Server
	children children
}

// up brings everything up as far as it goes: a guest without a network still has its console, and says what is missing.
func (g *guest) up() {
	problems := 0
	try := func(what string, err error) {
		if err != nil {
			problems++
			g.log.Error(what, "error", err)
		}
	}
	try("mount the kernel's file systems", mountAll())
	cmdline, err := readCmdline()
	try("read the kernel command line", err)
	g.cmdline = cmdline
	try("load modules", loadAll())
	go g.watchPowerButton()
	addresses, err := configureNetwork(cmdline)
	try("configure the network", err)
	g.server, err = register.Listen(fmt.Sprintf(":%d", cmdline.port), g.log)
	try("serve registers", err)
	if cmdline.dirtier != nil {
		try("change pages", cmdline.dirtier.start())
	}
	if problems > 0 {
		fmt.Printf("pollux-guest: %d problems, see above\n", problems)
	}
	fmt.Printf("pollux-guest: ready ip=%s port=%d cpus=%d kernel=%s uptime=%.3f\n", addresses, cmdline.port, cpus(), kernelRelease(), uptime().Seconds())
}
