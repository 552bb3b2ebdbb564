package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	lockTimeout = 20 * time.Second
	killTimeout = 10 * time.Second
	// bootTimeout is for a node's agent to answer. A node is there in 3 to 6 seconds on an idle machine.
	bootTimeout = 3 * time.Minute
)

// DefaultDir is the state directory of a lab that isn't told another one, from the project's directory.
const DefaultDir = "build/lab"

// Config is what a lab is made from. It is kept in the state, so that later commands know it.
type Config struct {
	// Dir is the state directory; one lab per directory.
	Dir string `json:"-"`
	// Backend is Auto, or one to insist on.
	Backend Backend `json:"backend"`
	// Binary is a pollux binary; it must be statically linked for emulated nodes. This process's own if empty.
	Binary string `json:"binary"`
	// NodeArgs make Binary run NodeMain; "lab-node" if empty.
	NodeArgs []string `json:"node_args"`
	// Kernel is the bzImage of emulated nodes.
	Kernel string `json:"kernel"`
	// Nodes that the lab has; all if empty.
	Nodes []string `json:"nodes"`
	// Disks are raw files by node, which emulated nodes see as /dev/vda.
	Disks map[string]string `json:"disks"`
	// Emulation is the setting of emulated nodes; what is zero is the default.
	Emulation Emulation `json:"emulation"`
	// Nice is the scheduling priority of emulated nodes, 0 to 19.
	Nice   int          `json:"nice"`
	Logger *slog.Logger `json:"-"`
}

// Lab is a lab that is up, or was.
type Lab struct {
	dir       string
	log       *slog.Logger
	hangAfter time.Duration
}

// Up brings a lab up: networks, nodes, agents that answer. It is idempotent: what is up stays as it is, a node that is down is
// started. When it fails or ctx ends, what it started is taken down again.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	l, err := newLab(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	unlock, err := lockDir(l.dir, lockTimeout)
	if err != nil {
		return nil, err
	}
	defer unlock()
	fresh := !l.exists()
	state, err := l.prepare(cfg)
	var started []string
	if err == nil {
		started, err = l.startAll(ctx, state)
	}
	switch {
	case err == nil:
		return l, nil
	case fresh:
		return nil, errors.Join(err, l.remove())
	}
	for _, node := range started {
		err = errors.Join(err, l.powerOff(state, node, PowerOff))
	}
	return nil, err
}

// exists tells whether the directory has the state of a lab, readable or not.
func (l *Lab) exists() bool {
	_, err := os.Stat(filepath.Join(l.dir, stateFile))
	return err == nil
}

// Open finds the lab in a state directory.
func Open(dir string, log *slog.Logger) (*Lab, error) {
	l, err := newLab(dir, log)
	if err != nil {
		return nil, err
	}
	if _, err := readState(l.dir); err != nil {
		return nil, err
	}
	return l, nil
}

// Down removes the lab in a state directory: nodes, namespaces, state; logs stay. It needs no readable state and cleans up after
// a lab that crashed. A directory without a lab is no error.
func Down(dir string, log *slog.Logger) error {
	l, err := newLab(dir, log)
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.dir); errors.Is(err, fs.ErrNotExist) {
		return l.remove() // the directory may be lost, its namespaces not
	}
	unlock, err := lockDir(l.dir, lockTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	return l.remove()
}

// Down removes the lab.
func (l *Lab) Down() error { return Down(l.dir, l.log) }

// Dir is the lab's state directory, as an absolute path.
func (l *Lab) Dir() string { return l.dir }

func newLab(dir string, log *slog.Logger) (*Lab, error) {
	if dir == "" {
		dir = DefaultDir
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: state directory %s: %w", dir, err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Lab{dir: abs, log: log, hangAfter: hangAfter}, nil
}

func (l *Lab) id() string { return labID(l.dir) }

// nodeDir is where a node's files are: configuration, initramfs, console logs.
func (l *Lab) nodeDir(node string) string { return filepath.Join(l.dir, "nodes", node) }

// consolePath is the console log of a node's current start.
func (l *Lab) consolePath(node string, boot int) string {
	return filepath.Join(l.nodeDir(node), fmt.Sprintf("console-%d.log", boot))
}

// emulatorLog is what QEMU itself said.
func (l *Lab) emulatorLog(node string, boot int) string {
	return filepath.Join(l.nodeDir(node), fmt.Sprintf("qemu-%d.log", boot))
}

// prepare reads the state or makes a new one, with the networks that it needs. The lock is held.
func (l *Lab) prepare(cfg Config) (*State, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("lab: namespaces, bridges and taps need root, this is uid %d; run it with sudo", os.Geteuid())
	}
	state, err := readState(l.dir)
	if errors.Is(err, errNoState) {
		state, err = l.newState(cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := createNamespace(namespaceName(l.id(), switchNamespace)); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := writeState(l.dir, state); err != nil {
		return nil, err
	}
	sw, err := openSwitchboard(l.id())
	if err != nil {
		return nil, err
	}
	defer sw.close()
	return state, sw.bridges()
}

func (l *Lab) newState(cfg Config) (*State, error) {
	backend, reason, err := Choose(cfg.Backend)
	if err != nil {
		return nil, err
	}
	if err := cfg.complete(backend); err != nil {
		return nil, err
	}
	l.log.Info("lab", "backend", backend, "reason", reason)
	state := &State{
		Version: stateVersion, ID: l.id(), Backend: backend, Reason: reason, Created: time.Now(), Config: cfg,
		Nodes: make(map[string]*NodeState),
	}
	for _, node := range cfg.Nodes {
		state.Nodes[node] = &NodeState{Emulated: backend == Emulated && isHost(node), Power: PowerOff}
	}
	return state, nil
}

// complete fills in defaults and checks what can be checked before anything is started.
func (cfg *Config) complete(backend Backend) error {
	if len(cfg.Nodes) == 0 {
		cfg.Nodes = Nodes()
	}
	for _, node := range cfg.Nodes {
		if !slices.Contains(nodeNames, node) {
			return fmt.Errorf("lab: no node %q; there are %v", node, nodeNames)
		}
	}
	if len(cfg.NodeArgs) == 0 {
		cfg.NodeArgs = []string{"lab-node"}
	}
	if cfg.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("lab: find this binary: %w", err)
		}
		cfg.Binary = self
	}
	cfg.Emulation = cfg.Emulation.fill()
	paths := []*string{&cfg.Binary}
	if backend == Emulated {
		if cfg.Kernel == "" {
			return errors.New("lab: emulated nodes need a kernel (a bzImage with KVM for AMD, virtio, tun and bridge)")
		}
		if err := checkStatic(cfg.Binary); err != nil {
			return err
		}
		paths = append(paths, &cfg.Kernel)
	}
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		*p = abs
	}
	return nil
}

// remove takes everything of the lab away. The lock is held, or there is no directory.
func (l *Lab) remove() error {
	var errs []error
	// The nodes' processes go with the namespaces. Ports are cut first, so that no node sees the end of another one.
	if sw, err := openSwitchboard(l.id()); err == nil {
		for _, node := range nodeNames {
			_ = sw.cut(node) // a port that isn't there is none to cut
		}
		sw.close()
	}
	for _, what := range append(Nodes(), switchNamespace) {
		errs = append(errs, removeNamespace(namespaceName(l.id(), what)))
	}
	if err := os.Remove(filepath.Join(l.dir, stateFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("lab: remove the state: %w", err))
	}
	return errors.Join(errs...)
}
