//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPrinted bounds what cat prints of a file: the console is slow, and /dev/zero has no end.
const maxPrinted = 256 << 10

func (g *guest) showUptime([]string) (string, error) {
	load, err := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("uptime %.3f load %s", uptime().Seconds(), strings.TrimSpace(string(load))), err
}

func (g *guest) showStatus([]string) (string, error) {
	if g.server == nil {
		return "", errors.New("the register server does not run, see the messages at start")
	}
	s := fmt.Sprintf("answers %d boot %016x port %d", g.server.Sequence(), g.server.Boot(), g.server.Addr().Port())
	if g.cmdline.dirtier != nil {
		s += "\n" + g.cmdline.dirtier.String()
	}
	return s, nil
}

func memory() (string, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", fmt.Errorf("ask for the memory: %w", err)
	}
	unit := uint64(info.Unit)
	return fmt.Sprintf("total %d KiB free %d KiB", info.Totalram*unit>>10, info.Freeram*unit>>10), nil
}

func kernelLog() (string, error) {
	const readAll, bufferSize = 3, 10 // syslog(2)
	size, err := unix.Klogctl(bufferSize, nil)
	if err != nil {
		return "", fmt.Errorf("ask for the kernel's messages: %w", err)
	}
	b := make([]byte, size)
	n, err := unix.Klogctl(readAll, b)
	if err != nil {
		return "", fmt.Errorf("read the kernel's messages: %w", err)
	}
	return string(b[:n]), nil
}

func list(paths []string) (string, error) {
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	var b strings.Builder
	for _, p := range paths {
		info, err := os.Lstat(p)
		if err != nil {
			return b.String(), err
		}
		if !info.IsDir() {
			fmt.Fprintf(&b, "%v %12d %s\n", info.Mode(), info.Size(), p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return b.String(), err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			fmt.Fprintf(&b, "%v %12d %s\n", info.Mode(), info.Size(), e.Name())
		}
	}
	return b.String(), nil
}

func printFiles(paths []string) (string, error) {
	var b strings.Builder
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return b.String(), err
		}
		n, err := io.Copy(&b, io.LimitReader(f, maxPrinted))
		if err = errors.Join(err, f.Close()); err != nil {
			return b.String(), fmt.Errorf("read %s: %w", p, err)
		}
		if n == maxPrinted {
			fmt.Fprintf(&b, "\n(%s: cut after %d bytes)\n", p, maxPrinted)
		}
	}
	return b.String(), nil
}

func echo(words []string) (string, error) {
	n := len(words)
	if n < 2 || words[n-2] != ">" {
		return strings.Join(words, " "), nil
	}
	text := strings.Join(words[:n-2], " ") + "\n"
	f, err := os.OpenFile(words[n-1], os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text)
	return "", errors.Join(err, f.Close())
}

func mountOne(args []string) (string, error) {
	switch len(args) {
	case 0:
		return printFiles([]string{"/proc/mounts"})
	case 3:
	default:
		return "", errors.New("usage: mount [SOURCE TARGET KIND]")
	}
	if err := os.MkdirAll(args[1], 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(args[0], args[1], args[2], 0, ""); err != nil {
		return "", fmt.Errorf("mount %s at %s as %s: %w", args[0], args[1], args[2], err)
	}
	return "", nil
}

func unmountOne(target string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

func pingOne(to string) (string, error) {
	a, err := netip.ParseAddr(to)
	if err != nil {
		return "", err
	}
	return ping(a)
}

func syncAll() (string, error) {
	unix.Sync()
	return "", nil
}
