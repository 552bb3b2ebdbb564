package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces are kept, as iproute2 does: `ip netns` shows the lab's.
const netnsDir = "/run/netns"

// onFreshThread runs f on an operating system thread that is thrown away afterwards, so that f may change the thread's
// namespaces. It never uses the process's first thread: that one's namespaces stand for the process in /proc/PID/ns.
func onFreshThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, another one can't get it.
			err := onFreshThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// inNamespace runs f on a thread that is in the named network namespace. Sockets that f opens and processes that f starts stay
// in the namespace.
func inNamespace(name string, f func() error) error {
	return onFreshThread(func() error {
		ns, err := os.Open(filepath.Join(netnsDir, name))
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", name, err)
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

// createNamespace makes a named network namespace. One that exists already is kept.
func createNamespace(name string) error {
	if namespaceExists(name) {
		return nil
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", netnsDir, err)
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f.Close()
	err = onFreshThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace %s: %w", name, err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name network namespace %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// namespaceExists tells whether name is a network namespace, and not only a file left by one.
func namespaceExists(name string) bool {
	var st unix.Statfs_t
	const nsfsMagic = 0x6e736673 // NSFS_MAGIC, statfs(2)
	return unix.Statfs(filepath.Join(netnsDir, name), &st) == nil && st.Type == nsfsMagic
}

// removeNamespace kills every process in a named network namespace and removes the name; the kernel removes the namespace and
// its interfaces with the last user. A namespace that doesn't exist is no error.
func removeNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	var errs []error
	if namespaceExists(name) {
		errs = append(errs, killNamespace(path))
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount network namespace %s: %w", name, err))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove network namespace %s: %w", name, err))
	}
	return errors.Join(errs...)
}

// killNamespace kills what runs in the network namespace at path until nothing is left of it.
func killNamespace(path string) error {
	inode, err := inodeOf(path)
	if err != nil {
		return err
	}
	const rounds = 5 // a process may fork while the list is read; its children are in the next list
	for range rounds {
		processes, err := processesIn(inode)
		if err != nil {
			return err
		}
		alive := 0
		for _, p := range processes {
			if !p.Alive() {
				continue
			}
			alive++
			if err := p.kill(killTimeout); err != nil {
				return fmt.Errorf("clean up %s: %w", path, err)
			}
		}
		if alive == 0 {
			return nil
		}
	}
	return fmt.Errorf("clean up %s: processes keep appearing in it", path)
}
