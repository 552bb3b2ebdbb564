package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint/tlstest"
	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/netbuffer"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// pollux runs the command as main does.
func pollux(args ...string) (status int, stdout, stderr string) {
	var o, e bytes.Buffer
	status = run(args, &o, &e)
	return status, o.String(), e.String()
}

// refused runs the command, which must fail with one line on standard error that says all of want.
func refused(t *testing.T, wantStatus int, want []string, args ...string) {
	t.Helper()
	status, _, stderr := pollux(append([]string{"--log-level=error"}, args...)...)
	if status != wantStatus {
		t.Errorf("pollux %s: exit status %d, want %d; it said: %s", strings.Join(args, " "), status, wantStatus, stderr)
	}
	if n := strings.Count(stderr, "\n"); n != 1 {
		t.Errorf("pollux %s: said %d lines, want one:\n%s", strings.Join(args, " "), n, stderr)
	}
	for _, w := range want {
		if !strings.Contains(stderr, w) {
			t.Errorf("pollux %s: said %q, want it to say %q", strings.Join(args, " "), stderr, w)
		}
	}
}

func bareGuest(t *testing.T) string {
	t.Helper()
	path, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsageErrors(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{}, "expected one of"},
		{[]string{"fly"}, "fly"},
		{[]string{"run"}, "--kernel"},
		{[]string{"run", "--kernel", "/nonexistent"}, "/nonexistent"},
		{[]string{"run", "--kernel", kernel, "--memory", "much"}, `"much" is not a size`},
		{[]string{"run", "--kernel", kernel, "--memory", "99999999999999T"}, "is not a size"},
		{[]string{"run", "--kernel", kernel, "--net", "mac=nonsense"}, `"nonsense" is not a MAC address`},
		{[]string{"run", "--kernel", kernel, "--net", "wire=x"}, `no such setting "wire"`},
		{[]string{"run", "--kernel", kernel, "--net", "tap"}, "want tap=NAME"},
		{[]string{"status"}, "--control"},
		{[]string{"lab", "exec", "host-a"}, "command"},
	} {
		refused(t, exitUsage, []string{c.want}, c.args...)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"lab", "--help"}, {"version"}} {
		if status, stdout, stderr := pollux(args...); status != 0 || stdout == "" || stderr != "" {
			t.Errorf("pollux %v: exit status %d, %d bytes of output, errors %q", args, status, len(stdout), stderr)
		}
	}
}

func TestNoKVM(t *testing.T) {
	none := filepath.Join(t.TempDir(), "kvm")
	refused(t, exitFailure, []string{none, "KVM"}, "run", "--kernel", os.Args[0], "--serial=none", "--kvm", none)
	file := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, exitFailure, []string{file}, "run", "--kernel", os.Args[0], "--serial=none", "--kvm", file)
}

// A user who may not use KVM is told so. The thread's file system uid is all that the kernel looks at when a file is opened.
func TestNoPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("becoming another user needs root")
	}
	dir := t.TempDir()
	kvm, kernel := filepath.Join(dir, "kvm"), filepath.Join(dir, "kernel")
	if err := errors.Join(
		os.WriteFile(kvm, nil, 0o600), os.WriteFile(kernel, nil, 0o644),
		os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755), // the test's own directories are private
	); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	if err := syscall.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setfsuid(0); err != nil {
			t.Error(err)
		}
	}()
	refused(t, exitFailure, []string{kvm, "permission"}, "run", "--serial=none", "--kernel", kernel, "--kvm", kvm)
}

func TestRunRefusals(t *testing.T) {
	testtier.Machine(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("not a kernel\n"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	guest := bareGuest(t)
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--kernel", text}, []string{"not a kernel", text}},
		{[]string{"--kernel", guest, "--memory=1M"}, []string{"1048576 bytes", "at least 4 MiB"}},
		{[]string{"--kernel", guest, "--memory=4M", "--initrd", guest, "--append", strings.Repeat("x", 1<<20)}, []string{"command line"}},
		{[]string{"--kernel", guest, "--cpus=0"}, []string{"0 CPUs"}},
		{[]string{"--kernel", guest, "--disk=/nonexistent/disk"}, []string{"/nonexistent/disk"}},
		{[]string{"--kernel", guest, "--serial=unix:/nonexistent/serial"}, []string{"/nonexistent/serial"}},
		{[]string{"--kernel", guest, "--serial=smoke"}, []string{"smoke", "file:PATH"}},
		{[]string{"--kernel", guest, "--control=/nonexistent/control"}, []string{"/nonexistent/control"}},
		{[]string{"--kernel", guest, "--net=bridge=nosuchbridge"}, []string{"nosuchbridge", "ip link add"}},
		{[]string{"--restore", text}, []string{text, "snapshot"}},
	} {
		refused(t, exitFailure, c.want, append([]string{"run", "--serial=none"}, c.args...)...)
	}
}

func TestTapIsTaken(t *testing.T) {
	testtier.Machine(t)
	if os.Geteuid() != 0 {
		t.Fatal("taps need root")
	}
	tap, err := netbuffer.OpenTap("polluxtest0")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	refused(t, exitFailure, []string{"polluxtest0", "taken"},
		"run", "--serial=none", "--kernel", bareGuest(t), "--memory=64M", "--net=tap=polluxtest0")
}

func TestPairRefusals(t *testing.T) {
	testtier.Machine(t)
	pki, err := tlstest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.Issue("localhost", net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	tls := []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", pki.CAFile}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := silent.Addr().String()
	silent.Close()
	guest := bareGuest(t)
	run := append([]string{"run", "--serial=none", "--memory=64M", "--kernel", guest, "--protect", "127.0.0.1:1"}, tls...)
	refused(t, exitFailure, []string{"in use"}, append([]string{"standby", "--listen", busy.Addr().String()}, tls...)...)
	refused(t, exitFailure, []string{address, "does not answer"}, append(run, "--arbiter", "http://"+address)...)
	refused(t, exitFailure, []string{"disks are not mirrored"}, append(run, "--disk", guest)...)
	refused(t, exitFailure, []string{"certificate"}, "run", "--serial=none", "--kernel", guest, "--protect", "127.0.0.1:1")
	refused(t, exitFailure, []string{"in use"}, "witness", "--listen", busy.Addr().String(), "--data-dir", t.TempDir())
}

func TestControlRefusals(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control")
	for _, command := range []string{"status", "pause", "resume", "power-button", "quit"} {
		refused(t, exitFailure, []string{socket}, command, "--control", socket)
	}
}

// The exit status of run tells how the guest ended.
func TestExitStatus(t *testing.T) {
	testtier.Machine(t)
	guest := bareGuest(t)
	for _, c := range []struct {
		cmdline string
		want    int
	}{
		{"mode=idle count=1", exitOK},
		{"mode=nonsense", exitPanic},
	} {
		console := filepath.Join(t.TempDir(), "console")
		status, _, stderr := pollux("run", "--kernel", guest, "--memory=64M", "--append", c.cmdline, "--serial=file:"+console)
		if status != c.want {
			said, _ := os.ReadFile(console)
			t.Errorf("guest with %q: exit status %d, want %d\n%s%s", c.cmdline, status, c.want, stderr, said)
		}
	}
}
