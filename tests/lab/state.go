package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stateVersion = 1
	stateFile    = "state.json"
	lockFile     = "lock"
)

// Power is what the lab last did to a node.
type Power string

const (
	PowerOff    Power = "off"    // never started, or shut down in an orderly way
	PowerOn     Power = "on"     // started; whether it is alive is another question
	PowerKilled Power = "killed" // power loss by the lab
)

// State is what a lab remembers on disk between commands.
type State struct {
	Version int                   `json:"version"`
	ID      string                `json:"id"`
	Backend Backend               `json:"backend"`
	Reason  string                `json:"reason"`
	Created time.Time             `json:"created"`
	Config  Config                `json:"config"`
	Nodes   map[string]*NodeState `json:"nodes"`
}

// NodeState is what a lab remembers of one node.
type NodeState struct {
	Emulated bool      `json:"emulated"`
	Power    Power     `json:"power"`
	Boots    int       `json:"boots"`   // how often it was started; names the console log
	Process  Process   `json:"process"` // QEMU, or the first process of a namespace node
	Since    time.Time `json:"since"`   // of the last change of Power
}

// errNoState tells that there is no lab in the directory.
var errNoState = errors.New("no lab is set up here")

// readState reads and checks dir's state file. errNoState if there is none.
func readState(dir string) (*State, error) {
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab: %s: %w", dir, errNoState)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: read the state: %w", err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("lab: %s is damaged (`pollux lab down` removes it): %w", path, err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("lab: %s has version %d, this build reads %d; `pollux lab down` removes it", path, s.Version, stateVersion)
	}
	for name, n := range s.Nodes {
		if _, known := hostNumbers[name]; !known || n == nil {
			return nil, fmt.Errorf("lab: %s names an unknown node %q; `pollux lab down` removes it", path, name)
		}
	}
	return &s, nil
}

// writeState replaces dir's state file as a whole.
func writeState(dir string, s *State) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("lab: encode the state: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("lab: write the state: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("lab: replace the state: %w", err)
	}
	return nil
}

// lockDir takes the directory's lock, which every change of a lab's state holds; the kernel drops it when the holder dies. It
// waits for another holder up to timeout.
func lockDir(dir string, timeout time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: open the lock: %w", err)
	}
	for deadline := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing drops the lock
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lab: lock %s: %w", dir, err)
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("lab: another command has been working on the lab in %s for %v; wait for it or end it", dir, timeout)
		}
	}
}
