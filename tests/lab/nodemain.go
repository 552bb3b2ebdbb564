package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// NIC is one network interface of a node, found by its MAC address.
type NIC struct {
	Name   string `json:"name"`             // what the node calls it
	MAC    string `json:"mac"`              // in colon notation
	Addr   string `json:"addr"`             // with the prefix length
	Bridge string `json:"bridge,omitempty"` // if set, the interface is a port of this bridge and Addr is the bridge's
}

// NodeConfig is what the first process of a node is told.
type NodeConfig struct {
	Name     string   `json:"name"`
	Emulated bool     `json:"emulated"` // it is the init of a kernel of its own
	NICs     []NIC    `json:"nics"`
	Listen   string   `json:"listen"`            // the agent's address and port
	Modules  []string `json:"modules,omitempty"` // kernel modules to load, in order, by path
}

// nodeConfigPath is where an emulated node finds its NodeConfig.
const nodeConfigPath = "/etc/pollux/node.json"

// nodeReady is printed when the agent answers; the console log shows it.
const nodeReady = "pollux-node: ready"

// NodeMain is the first process of a lab node: it sets the node up and serves the agent until ctx ends or the lab shuts the node
// down. configPath is a NodeConfig file; empty for an emulated node's. As the init of an emulated node it never returns: it
// powers the node off.
//
// It runs as a hidden subcommand of the pollux binary ("lab-node [CONFIG]"), so that a node needs no other program.
func NodeMain(ctx context.Context, configPath string) error {
	if configPath == "" {
		configPath = nodeConfigPath
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	b, err := os.ReadFile(configPath)
	if err != nil {
		return fmt.Errorf("lab node: read its configuration: %w", err)
	}
	var cfg NodeConfig
	if err := json.Unmarshal(b, &cfg); err != nil {
		return fmt.Errorf("lab node: configuration %s: %w", configPath, err)
	}
	if os.Getpid() != 1 {
		return errors.New("lab node: this is the first process of a lab node and does nothing elsewhere; see `pollux lab up`")
	}
	err = runNode(ctx, log, cfg)
	if err != nil {
		log.Error("lab node failed", "node", cfg.Name, "err", err)
	}
	if cfg.Emulated {
		unix.Sync()
		return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	}
	return err
}

func runNode(ctx context.Context, log *slog.Logger, cfg NodeConfig) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := mountNode(cfg.Emulated); err != nil {
		return err
	}
	for _, path := range cfg.Modules {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := prepareWorkDir(); err != nil {
		return err
	}
	if err := bringUp(ctx, cfg.NICs); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	a := newAgent(log, cancel)
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		a.children.reap(ctx)
	}()
	fmt.Fprintln(os.Stderr, nodeReady, cfg.Name)
	err = a.serve(ctx, l)
	cancel()
	<-reaped
	return err
}

// prepareWorkDir makes WorkDir, with this binary in its bin as the first place of PATH: commands find pollux in every kind of node.
func prepareWorkDir() error {
	bin := filepath.Join(WorkDir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", bin, err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this binary: %w", err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "pollux")); err != nil {
		return fmt.Errorf("offer this binary: %w", err)
	}
	if err := os.Setenv("PATH", bin+":/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin"); err != nil {
		return fmt.Errorf("set PATH: %w", err)
	}
	return nil
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	options                string
}

// mountNode gives the node its own view: everything that a kernel starts without, or fresh /proc, /sys and /run on top of the
// machine's file system.
func mountNode(emulated bool) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	}
	if emulated {
		mounts = append(mounts,
			mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
			mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
			mount{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
			mount{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		)
	} else if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("detach from the machine's mounts: %w", err)
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.target, err)
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options)
		if errors.Is(err, unix.EBUSY) {
			continue // the kernel mounted it (CONFIG_DEVTMPFS_MOUNT)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// loadModule loads one kernel module with the parameters that the kernel's command line has for it (name.param=value), as
// modprobe would. A module that is loaded, or built in, already is no error.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	name := strings.TrimSuffix(filepath.Base(path), ".ko")
	err = unix.FinitModule(int(f.Fd()), moduleParams(name, string(cmdline)), 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

// moduleParams picks a module's parameters from a kernel command line; - and _ in names are the same.
func moduleParams(module, cmdline string) string {
	normal := func(s string) string { return strings.ReplaceAll(s, "-", "_") }
	var params []string
	for _, word := range strings.Fields(cmdline) {
		name, rest, ok := strings.Cut(word, ".")
		if ok && normal(name) == normal(module) {
			params = append(params, rest)
		}
	}
	return strings.Join(params, " ")
}

// waitFor polls until f no longer returns fs.ErrNotExist or the time is up; it returns f's last error.
func waitFor(ctx context.Context, timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil || !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
