package linux_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/linux"
	"github.com/pollux-ha/pollux/guests/register/history"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// cache is where the kernels of all tests and of the lab are kept.
var cache = filepath.Join("..", "..", "build", "kernels")

// machine is a guest under QEMU's software emulation: an independent machine that shows whether a fault is the guest's.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      io.Writer
	lines   chan string
	ended   chan error
	address string // of the register server, on loopback
	qmp     string
}

func start(t *testing.T, kernel linux.Kernel, initrd string) *machine {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 16<<20))
	m := &machine{t: t, lines: make(chan string, 10000), ended: make(chan error, 1), address: freeAddress(t), qmp: filepath.Join(dir, "qmp")}
	m.cmd = exec.Command(
		"nice", "-n", "5",
		// One CPU: with two, QEMU 7.2 loses a race against Linux patching its own text, once in a while.
		"qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none",
		"-kernel", kernel.Image, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 pollux.ip=10.0.2.15/24 pollux.gw=10.0.2.2 pollux.dirty=2000:500",
		"-serial", "stdio", "-qmp", "unix:"+m.qmp+",server=on,wait=off",
		// A network inside of QEMU: the guest answers what comes by the forwarded port and begins nothing.
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=tcp:%s-:7777,hostfwd=udp:%s-:7777", m.address, m.address),
		"-device", "virtio-net-pci,netdev=n",
		"-drive", "if=none,id=d,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=d",
		"-device", "virtio-rng-pci",
	)
	m.cmd.Stderr = os.Stderr
	in, err := m.cmd.StdinPipe()
	must(t, err)
	m.in = in
	out, err := m.cmd.StdoutPipe()
	must(t, err)
	must(t, m.cmd.Start())
	go m.read(out)
	t.Cleanup(func() {
		m.cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		for range m.ended {
		}
	})
	return m
}

// read passes the console's lines on, and then how the machine ended.
func (m *machine) read(out io.Reader) {
	s := bufio.NewScanner(out)
	for s.Scan() {
		// An answer may come behind the prompt that was printed before its command was typed.
		m.lines <- strings.TrimPrefix(strings.TrimRight(s.Text(), "\r"), "pollux# ")
	}
	close(m.lines)
	err := m.cmd.Wait()
	m.ended <- err
	close(m.ended)
}

// expect waits for a line that matches, and returns it.
func (m *machine) expect(pattern string, within time.Duration) string {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(within)
	var seen []string
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				m.t.Fatalf("the machine ended before it said %q; last of all: %q", pattern, tail(seen))
			}
			if re.MatchString(line) {
				return line
			}
			seen = append(seen, line)
		case <-limit:
			m.t.Fatalf("the guest has not said %q within %v; last of all: %q", pattern, within, tail(seen))
		}
	}
}

func tail(lines []string) []string { return lines[max(0, len(lines)-10):] }

// do types a command and waits for an answer.
func (m *machine) do(command, answer string) {
	m.t.Helper()
	if _, err := io.WriteString(m.in, command+"\n"); err != nil {
		m.t.Fatal(err)
	}
	m.expect(answer, time.Minute)
}

// pressPowerButton sends QMP's system_powerdown.
func (m *machine) pressPowerButton() {
	m.t.Helper()
	c, err := net.Dial("unix", m.qmp)
	must(m.t, err)
	defer c.Close()
	_, err = io.WriteString(c, `{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}`)
	must(m.t, err)
	s := bufio.NewScanner(c)
	for s.Scan() && !strings.Contains(s.Text(), "POWERDOWN") {
	}
}

func (m *machine) waitForEnd() {
	m.t.Helper()
	select {
	case err := <-m.ended:
		if err != nil {
			m.t.Errorf("QEMU ended with %v", err)
		}
	case <-time.After(time.Minute):
		m.t.Error("the machine is still on after a minute")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// freeAddress is one on loopback whose port is free for TCP and UDP, most likely still so in a moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	u, err := net.ListenPacket("udp", l.Addr().String())
	must(t, errors.Join(err, l.Close()))
	must(t, u.Close())
	return l.Addr().String()
}

// Both kernels boot to a guest that serves registers over TCP and UDP, has a disk and a shell, and obeys its power button.
func TestBoot(t *testing.T) {
	testtier.Lab(t)
	for _, name := range []string{"gokrazy", "debian"} {
		t.Run(name, func(t *testing.T) {
			kernel, err := linux.Find(t.Context(), name, cache)
			must(t, err)
			initrd := filepath.Join(t.TempDir(), "initramfs")
			must(t, linux.Build(t.Context(), kernel, initrd))
			began := time.Now()
			m := start(t, kernel, initrd)
			ready := m.expect(`pollux-guest: `, 4*time.Minute)
			if !strings.HasPrefix(ready, "pollux-guest: ready ip=10.0.2.15/24 port=7777 cpus=1 ") {
				t.Fatalf("the guest says %q", ready)
			}
			t.Logf("after %v: %s", time.Since(began).Round(time.Millisecond), ready)
			checkRegisters(t, m.address)
			checkShell(m)
			m.pressPowerButton()
			m.expect("power button pressed", time.Minute)
			m.waitForEnd()
		})
	}
}

func checkRegisters(t *testing.T, address string) {
	t.Helper()
	h := history.New()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	must(t, history.Load(ctx, history.LoadOptions{Address: address, TCP: 2, UDP: 2, Pace: 5 * time.Millisecond, UDPTimeout: time.Second}, h))
	r := h.Check(t.Context())
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.Stats.TCPAnswers < 5 || r.Stats.UDPAnswers < 5 {
		t.Errorf("few answers: %+v", r.Stats)
	}
	t.Logf("%d answers over TCP, %d over UDP, p50 %v, p99 %v", r.Stats.TCPAnswers, r.Stats.UDPAnswers, r.Stats.P50, r.Stats.P99)
}

func checkShell(m *machine) {
	m.t.Helper()
	m.do("status", `^answers \d+ boot [0-9a-f]{16} port 7777$`)
	m.do("status", `^dirtied [1-9]\d* pages lost 0$`)
	m.do("uptime", `^uptime \d+\.\d+ load `)
	m.do("ip", `^eth0 up .*10\.0\.2\.15/24`)
	m.do("ping 10.0.2.2", `^10\.0\.2\.2 answered after `)
	m.do("blkwrite /dev/vda 5 4", `^wrote 4 MiB of /dev/vda`)
	m.do("blkverify /dev/vda 5 4", `^verified 4 MiB of /dev/vda`)
	m.do("blkverify /dev/vda 6 1", `^error: /dev/vda differs in the block at byte 0:`)
	m.do("cat /sys/class/misc/hw_random/rng_current", `^virtio_rng`)
	m.do("dmesg", `Command line: .*pollux\.ip=`)
	m.do("/init", `this is the first process of a guest`)
	m.do("nonsense", `^error: no command "nonsense"`)
}

// The words that end a machine do so, each in its own way.
func TestEndings(t *testing.T) {
	testtier.Lab(t)
	kernel, err := linux.Find(t.Context(), "gokrazy", cache)
	must(t, err)
	initrd := filepath.Join(t.TempDir(), "initramfs")
	must(t, linux.Build(t.Context(), kernel, initrd))
	for command, says := range map[string]string{
		"poweroff": "reboot: Power down", "panic": "Kernel panic - not syncing: sysrq triggered crash", "reboot": "reboot: Restarting system",
	} {
		t.Run(command, func(t *testing.T) {
			m := start(t, kernel, initrd)
			m.expect("pollux-guest: ready", 4*time.Minute)
			m.do(command, says)
			m.waitForEnd()
		})
	}
}
