package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run in a node.
type Command struct {
	Args []string `json:"args"`          // the first is a path, or a name that is looked up in the node's PATH
	Env  []string `json:"env,omitempty"` // added to the agent's environment
	Dir  string   `json:"dir,omitempty"` // WorkDir if empty
}

// exec runs one command for one connection. The command gets a process group of its own; when the connection is lost, the group
// is killed.
func (a *agent) exec(ctx context.Context, conn net.Conn, c *Command) error {
	if c == nil || len(c.Args) == 0 {
		return refuse(conn, errors.New("exec: no command"))
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = WorkDir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Output that grandchildren hold open must not keep the exit status back.
	cmd.WaitDelay = 2 * time.Second
	frames := &frameWriter{w: conn}
	cmd.Stdout, cmd.Stderr = stream{frames, frameStdout}, stream{frames, frameStderr}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return refuse(conn, fmt.Errorf("exec %s: %w", c.Args[0], err))
	}
	if err := a.children.start(cmd); err != nil {
		return refuse(conn, fmt.Errorf("exec %s: %w", c.Args[0], err))
	}
	if err := writeMessage(conn, answer{PID: cmd.Process.Pid}); err != nil {
		killGroup(cmd.Process.Pid)
		return errors.Join(err, a.children.wait(cmd))
	}
	var wg sync.WaitGroup
	wg.Go(func() { feed(conn, cmd.Process.Pid, stdin) })
	stop := context.AfterFunc(ctx, func() { killGroup(cmd.Process.Pid) })
	defer stop()
	status := exitStatus(a.children.wait(cmd))
	b, err := json.Marshal(status)
	if err == nil {
		err = frames.send(frameExit, b)
	}
	// The reader ends when the lab closes its side after the exit frame, or now if that can't be sent.
	if err != nil {
		conn.Close()
	}
	wg.Wait()
	return err
}

// feed passes the lab's frames to the command until the connection ends, and then kills the command's group: a command never
// outlives the connection it was started on.
func feed(conn net.Conn, pid int, stdin io.WriteCloser) {
	buf := make([]byte, maxFrame)
	defer stdin.Close()
	for {
		kind, p, err := readFrame(conn, buf)
		if err != nil {
			killGroup(pid)
			return
		}
		switch {
		case kind == frameStdin && len(p) == 0:
			stdin.Close()
		case kind == frameStdin:
			if _, err := stdin.Write(p); err != nil {
				stdin.Close() // the command doesn't read any more; its exit status says the rest
			}
		case kind == frameSignal && len(p) == 1:
			// ESRCH: the command ended meanwhile, its exit frame is on the way.
			_ = unix.Kill(-pid, unix.Signal(p[0]))
		}
	}
}

// killGroup kills a command's process group. There is nothing to do about an error: root may signal every process, and a group
// that is gone already is what was wanted.
func killGroup(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL)
}

func exitStatus(err error) exit {
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		if err != nil {
			return exit{Code: -1, Error: err.Error()}
		}
		return exit{}
	}
	status, ok := ee.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return exit{Code: -1, Signal: int(status.Signal())}
	}
	return exit{Code: ee.ExitCode()}
}

// children keeps apart the agent's own commands, which os/exec waits for, and orphans, which come to the first process of a node
// and which it has to reap.
type children struct {
	mu  sync.Mutex
	own map[int]struct{} // guarded by mu
}

func newChildren() *children { return &children{own: make(map[int]struct{})} }

// start starts cmd. The lock is held across the fork, so that the reaper never sees a child that isn't known yet.
func (c *children) start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	c.own[cmd.Process.Pid] = struct{}{}
	return nil
}

func (c *children) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.own, cmd.Process.Pid)
	return err
}

// reap waits for orphans until ctx ends. Only the first process of a node calls it.
func (c *children) reap(ctx context.Context) {
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	defer signal.Stop(sigchld)
	// A child that os/exec is about to wait for hides orphans behind it in waitid's order: look again soon.
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sigchld:
		case <-t.C:
		}
		for c.reapOne() {
		}
	}
}

func (c *children) reapOne() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := peekChild()
	if err != nil || pid == 0 {
		return false
	}
	if _, own := c.own[pid]; own {
		return false
	}
	_, err = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil
}
