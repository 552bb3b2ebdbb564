//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const prompt = "pollux# "

// command is one word of the shell. Its result is printed with a line end; an error is printed as such.
type command struct {
	name, arguments, help string
	least, most           int // arguments; most below 0: any number
	run                   func(g *guest, args []string) (string, error)
}

// commands are all that the shell knows, besides paths of programs.
func commands() []command {
	return []command{
		{"help", "", "this list", 0, 0, func(*guest, []string) (string, error) { return help(), nil }},
		{"uptime", "", "seconds since the kernel started, and the load", 0, 0, (*guest).showUptime},
		{"status", "", "answers of the register server and its boot nonce; pages changed and found lost", 0, 0, (*guest).showStatus},
		{"ip", "", "network cards and addresses", 0, 0, func(*guest, []string) (string, error) { return describeNetwork() }},
		{"mem", "", "memory", 0, 0, func(*guest, []string) (string, error) { return memory() }},
		{"cpus", "", "processors that are online", 0, 0, func(*guest, []string) (string, error) { return fmt.Sprint(cpus()), nil }},
		{"dmesg", "", "the kernel's messages", 0, 0, func(*guest, []string) (string, error) { return kernelLog() }},
		{"uname", "", "the kernel's version", 0, 0, func(*guest, []string) (string, error) { return kernelRelease(), nil }},
		{"ls", "[PATH...]", "list files", 0, -1, func(_ *guest, a []string) (string, error) { return list(a) }},
		{"cat", "PATH...", "print files", 1, -1, func(_ *guest, a []string) (string, error) { return printFiles(a) }},
		{"echo", "[WORD...]", "print words; \"> PATH\" at the end writes them to a file", 0, -1, func(_ *guest, a []string) (string, error) { return echo(a) }},
		{"mount", "[SOURCE TARGET KIND]", "mount a file system, or list what is mounted", 0, 3, func(_ *guest, a []string) (string, error) { return mountOne(a) }},
		{"umount", "TARGET", "unmount a file system", 1, 1, func(_ *guest, a []string) (string, error) { return "", unmountOne(a[0]) }},
		{"modprobe", "MODULE", "load a module of the initramfs, and what it needs", 1, 1, func(_ *guest, a []string) (string, error) { return "", loadModule(a[0]) }},
		{"ping", "ADDRESS", "three ICMP echo requests", 1, 1, func(_ *guest, a []string) (string, error) { return pingOne(a[0]) }},
		{"blkwrite", "DEVICE SEED MIB", "write a pattern, and flush", 3, 3, func(_ *guest, a []string) (string, error) { return blockCommand(a, true) }},
		{"blkverify", "DEVICE SEED MIB", "read past the cache and compare with the pattern", 3, 3, func(_ *guest, a []string) (string, error) { return blockCommand(a, false) }},
		{"sync", "", "write everything to the disks", 0, 0, func(*guest, []string) (string, error) { return syncAll() }},
		{"poweroff", "", "power off", 0, 0, func(*guest, []string) (string, error) { return "", powerOff() }},
		{"reboot", "", "reset", 0, 0, func(*guest, []string) (string, error) { return "", reboot() }},
		{"panic", "", "make the kernel panic", 0, 0, func(*guest, []string) (string, error) { return "", crash() }},
	}
}

// shell reads commands from the console until that ends.
func (g *guest) shell() error {
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	defer console.Close()
	lines := bufio.NewReader(console)
	for {
		fmt.Fprint(console, prompt)
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return errors.New("end of input")
		}
		if err != nil {
			return fmt.Errorf("read the console: %w", err)
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		out, err := g.execute(words)
		if out != "" {
			fmt.Fprintln(console, strings.TrimSuffix(out, "\n"))
		}
		if err != nil {
			fmt.Fprintln(console, "error:", err)
		}
	}
}

// execute runs one command line.
func (g *guest) execute(words []string) (string, error) {
	name, args := words[0], words[1:]
	if strings.HasPrefix(name, "/") {
		return "", g.children.run(words)
	}
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return c.name == name })
	if i < 0 {
		return "", fmt.Errorf("no command %q; \"help\" lists them, a path runs a program", name)
	}
	c := all[i]
	if len(args) < c.least || c.most >= 0 && len(args) > c.most {
		return "", fmt.Errorf("usage: %s %s", c.name, c.arguments)
	}
	return c.run(g, args)
}

func help() string {
	var b strings.Builder
	for _, c := range commands() {
		fmt.Fprintf(&b, "%-32s %s\n", c.name+" "+c.arguments, c.help)
	}
	return b.String()
}
