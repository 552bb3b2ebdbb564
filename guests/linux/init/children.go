//go:build linux

package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children reaps every process that ends, those of the shell and orphans, as the first process must.
type children struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
}

func (c *children) start(log *slog.Logger) {
	c.waiting = make(map[int]chan unix.WaitStatus)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			c.reap(log)
		}
	}()
}

// reap collects all that have ended: one signal may stand for several.
func (c *children) reap(log *slog.Logger) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return // none left, or none that has ended
		}
		c.mu.Lock()
		ch := c.waiting[pid]
		delete(c.waiting, pid)
		c.mu.Unlock()
		if ch != nil {
			ch <- status
			continue
		}
		log.Info("reaped an orphan", "pid", pid, "status", status.ExitStatus())
	}
}

// run starts a program on the console and waits for it.
func (c *children) run(argv []string) error {
	c.mu.Lock() // until the child is known: it may end at once
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TERM=vt100"},
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		c.mu.Unlock()
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	done := make(chan unix.WaitStatus, 1)
	c.waiting[pid] = done
	c.mu.Unlock()
	status := <-done
	if status.Signaled() {
		return fmt.Errorf("%s was ended by signal %d", argv[0], status.Signal())
	}
	if n := status.ExitStatus(); n != 0 {
		return fmt.Errorf("%s exited with status %d", argv[0], n)
	}
	return nil
}
