package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint/tlstest"
	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/node"
	"github.com/pollux-ha/pollux/tests/testtier"
	"github.com/pollux-ha/pollux/vmm/control"
)

const (
	bridgeName  = "clients"
	bridgeCIDR  = "10.77.0.1/24"
	guestIP     = "10.77.0.2"
	witnessAddr = "127.0.0.1:2379"
	peerAddr    = "127.0.0.1:7000"

	// patience is how long a test waits for what must happen; the machine may be busy with other things.
	patience = 60 * time.Second
)

// process is one of the pair's processes.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	path string // of the control socket

	mu   sync.Mutex
	log  bytes.Buffer
	done chan struct{}
}

// Write takes what the process logs.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) signal(s unix.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %s: %v", s, p.name, err)
	}
}

// kill ends the process as a crash does.
func (p *process) kill() {
	p.signal(unix.SIGKILL)
	<-p.done
}

// protection is what a process says of its pair, as far as the tests look.
type protection struct {
	Phase    string `json:"phase"`
	Active   bool   `json:"active"`
	Takeover *struct {
		Epoch   uint64        `json:"epoch"`
		Total   time.Duration `json:"total_ns"`
		Arbiter time.Duration `json:"arbiter_ns"`
		Load    time.Duration `json:"load_ns"`
		Start   time.Duration `json:"start_ns"`
	} `json:"takeover"`
	Stats struct {
		Commits uint64 `json:"commits"`
		Rate    uint64 `json:"epochs_per_second"`
		Dirty   uint64 `json:"dirty_pages"`
		Phases  map[string]struct {
			P50 float64 `json:"p50_us"`
			P99 float64 `json:"p99_us"`
		} `json:"phases"`
	} `json:"stats"`
}

// protection asks the process; the zero value if it doesn't answer.
func (p *process) protection() (out protection) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := control.NewClient(p.path).Status(ctx)
	if err == nil {
		err = json.Unmarshal(s.Protection, &out)
	}
	if err != nil {
		return protection{}
	}
	return out
}

// pair is the whole thing.
type pair struct {
	t        *testing.T
	dir      string
	elf      string
	cmdline  string
	pki      *tlstest.PKI
	witness  *process
	a, b     *process // a has booted the guest, b was its first twin
	interval time.Duration
}

// newPair sets up the bridge and starts witness, standby and primary. The guest is the bare one.
func newPair(t *testing.T) *pair {
	t.Helper()
	testtier.Machine(t)
	if os.Geteuid() != 0 {
		t.Fatal("a bridge and taps need root")
	}
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, dir: t.TempDir(), elf: elf, cmdline: serving, interval: 25 * time.Millisecond}
	if p.pki, err = tlstest.New(p.dir); err != nil {
		t.Fatal(err)
	}
	p.bridge()
	p.witness = p.start("witness", job{Kind: "witness", Dir: filepath.Join(p.dir, "witness"), Listen: witnessAddr})
	p.await("the witness", func() bool {
		c, err := dialTCP(witnessAddr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	p.b = p.standby()
	p.a = p.primary("a")
	return p
}

func (p *pair) bridge() {
	p.t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err == nil {
		err = netlink.LinkAdd(br)
	}
	var addr *netlink.Addr
	if err == nil {
		addr, err = netlink.ParseAddr(bridgeCIDR)
	}
	if err == nil {
		err = netlink.AddrAdd(br, addr)
	}
	if err == nil {
		err = netlink.LinkSetUp(br)
	}
	if err != nil {
		p.t.Fatalf("set up the clients' bridge: %v", err)
	}
	p.t.Cleanup(func() {
		if err := netlink.LinkDel(br); err != nil {
			p.t.Errorf("remove the clients' bridge: %v", err)
		}
	})
}

func (p *pair) job(name string) job {
	p.t.Helper()
	cert, key, err := p.pki.Issue(name)
	if err != nil {
		p.t.Fatal(err)
	}
	return job{
		Node: name, Arbiter: "http://" + witnessAddr, Cert: cert, Key: key, CA: p.pki.CAFile,
		Spec: node.Spec{
			Name: "guest", MemoryBytes: 64 << 20, CPUs: 1, Kernel: p.elf, Cmdline: p.cmdline,
			Nets: []node.Net{{Bridge: bridgeName, MAC: [6]byte{0x52, 0x54, 0, 0x77, 0, 2}}},
		},
		Serial:  "file:" + filepath.Join(p.dir, name+".console"),
		Control: filepath.Join(p.dir, name+".sock"), Interval: p.interval,
		// This machine may be very busy: a peer that is slow is not to be taken for one that is dead.
		Heartbeat: 20 * time.Millisecond, Misses: 15,
	}
}

func (p *pair) primary(name string) *process {
	j := p.job(name)
	j.Kind, j.Dial = "primary", peerAddr
	return p.start(name, j)
}

func (p *pair) standby() *process {
	const name = "b"
	j := p.job(name)
	j.Kind, j.Listen = "standby", peerAddr
	j.Spec.MemoryBytes, j.Spec.CPUs, j.Spec.Kernel, j.Spec.Cmdline = 0, 0, "", ""
	return p.start(name, j)
}

func (p *pair) start(name string, j job) *process {
	p.t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		p.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	pr := &process{t: p.t, name: name, path: j.Control, cmd: exec.Command(self), done: make(chan struct{})}
	pr.cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	pr.cmd.Stdout, pr.cmd.Stderr = pr, pr
	// Nothing of a test outlives it, however it ends.
	pr.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := pr.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = pr.cmd.Wait() // how it ended shows in what the test looks at
		close(pr.done)
	}()
	p.t.Cleanup(func() {
		pr.kill()
		if p.t.Failed() {
			p.t.Logf("%s:\n%s", name, pr.text())
		}
	})
	return pr
}

func (p *pair) await(what string, cond func() bool) {
	p.t.Helper()
	for start := time.Now(); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			p.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (p *pair) awaitProtected(active, twin *process) {
	p.t.Helper()
	p.await(fmt.Sprintf("%s to be protected by %s", active.name, twin.name), func() bool {
		return active.protection().Phase == "protected" && twin.protection().Phase == "standby"
	})
}

// console is what the guest has printed on a node.
func (p *pair) console(name string) string {
	b, err := os.ReadFile(filepath.Join(p.dir, name+".console"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Error(err)
	}
	return string(b)
}
