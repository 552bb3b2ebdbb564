package bare_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// patience bounds every wait for a guest. A guest takes about a second to boot in software emulation on an idle machine.
const patience = 90 * time.Second

// console is what a guest prints, line by line.
type console struct {
	t     testing.TB
	lines chan string // closed when the guest is over
	seen  []string    // lines taken from the channel
}

// guest is the bare guest in a QEMU with software emulation, which runs anywhere.
type guest struct {
	console
	cmd     *exec.Cmd
	ended   chan struct{} // QEMU has ended and exitErr is set
	exitErr error
}

// boot starts the guest with a command line and further QEMU arguments. It is killed when the test ends.
func boot(t *testing.T, commandLine string, args ...string) *guest {
	t.Helper()
	testtier.Lab(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{
		"-accel", "tcg", "-M", "q35", "-m", "128M", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-device", "pvpanic", "-kernel", elf, "-append", commandLine,
	}, args...)
	g := &guest{
		console: console{t: t, lines: make(chan string, 1024)},
		cmd:     exec.Command("qemu-system-x86_64", args...),
		ended:   make(chan struct{}),
	}
	g.cmd.Stderr = os.Stderr
	stdout, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.ended)
		defer close(g.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			g.lines <- strings.TrimSuffix(s.Text(), "\r")
		}
		g.exitErr = g.cmd.Wait()
	}()
	t.Cleanup(g.kill)
	return g
}

func (g *guest) kill() {
	_ = g.cmd.Process.Kill() // it may have ended by itself
	for range g.lines {      // so that the reader isn't stuck on a full channel
	}
	<-g.ended
}

// line waits for a line that starts with prefix, and fails the test on a panic of the guest unless that is what it is for.
func (c *console) line(prefix string) string {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, open := <-c.lines:
			if !open {
				c.t.Fatalf("the guest ended without a line %q:\n%s", prefix, strings.Join(c.seen, "\n"))
			}
			c.seen = append(c.seen, line)
			if strings.HasPrefix(line, prefix) {
				return line
			}
			if strings.HasPrefix(line, "panic:") {
				c.t.Fatalf("waiting for %q: %s", prefix, line)
			}
		case <-timeout:
			c.t.Fatalf("no line %q within %v:\n%s", prefix, patience, strings.Join(c.seen, "\n"))
		}
	}
}

// last returns the counters of the last progress line that was taken.
func (c *console) last() map[string]uint64 {
	c.t.Helper()
	for i := len(c.seen) - 1; i >= 0; i-- {
		if strings.HasPrefix(c.seen[i], "tick=") {
			return counters(c.t, c.seen[i])
		}
	}
	c.t.Fatalf("no progress line:\n%s", strings.Join(c.seen, "\n"))
	return nil
}

// finish waits for "done" and the power-off, and returns the counters of the last progress line.
func (g *guest) finish() map[string]uint64 {
	g.t.Helper()
	g.line("done")
	g.waitEnd()
	return g.last()
}

// waitEnd expects QEMU to exit by itself: the guest powered off, or its panic reached the pvpanic device.
func (g *guest) waitEnd() {
	g.t.Helper()
	select {
	case <-g.ended:
		if g.exitErr != nil {
			g.t.Fatalf("QEMU: %v", g.exitErr)
		}
	case <-time.After(patience):
		g.t.Fatalf("the machine is still on after %q", g.seen[len(g.seen)-1])
	}
}

func counters(t testing.TB, line string) map[string]uint64 {
	t.Helper()
	m, ok := bare.Counters(line)
	if !ok {
		t.Fatalf("%q is no progress line", line)
	}
	return m
}

// shortDir is a temporary directory whose name leaves room for Unix sockets, which have 107 bytes for theirs.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bare")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// monitor is a connection to QEMU's QMP socket.
type monitor struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
}

func dialMonitor(t *testing.T, path string) *monitor {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m := &monitor{t: t, conn: conn, in: json.NewDecoder(conn)}
	m.run("qmp_capabilities", nil)
	return m
}

// run executes a command and returns what it gave.
func (m *monitor) run(command string, arguments map[string]any) map[string]any {
	m.t.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		m.t.Fatal(err)
	}
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.t.Fatal(err)
	}
	for {
		var reply struct {
			Return map[string]any
			Error  map[string]any
		}
		if err := m.in.Decode(&reply); err != nil {
			m.t.Fatalf("QMP %s: %v", command, err)
		}
		if reply.Error != nil {
			m.t.Fatalf("QMP %s: %v", command, reply.Error)
		}
		if reply.Return != nil {
			return reply.Return
		}
		// The greeting, or an event.
	}
}

// saveTo writes the running guest's state to a file and leaves the guest stopped.
func (m *monitor) saveTo(file string) {
	m.t.Helper()
	m.run("migrate", map[string]any{"uri": "exec:cat > " + file})
	deadline := time.Now().Add(patience)
	for {
		status := m.run("query-migrate", nil)["status"]
		if status == "completed" {
			return
		}
		if status == "failed" || time.Now().After(deadline) {
			m.t.Fatalf("saving the guest: %v", status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func monitorArgs(path string) []string {
	return []string{"-qmp", fmt.Sprintf("unix:%s,server=on,wait=off", path)}
}

func diskArgs(file string) []string {
	return []string{
		"-drive", "if=none,id=disk,format=raw,file=" + filepath.Clean(file),
		"-device", "virtio-blk-pci,disable-legacy=on,drive=disk",
	}
}
