package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for good: a PID alone may be given to another one later, a PID with its start time is not.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot, field 22 of /proc/PID/stat
}

// identify returns the Process that a running PID is now.
func identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	start, _, err := parseStat(stat)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive tells whether the process still runs; a zombie doesn't.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	start, status, err := parseStat(stat)
	return err == nil && start == p.Start && status != 'Z' && status != 'X'
}

// kill sends SIGKILL through a pidfd, so that a PID that changes hands in between is not hit, and waits until the process is
// gone (or a zombie that its parent will reap). A process that is gone already is no error.
func (p Process) kill(timeout time.Duration) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open a handle on process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() { // checked after the handle is open: from here on the handle is this process or none
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0)/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
		case n == 0:
			return fmt.Errorf("process %d did not end within %v of SIGKILL", p.PID, timeout)
		default:
			return nil
		}
	}
}

// starved tells whether the process's threads spend most of the time waiting for a CPU, by watching them for a moment.
func (p Process) starved() bool {
	const moment = time.Second
	before, err := p.waited()
	if err != nil {
		return false
	}
	time.Sleep(moment)
	after, err := p.waited()
	return err == nil && after-before > moment/2
}

// waited is how long the process's threads have been ready to run without running, all together: the second number of
// /proc/PID/task/TID/schedstat, in nanoseconds.
func (p Process) waited() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID))
	if err != nil {
		return 0, fmt.Errorf("threads of process %d: %w", p.PID, err)
	}
	var sum time.Duration
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a thread that has ended meanwhile
		}
		if err != nil {
			return 0, fmt.Errorf("scheduling of process %d: %w", p.PID, err)
		}
		fields := strings.Fields(string(b))
		if len(fields) < 2 {
			return 0, fmt.Errorf("scheduling of process %d: %s holds %q", p.PID, file, b)
		}
		ns, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("scheduling of process %d: %w", p.PID, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// parseStat reads start time and state from /proc/PID/stat. The command name in it is in parentheses and may hold anything.
func parseStat(stat []byte) (start uint64, status byte, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("no command name in %q", stat)
	}
	fields := strings.Fields(string(stat[end+1:])) // from field 3, the state, on
	const startField = 22 - 3
	if len(fields) <= startField || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("too few fields in %q", stat)
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time: %w", err)
	}
	return start, fields[0][0], nil
}

// processesIn lists the processes whose main thread is in the network namespace with this inode, without the calling process.
func processesIn(inode uint64) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		ns, err := inodeOf(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil || ns != inode {
			continue // gone meanwhile, a zombie, or another namespace
		}
		if p, err := identify(pid); err == nil {
			found = append(found, p)
		}
	}
	return found, nil
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
