package lab

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// startAll starts the nodes that aren't running and waits for their agents. It returns the nodes that it started, also on
// failure. The lock is held.
func (l *Lab) startAll(ctx context.Context, state *State) (started []string, err error) {
	for _, node := range state.Config.Nodes {
		if state.Nodes[node].Process.Alive() {
			continue
		}
		started = append(started, node)
		if err := l.start(state, node); err != nil {
			return started, err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, node := range state.Config.Nodes {
		g.Go(func() error { return l.waitReady(ctx, node) })
	}
	return started, g.Wait()
}

// Start powers one node on again and waits for its agent. A node that runs is left alone.
func (l *Lab) Start(ctx context.Context, node string) error {
	unlock, err := lockDir(l.dir, lockTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := l.stateOf(node)
	if err != nil {
		return err
	}
	if !state.Nodes[node].Process.Alive() {
		if err := l.start(state, node); err != nil {
			return err
		}
	}
	return l.waitReady(ctx, node)
}

// Kill is a power loss: the node's interfaces go down, then everything in it ends at once, without a chance to say goodbye.
func (l *Lab) Kill(node string) error {
	unlock, err := lockDir(l.dir, lockTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := l.stateOf(node)
	if err != nil {
		return err
	}
	if !state.Nodes[node].Process.Alive() {
		return fmt.Errorf("lab: node %s has no power already; `pollux lab up` starts it again", node)
	}
	return l.powerOff(state, node, PowerKilled)
}

// stateOf reads the state and makes sure that it has the node.
func (l *Lab) stateOf(node string) (*State, error) {
	state, err := readState(l.dir)
	if err != nil {
		return nil, err
	}
	if state.Nodes[node] == nil {
		return nil, fmt.Errorf("lab: no node %q here; there are %v", node, sortedKeys(state.Nodes))
	}
	return state, nil
}

// powerOff cuts and kills. The state is written before: a node that the lab killed must never look as if it died by itself.
func (l *Lab) powerOff(state *State, node string, power Power) error {
	n := state.Nodes[node]
	n.Power, n.Since = power, time.Now()
	if err := writeState(l.dir, state); err != nil {
		return err
	}
	sw, err := openSwitchboard(l.id())
	if err != nil {
		return err
	}
	defer sw.close()
	// A port that can't be cut is told, but the node still has to go.
	if err := errors.Join(sw.cut(node), n.Process.kill(killTimeout)); err != nil {
		return fmt.Errorf("lab: power %s off: %w", node, err)
	}
	l.log.Info("power off", "node", node, "how", power)
	return nil
}

// start starts a node's process in fresh surroundings. The lock is held.
func (l *Lab) start(state *State, node string) error {
	n := state.Nodes[node]
	if err := os.MkdirAll(l.nodeDir(node), 0o755); err != nil {
		return fmt.Errorf("lab: start %s: %w", node, err)
	}
	n.Boots++
	sw, err := openSwitchboard(l.id())
	if err != nil {
		return err
	}
	defer sw.close()
	begin := l.startNamespace
	if n.Emulated {
		begin = l.startEmulated
	}
	n.Process, err = begin(state, node, sw)
	if err != nil {
		return fmt.Errorf("lab: start %s: %w", node, err)
	}
	n.Power, n.Since = PowerOn, time.Now()
	l.log.Debug("node started", "node", node, "pid", n.Process.PID, "emulated", n.Emulated)
	return writeState(l.dir, state)
}

func (l *Lab) nodeConfig(node string, emulated bool) (NodeConfig, error) {
	listen, err := agentAddr(node)
	if err != nil {
		return NodeConfig{}, err
	}
	return NodeConfig{Name: node, Emulated: emulated, NICs: nicsOf(node), Listen: listen.String()}, nil
}

func (l *Lab) startEmulated(state *State, node string, sw *switchboard) (Process, error) {
	cfg := state.Config
	nodeCfg, err := l.nodeConfig(node, true)
	if err != nil {
		return Process{}, err
	}
	initrd := filepath.Join(l.nodeDir(node), "initramfs.cpio")
	if err := writeInitramfs(initrd, cfg.Binary, nodeCfg, cfg.Emulation.ModuleDir); err != nil {
		return Process{}, err
	}
	for _, network := range networksOf(node) {
		if err := sw.tapPort(node, network); err != nil {
			return Process{}, err
		}
	}
	boot := state.Nodes[node].Boots
	spec := qemuSpec{
		id: l.id(), node: node, kernel: cfg.Kernel, initrd: initrd, console: l.consolePath(node, boot), disk: cfg.Disks[node],
		nodeArgs: cfg.NodeArgs, emulation: cfg.Emulation, attachedTo: networksOf(node),
	}
	cmd := exec.Command(qemuBinary, spec.qemuArgs()...)
	return l.spawn(cmd, namespaceName(l.id(), switchNamespace), l.emulatorLog(node, boot), cfg.Nice)
}

func (l *Lab) startNamespace(state *State, node string, sw *switchboard) (Process, error) {
	name := namespaceName(l.id(), node)
	// Fresh, as after a power loss: what the last start left (bridges, addresses) goes with the old namespace.
	if err := removeNamespace(name); err != nil {
		return Process{}, err
	}
	if err := createNamespace(name); err != nil {
		return Process{}, err
	}
	for _, network := range networksOf(node) {
		if err := sw.vethPort(node, network); err != nil {
			return Process{}, err
		}
	}
	nodeCfg, err := l.nodeConfig(node, false)
	if err != nil {
		return Process{}, err
	}
	b, err := json.Marshal(nodeCfg)
	if err != nil {
		return Process{}, fmt.Errorf("encode its configuration: %w", err)
	}
	path := filepath.Join(l.nodeDir(node), "node.json")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return Process{}, fmt.Errorf("write its configuration: %w", err)
	}
	cmd := exec.Command(state.Config.Binary, append(state.Config.NodeArgs, path)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	return l.spawn(cmd, name, l.consolePath(node, state.Nodes[node].Boots), 0)
}

// spawn starts cmd in a network namespace and a session of its own: it outlives this process, and a Ctrl-C meant for this
// process doesn't reach it. A goroutine reaps it if it ends while this process lives.
func (l *Lab) spawn(cmd *exec.Cmd, namespace, output string, nice int) (Process, error) {
	out, err := os.Create(output)
	if err != nil {
		return Process{}, fmt.Errorf("create its log: %w", err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := inNamespace(namespace, cmd.Start); err != nil {
		return Process{}, err
	}
	p, err := identify(cmd.Process.Pid)
	if err == nil && nice != 0 {
		err = lowerPriority(p.PID, nice)
	}
	if err != nil {
		return Process{}, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		if err := cmd.Wait(); err != nil {
			l.log.Debug("node process ended", "process", cmd.Path, "pid", p.PID, "err", err)
		}
	}()
	return p, nil
}

// lowerPriority makes a process and what it starts nice. A kernel with automatic groups schedules sessions against each other and
// niceness counts only within one, so the session's group is made nice as well, where there are such groups.
func lowerPriority(pid, nice int) error {
	if err := unix.Setpriority(unix.PRIO_PGRP, pid, nice); err != nil {
		return fmt.Errorf("set the priority of process %d: %w", pid, err)
	}
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(nice)), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the priority of the session of process %d: %w", pid, err)
	}
	return nil
}

// checkStatic makes sure that a binary runs without a dynamic loader: an emulated node has none.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("lab: the nodes' binary: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("lab: %s is dynamically linked and can't run in an emulated node; build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}
