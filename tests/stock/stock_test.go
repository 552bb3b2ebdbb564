package stock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/linux"
	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// cache is where all tests keep their kernels.
var cache = filepath.Join("..", "..", "build", "kernels")

const (
	bootPatience  = 8 * time.Minute // a nested guest in software emulation, on a machine that is busy
	shellPatience = time.Minute
	disk          = lab.WorkDir + "/disk"
	control       = lab.WorkDir + "/control"
)

// host is the emulated host that the tests run in.
type host struct {
	*lab.Lab
	ctx context.Context
}

// kernelFiles are a guest's kernel and initramfs inside the host.
type kernelFiles struct{ image, initrd string }

func TestStockKernels(t *testing.T) {
	testtier.Lab(t)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	names := []string{"gokrazy", "debian"}
	kernels := map[string]linux.Kernel{}
	for _, name := range names {
		kernel, err := linux.Find(t.Context(), name, cache)
		must(t, err)
		kernels[name] = kernel
	}
	binary := filepath.Join(t.TempDir(), "pollux")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/pollux")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build pollux: %v\n%s", err, out)
	}
	// A host that dies by itself says nothing about Pollux; then, and only then, there is a second attempt.
	must(t, lab.RepeatOnce(t.Context(), log, func(ctx context.Context, attempt int) (err error) {
		dir := filepath.Join(t.TempDir(), fmt.Sprintf("lab%d", attempt))
		l, err := lab.Up(ctx, lab.Config{
			Dir: dir, Backend: lab.Emulated, Nodes: []string{lab.HostA}, Binary: binary, Kernel: kernels["gokrazy"].Image, Logger: log,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Down()) }()
		guarded, stop, err := l.Guard(ctx)
		if err != nil {
			return err
		}
		defer stop()
		h := &host{l, guarded}
		return l.Explain(h.all(t, names, kernels))
	}))
}

func (h *host) all(t *testing.T, names []string, kernels map[string]linux.Kernel) error {
	empty := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 16<<20)); err != nil {
		return err
	}
	if err := h.Put(h.ctx, lab.HostA, empty, disk); err != nil {
		return err
	}
	for _, name := range names {
		files, err := h.install(t, name, kernels[name])
		if err != nil {
			return err
		}
		for _, cpus := range []int{1, 4} {
			t.Logf("%s with %d processors", name, cpus)
			if err := h.boots(t, files, cpus); err != nil {
				return fmt.Errorf("%s with %d processors: %w", name, cpus, err)
			}
		}
		if name == "gokrazy" {
			if err := h.goesOnFromSnapshot(t, files); err != nil {
				return fmt.Errorf("%s from a snapshot: %w", name, err)
			}
		}
	}
	return nil
}

// install puts a kernel and its initramfs into the host.
func (h *host) install(t *testing.T, name string, kernel linux.Kernel) (kernelFiles, error) {
	initrd := filepath.Join(t.TempDir(), "initramfs-"+name)
	if err := linux.Build(h.ctx, kernel, initrd); err != nil {
		return kernelFiles{}, err
	}
	f := kernelFiles{path.Join(lab.WorkDir, "vmlinuz-"+name), path.Join(lab.WorkDir, "initramfs-"+name)}
	return f, errors.Join(h.Put(h.ctx, lab.HostA, kernel.Image, f.image), h.Put(h.ctx, lab.HostA, initrd, f.initrd))
}

// boots boots the kernel to a shell, looks around, and ends it with the power button.
func (h *host) boots(t *testing.T, files kernelFiles, cpus int) (err error) {
	began := time.Now()
	m := h.start(
		"--kernel", files.image, "--initrd", files.initrd, "--append", "console=ttyS0 quiet pollux.ip=10.77.0.50/24",
		"--cpus", strconv.Itoa(cpus), "--memory", "384M", "--net", "bridge=br0", "--disk", disk, "--control", control,
	)
	defer func() { err = errors.Join(err, m.close()) }()
	ready, err := m.expect(fmt.Sprintf(`pollux-guest: ready ip=10\.77\.0\.50/24 port=7777 cpus=%d `, cpus), bootPatience)
	if err != nil {
		return err
	}
	t.Logf("after %v: %s", time.Since(began).Round(100*time.Millisecond), ready)
	for _, c := range [][2]string{
		{"uptime", `^uptime \d+\.\d+ load `},
		{"ip", `^eth0 up .*10\.77\.0\.50/24`},
		{"ping 10.77.0.11", `^10\.77\.0\.11 answered after `},
		{"blkwrite /dev/vda 5 4", `^wrote 4 MiB of /dev/vda`},
		{"blkverify /dev/vda 5 4", `^verified 4 MiB of /dev/vda`},
		{"cat /sys/class/misc/hw_random/rng_current", `^virtio_rng`},
		{"cat /sys/devices/system/clocksource/clocksource0/current_clocksource", `^kvm-clock`},
	} {
		if _, err := m.do(c[0], c[1]); err != nil {
			return err
		}
	}
	if errors := m.saw(`ACPI (BIOS )?(Error|Warning)|\bOops\b|BUG:|WARNING: CPU|soft lockup|rcu.*stall`); len(errors) > 0 {
		t.Errorf("the kernel complains: %q", errors)
	}
	if err := h.pollux("power-button", "--control", control); err != nil {
		return err
	}
	return m.ends(0)
}

// goesOnFromSnapshot takes a snapshot, cuts the machine's power and restores it: its uptime, memory, timers and network go on.
func (h *host) goesOnFromSnapshot(t *testing.T, files kernelFiles) (err error) {
	const file = lab.WorkDir + "/snapshot"
	devices := []string{"--net", "bridge=br0", "--disk", disk, "--control", control}
	m := h.start(append([]string{
		"--kernel", files.image, "--initrd", files.initrd, "--memory", "256M",
		"--append", "console=ttyS0 quiet pollux.ip=10.77.0.50/24 pollux.dirty=2000:500",
	}, devices...)...)
	defer func() { err = errors.Join(err, m.close()) }()
	if _, err := m.expect(`pollux-guest: ready `, bootPatience); err != nil {
		return err
	}
	before, err := m.uptime()
	if err != nil {
		return err
	}
	if err := h.pollux("snapshot", "--control", control, file); err != nil {
		return err
	}
	after, err := m.uptime()
	if err != nil {
		return err
	}
	if err := h.pollux("quit", "--control", control); err != nil {
		return err
	}
	const stopped = 5
	if err := m.ends(stopped); err != nil {
		return err
	}
	r := h.start(append([]string{"--restore", file}, devices...)...)
	defer func() { err = errors.Join(err, r.close()) }()
	again, err := r.uptime()
	if err != nil {
		return err
	}
	t.Logf("uptime before the snapshot %.2f s, after it %.2f s, after the restore %.2f s", before, after, again)
	if again < before || again > after+30 {
		t.Errorf("uptime was %.2f s before the snapshot and %.2f s after it; restored it is %.2f s", before, after, again)
	}
	if _, err := r.do("ping 10.77.0.11", `^10\.77\.0\.11 answered after `); err != nil {
		return err
	}
	if _, err := r.do("status", `^dirtied [1-9]\d* pages lost 0$`); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	later, err := r.uptime()
	if err != nil {
		return err
	}
	if later <= again {
		t.Errorf("uptime stands still at %.2f s", later)
	}
	if err := h.pollux("power-button", "--control", control); err != nil {
		return err
	}
	return r.ends(0)
}

// pollux runs a short command in the host.
func (h *host) pollux(args ...string) error {
	var said strings.Builder
	err := h.Exec(h.ctx, lab.HostA, lab.Command{Args: append([]string{"pollux"}, args...)}, nil, &said, &said)
	if err != nil {
		return fmt.Errorf("pollux %s: %w: %s", args[0], err, said.String())
	}
	return nil
}

// machine is a `pollux run` in the host, seen through its serial port.
type machine struct {
	cancel context.CancelFunc
	in     *io.PipeWriter
	lines  chan string
	ended  chan error // its one value is how the command ended
	seen   []string
	over   bool
}

func (h *host) start(args ...string) *machine {
	ctx, cancel := context.WithCancel(h.ctx)
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	m := &machine{cancel: cancel, in: in, lines: make(chan string, 1<<16), ended: make(chan error, 1)}
	go func() {
		defer close(m.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			// An answer may come behind the prompt that was printed before its command was typed.
			m.lines <- strings.TrimPrefix(strings.TrimRight(s.Text(), "\r"), "pollux# ")
		}
	}()
	go func() {
		command := lab.Command{Args: append([]string{"pollux", "--log-level=warn", "run", "--serial=stdio"}, args...)}
		err := h.Exec(ctx, lab.HostA, command, stdin, stdout, stdout)
		stdout.Close()
		stdin.Close()
		m.ended <- err
	}()
	return m
}

// expect waits for a line that matches, and returns it.
func (m *machine) expect(pattern string, within time.Duration) (string, error) {
	re := regexp.MustCompile(pattern)
	limit := time.After(within)
	from := len(m.seen)
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				return "", fmt.Errorf("the machine ended before it said %q; last of all: %q", pattern, m.tail(from))
			}
			m.seen = append(m.seen, line)
			if re.MatchString(line) {
				return line, nil
			}
		case <-limit:
			return "", fmt.Errorf("the guest has not said %q within %v; last of all: %q", pattern, within, m.tail(from))
		}
	}
}

func (m *machine) tail(from int) []string { return m.seen[max(from, len(m.seen)-15):] }

// saw returns the lines so far that match.
func (m *machine) saw(pattern string) (found []string) {
	re := regexp.MustCompile(pattern)
	for _, line := range m.seen {
		if re.MatchString(line) {
			found = append(found, line)
		}
	}
	return found
}

// do types a command and waits for its answer.
func (m *machine) do(command, answer string) (string, error) {
	if _, err := io.WriteString(m.in, command+"\n"); err != nil {
		return "", fmt.Errorf("type %q: %w", command, err)
	}
	line, err := m.expect(answer, shellPatience)
	if err != nil {
		return "", fmt.Errorf("%q: %w", command, err)
	}
	return line, nil
}

func (m *machine) uptime() (float64, error) {
	line, err := m.do("uptime", `^uptime \d+\.\d+ load `)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.Fields(line)[1], 64)
}

// ends waits for the command, which must end with this exit status.
func (m *machine) ends(status int) error {
	select {
	case err := <-m.ended:
		m.over = true
		var exit *lab.ExitError
		switch {
		case err == nil && status == 0, errors.As(err, &exit) && exit.Code == status:
			return nil
		}
		return fmt.Errorf("the machine ended with %w, want exit status %d", err, status)
	case <-time.After(shellPatience):
		return fmt.Errorf("the machine is still on after %v", shellPatience)
	}
}

// close ends what is still running.
func (m *machine) close() error {
	m.cancel()
	err := m.in.Close()
	if !m.over {
		for range m.lines { // until the command's output has ended
		}
		err = errors.Join(err, cutOff(<-m.ended))
	}
	return err
}

// cutOff is nil for the end of a command that close has brought about.
func cutOff(err error) error {
	var exit *lab.ExitError
	if errors.Is(err, context.Canceled) || errors.As(err, &exit) {
		return nil
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
