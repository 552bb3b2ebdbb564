package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

func TestAddressPlan(t *testing.T) {
	seen := make(map[netip.Addr]string)
	macs := make(map[string]string)
	for _, node := range Nodes() {
		for _, nic := range nicsOf(node) {
			p, err := netip.ParsePrefix(nic.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[p.Addr()]; ok || p.Addr() == GuestAddr().Addr() || p.Addr() == controllerAddr().Addr() {
				t.Errorf("%s of %s is also that of %s", p, node, other)
			}
			if other, ok := macs[nic.MAC]; ok {
				t.Errorf("%s of %s is also that of %s", nic.MAC, node, other)
			}
			seen[p.Addr()], macs[nic.MAC] = node, node
			const longest = 15 // IFNAMSIZ - 1
			if name := portName(node, nic.Name); len(name) > longest {
				t.Errorf("port name %s is too long", name)
			}
			if (nic.Bridge == ClientBridge) != (isHost(node) && nic.Name == NetClient) {
				t.Errorf("%s %s has bridge %q", node, nic.Name, nic.Bridge)
			}
		}
	}
	if len(seen) != 4+4+1+2 {
		t.Errorf("%d addresses", len(seen))
	}
	if _, err := Addr("host-c", NetClient); err == nil {
		t.Error("an unknown node has an address")
	}
	if _, err := Addr(HostA, "link9"); err == nil {
		t.Error("an unknown network has addresses")
	}
	if p, err := Addr(HostB, NetLink2); err != nil || p.String() != "10.79.0.12/24" {
		t.Errorf("host-b on link2: %v, %v", p, err)
	}
}

func TestChoose(t *testing.T) {
	noKVM, noQEMU := errors.New("no usable KVM: no such file"), errors.New("not found")
	for _, c := range []struct {
		name   string
		want   Backend
		flag   string
		kvm    error
		qemu   error
		got    Backend
		reason string // a part of it, or of the error
	}{
		{"hardware", Auto, "vmx", nil, nil, Namespaces, "shows vmx"},
		{"hardware without QEMU", Auto, "svm", nil, noQEMU, Namespaces, "shows svm"},
		{"paravirtual", Auto, "", nil, nil, Emulated, "paravirtual"},
		{"unset is auto", "", "", nil, nil, Emulated, "paravirtual"},
		{"none", Auto, "vmx", noKVM, nil, Emulated, "no such file"},
		{"neither", Auto, "", noKVM, noQEMU, "", "apt-get install"},
		{"emulated on hardware", Emulated, "vmx", nil, nil, Emulated, "as asked"},
		{"namespaces on paravirtual", Namespaces, "", nil, nil, Namespaces, "only bare guests"},
		{"namespaces without KVM", Namespaces, "vmx", noKVM, nil, "", "need a working /dev/kvm"},
		{"nonsense", "docker", "vmx", nil, nil, "", "no backend"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, reason, err := choose(c.want, c.flag, c.kvm, c.qemu)
			if err != nil {
				reason = err.Error()
			}
			if got != c.got || (err == nil) != (c.got != "") || !strings.Contains(reason, c.reason) || strings.Contains(reason, "\n") {
				t.Errorf("got %q because %q", got, reason)
			}
		})
	}
}

func TestVirtualizationFlag(t *testing.T) {
	for in, want := range map[string]string{
		"processor\t: 0\nflags\t\t: fpu vmx sse\nbugs: x\n": "vmx",
		"flags : fpu svm\n":                "svm",
		"flags : fpu svm_lock vmx_flags\n": "",
		"model name : vmx svm\n":           "",
		"":                                 "",
	} {
		if got := virtualizationFlag([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestClassify(t *testing.T) {
	files, err := filepath.Glob("testdata/console/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden consoles: %v", err)
	}
	want := map[string]struct {
		cause  Cause
		detail string // its beginning
	}{
		"stack-guard":  {CauseStackGuard, "TASK stack guard page was hit at"},
		"int3":         {CauseOops, "Oops: int3: 0000"},
		"sysrq":        {CausePanic, "Kernel panic - not syncing: sysrq triggered crash"},
		"null-pointer": {CauseOops, "BUG: kernel NULL pointer dereference, address: 0000000000000008"},
		"double-fault": {CauseOops, "PANIC: double fault"},
		"soft-lockup":  {CauseLockup, "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!"},
		"agent-ended":  {CauseNodeInit, "Kernel panic - not syncing: Attempted to kill init!"},
		"agent-failed": {CauseNodeInit, `msg="lab node failed"`},
		"power-down":   {CauseShutdown, "reboot: Power down"},
		"healthy":      {"", ""},
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			w, known := want[name]
			if !known {
				t.Fatal("no expectation")
			}
			console, err := readTail(file, consoleTail)
			if err != nil {
				t.Fatal(err)
			}
			cause, detail, ok := classify(console, "")
			if cause != w.cause || !strings.HasPrefix(detail, w.detail) || ok != (w.cause != "") {
				t.Errorf("got %q, %q, %t", cause, detail, ok)
			}
		})
	}
	if len(files) != len(want) {
		t.Errorf("%d golden consoles for %d expectations", len(files), len(want))
	}
	for said, ok := range map[string]bool{
		"qemu-system-x86_64: could not configure /dev/net/tun (x): Device or resource busy": true,
		"qemu: fatal: Trying to execute code outside RAM or ROM at 0x0":                     true,
		"qemu-system-x86_64: warning: TCG doesn't support requested feature":                false,
		"": false,
	} {
		if cause, _, got := classify("", said); got != ok || ok && cause != CauseEmulator {
			t.Errorf("%q: got %q, %t", said, cause, got)
		}
	}
}

func TestReadTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got, err := readTail(path, 100); got != "" || err != nil {
		t.Errorf("no file: %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("first line\nsecond\nthird\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for most, want := range map[int64]string{100: "first line\nsecond\nthird\n", 10: "third\n", 24: "first line\nsecond\nthird\n", 0: ""} {
		if got, err := readTail(path, most); got != want || err != nil {
			t.Errorf("%d bytes: %q, %v", most, got, err)
		}
	}
	if got := lastLines("a\nb\nc\n", 2); got != "b\nc" {
		t.Errorf("last lines: %q", got)
	}
}

func TestQEMUArguments(t *testing.T) {
	s := qemuSpec{
		id: "0123abcd", node: HostA, kernel: "/k", initrd: "/i", console: "/a,b/console.log", disk: "/d.raw",
		nodeArgs: []string{"lab-node"}, emulation: Emulation{Args: []string{"kvm_amd.vgif=0"}}.fill(), attachedTo: []string{NetManage, NetLink1},
	}
	got := s.qemuArgs()
	for _, want := range [][]string{
		{"-name", "pollux-0123abcd-host-a"},
		{"-no-reboot"},
		{"-accel", "tcg,thread=multi"},
		{"-cpu", "max,-xsave,-aes,-pclmulqdq"},
		{"-smp", "1"},
		{"-m", "1536M"},
		{"-chardev", "file,id=console,path=/a,,b/console.log"},
		{"-netdev", "tap,id=link1,ifname=host-a-link1,script=no,downscript=no,vhost=off"},
		{"-device", "virtio-net-pci,netdev=manage,mac=02:70:78:4c:00:0b,romfile="},
		{"-drive", "if=none,id=disk0,format=raw,file=/d.raw"},
	} {
		if !containsRun(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	cmdline := got[slices.Index(got, "-append")+1]
	for _, want := range []string{"panic=1", "oops=panic", "rdinit=/bin/pollux", "kvm_amd.vgif=0", "-- lab-node"} {
		if !strings.Contains(cmdline, want) {
			t.Errorf("no %q in the kernel's command line %q", want, cmdline)
		}
	}
	if !strings.HasSuffix(cmdline, "-- lab-node") {
		t.Errorf("the agent's arguments don't end %q", cmdline)
	}
}

func containsRun(all, run []string) bool {
	for i := range all {
		if i+len(run) <= len(all) && slices.Equal(all[i:i+len(run)], run) {
			return true
		}
	}
	return false
}

func TestModuleParams(t *testing.T) {
	const cmdline = "console=ttyS0 kvm_amd.vgif=0 kvm.halt_poll_ns=0 kvm-amd.npt=1 kvm_amd panic=1"
	for module, want := range map[string]string{"kvm-amd": "vgif=0 npt=1", "kvm_amd": "vgif=0 npt=1", "kvm": "halt_poll_ns=0", "tun": ""} {
		if got := moduleParams(module, cmdline); got != want {
			t.Errorf("%s: got %q, want %q", module, got, want)
		}
	}
}

func TestInitramfs(t *testing.T) {
	source := filepath.Join(t.TempDir(), "binary")
	if err := os.WriteFile(source, []byte("ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newImage()
	m.addFile("/bin/pollux", source, 0o755)
	m.addContent("/etc/pollux/node.json", []byte("{}"), 0o644)
	var b bytes.Buffer
	if err := m.encode(&b); err != nil {
		t.Fatal(err)
	}
	const newc = "070701"
	if !strings.HasPrefix(b.String(), newc) {
		t.Errorf("the archive begins with %q", b.String()[:len(newc)])
	}
	var got []string
	r := cpio.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %o %s", h.Name, h.Mode, content))
	}
	want := []string{"bin 40755 ", "etc 40755 ", "etc/pollux 40755 ", "bin/pollux 100755 ELF", "etc/pollux/node.json 100644 {}"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	m.addFile("/missing", "/nonexistent", 0o644)
	target := filepath.Join(t.TempDir(), "image")
	if err := m.write(target); err == nil {
		t.Error("a missing file is no error")
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("half an archive is left")
	}
}

func TestStateFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := readState(dir); !errors.Is(err, errNoState) {
		t.Errorf("an empty directory: %v", err)
	}
	want := &State{
		Version: stateVersion, ID: "x", Backend: Emulated, Created: time.Now().UTC().Round(0),
		Config: Config{Nodes: []string{HostA}, Emulation: DefaultEmulation()},
		Nodes:  map[string]*NodeState{HostA: {Emulated: true, Power: PowerOn, Boots: 2, Process: Process{PID: 7, Start: 8}}},
	}
	if err := writeState(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := readState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, content := range map[string]string{
		"damaged": "{", "another version": `{"version":99}`, "unknown node": `{"version":1,"nodes":{"host-x":{}}}`, "no node": `{"version":1,"nodes":{"host-a":null}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readState(dir); err == nil || !strings.Contains(err.Error(), "pollux lab down") {
			t.Errorf("%s: error %v; want one that says what to do", name, err)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir, 100*time.Millisecond); err == nil {
		t.Error("two holders")
	}
	unlock()
	unlock, err = lockDir(dir, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestProcess(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("this process: %+v, %v", self, err)
	}
	stale := Process{PID: self.PID, Start: self.Start + 1}
	if stale.Alive() {
		t.Error("a PID with another start time is alive")
	}
	if err := stale.kill(time.Second); err != nil {
		t.Errorf("killing a stale process: %v", err) // and this one goes on
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	start, state, err := parseStat([]byte("42 (a) b) c) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 x"))
	if start != 1234 || state != 'Z' || err != nil {
		t.Errorf("got %d, %c, %v", start, state, err)
	}
}

func TestRepeatOnce(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	died := &NodeDied{Node: HostA, Cause: CausePanic}
	other := errors.New("other")
	for _, c := range []struct {
		name     string
		results  []error
		attempts int
		failed   bool
	}{
		{"well", []error{nil}, 1, false},
		{"other failure", []error{other}, 1, true},
		{"died once", []error{fmt.Errorf("run: %w", died), nil}, 2, false},
		{"died twice", []error{died, died}, 2, true},
		{"died, then another failure", []error{died, other}, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			attempts := 0
			err := RepeatOnce(t.Context(), log, func(context.Context, int) error {
				attempts++
				return c.results[attempts-1]
			})
			if attempts != c.attempts || (err != nil) != c.failed {
				t.Errorf("%d attempts, %v", attempts, err)
			}
		})
	}
	t.Run("stopped", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := RepeatOnce(ctx, log, func(context.Context, int) error { cancel(); return died })
		if !errors.Is(err, died) {
			t.Errorf("got %v", err)
		}
	})
}

func TestMessages(t *testing.T) {
	var b bytes.Buffer
	if err := writeMessage(&b, request{Op: opPut, Path: "/x", Size: 9}); err != nil {
		t.Fatal(err)
	}
	var got request
	if err := readMessage(&b, &got); err != nil || got.Path != "/x" || got.Size != 9 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := readMessage(strings.NewReader("\xff\xff\xff\xff"), &got); !errors.Is(err, errTooLong) {
		t.Errorf("an absurd length: %v", err)
	}
	if err := readMessage(strings.NewReader("\x00\x00\x00\x09{}"), &got); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a truncated message: %v", err)
	}
	if err := writeMessage(io.Discard, request{Path: strings.Repeat("x", maxMessage)}); !errors.Is(err, errTooLong) {
		t.Errorf("a message without measure: %v", err)
	}
	f := &frameWriter{w: &b}
	if n, err := (stream{f, frameStdout}).Write(make([]byte, maxFrame+5)); n != maxFrame+5 || err != nil {
		t.Errorf("stream: %d, %v", n, err)
	}
	buf := make([]byte, maxFrame)
	for _, want := range []int{maxFrame, 5} {
		if kind, p, err := readFrame(&b, buf); kind != frameStdout || len(p) != want || err != nil {
			t.Errorf("frame %d with %d bytes, %v; want %d bytes", kind, len(p), err, want)
		}
	}
	if _, _, err := readFrame(strings.NewReader("\x01\xff\xff\xff\xff"), buf); !errors.Is(err, errTooLong) {
		t.Errorf("an absurd frame: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	l, err := newLab(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	all, err := l.MakeCredentials(HostA, Witness)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(all[HostA].CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate of the authority")
	}
	for node, name := range map[string]string{HostA: "10.78.0.11", Witness: "10.76.0.13"} {
		pair, err := tls.LoadX509KeyPair(all[node].Cert, all[node].Key)
		if err != nil {
			t.Fatal(err)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			for _, dnsName := range []string{node, name} {
				if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: dnsName, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
					t.Errorf("%s as %s: %v", node, dnsName, err)
				}
			}
		}
		if st, err := os.Stat(all[node].Key); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the key of %s: %v, %v", node, st.Mode(), err)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		backend Backend
		cfg     Config
		want    string
	}{
		{"unknown node", Namespaces, Config{Nodes: []string{"host-c"}}, `no node "host-c"`},
		{"no kernel", Emulated, Config{Binary: self}, "need a kernel"},
		{"no binary", Namespaces, Config{Binary: "/nonexistent"}, "no such file"},
		{"not a program", Emulated, Config{Binary: "doc.go", Kernel: "doc.go"}, "the nodes' binary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.cfg.complete(c.backend); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	cfg := Config{Binary: self}
	if err := cfg.complete(Namespaces); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cfg.Nodes, Nodes()) || !slices.Equal(cfg.NodeArgs, []string{"lab-node"}) || cfg.Emulation.CPUs != 1 {
		t.Errorf("defaults: %+v", cfg)
	}
}

func TestLastLine(t *testing.T) {
	var l lastLine
	for _, p := range []string{"one\ntw", "o\n", "thr", "ee"} {
		if _, err := l.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.String(); got != "two" {
		t.Errorf("got %q", got)
	}
}

func goodReport() DemoReport {
	r := DemoReport{Tier: "emulated", Kernel: "Linux", Epochs: 10, TakeoverMS: 200}
	r.macBefore, r.macAfter = GuestMAC().String(), GuestMAC().String()
	r.take(ClientReport{AnswersBefore: 100, AnswersAfter: 50, LongestGap: 300 * time.Millisecond})
	return r
}

func TestDemoReport(t *testing.T) {
	r := goodReport()
	if err := r.verdict(); err != nil {
		t.Errorf("a good run: %v", err)
	}
	path := filepath.Join(t.TempDir(), "new", "report.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
  "tier": "emulated",
  "kernel": "Linux",
  "epochs": 10,
  "answers_before": 100,
  "answers_after": 50,
  "lost_writes": 0,
  "sequence_violations": 0,
  "connection_resets": 0,
  "longest_gap_ms": 300,
  "takeover_ms": 200,
  "same_ip": true,
  "same_mac": true
}
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	for name, spoil := range map[string]func(*ClientReport){
		"no answers before":   func(c *ClientReport) { c.AnswersBefore = 0 },
		"no answers after":    func(c *ClientReport) { c.AnswersAfter = 0 },
		"lost writes":         func(c *ClientReport) { c.LostWrites = 1 },
		"sequence violations": func(c *ClientReport) { c.SequenceViolations = 1 },
		"resets":              func(c *ClientReport) { c.ConnectionResets = 1 },
		"restarted server":    func(c *ClientReport) { c.Restarts = 1 },
		"anything else":       func(c *ClientReport) { c.Wrong = "registers [3] are not linearizable" },
	} {
		c := ClientReport{AnswersBefore: 100, AnswersAfter: 50}
		spoil(&c)
		r := goodReport()
		r.take(c)
		if r.verdict() == nil {
			t.Errorf("%s: the demo passes", name)
		}
	}
	r = goodReport()
	r.macAfter = "02:00:00:00:00:01"
	r.take(ClientReport{AnswersBefore: 1, AnswersAfter: 1})
	if r.verdict() == nil {
		t.Error("another MAC address: the demo passes")
	}
}

func TestCheckingClientOutput(t *testing.T) {
	c := &CheckingClient{}
	for _, p := range []string{`{"stats":{"answers":5}}` + "\n" + `{"sta`, `ts":{"answers":7}}` + "\n", `{"report":{"answers_before":7}}` + "\n"} {
		if _, err := c.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if c.Stats().Answers != 7 || c.report == nil || c.report.AnswersBefore != 7 || c.bad != nil {
		t.Errorf("got %+v", c)
	}
	if _, err := c.Write([]byte("panic: x\n")); err != nil || c.bad == nil {
		t.Errorf("a line that isn't JSON: %v, %v", err, c.bad)
	}
}

func TestUDPTimeout(t *testing.T) {
	for roundTrip, want := range map[time.Duration]time.Duration{
		time.Millisecond: 40 * time.Millisecond, 300 * time.Millisecond: 600 * time.Millisecond, time.Minute: 3 * time.Second,
	} {
		if got := udpTimeout(roundTrip); got != want {
			t.Errorf("round trip of %v: %v, want %v", roundTrip, got, want)
		}
	}
}
