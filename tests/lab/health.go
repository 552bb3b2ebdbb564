package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// hangAfter is how long an agent may be silent before its node counts as hanging. Emulated nodes share the CPUs of a
	// busy machine: silence of seconds is normal there.
	hangAfter = 30 * time.Second
	// starvedPatience is how many times longer it may be silent when the machine is too busy to run it.
	starvedPatience = 10
	// settleTime lets a dying node finish: its last words may reach the console after its connections broke.
	settleTime = 5 * time.Second
)

// waitReady waits for a node's agent. A node that dies on the way is a *NodeDied, with CauseBoot if it just doesn't come up.
func (l *Lab) waitReady(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		err := l.ping(ctx, node)
		if err == nil {
			return nil
		}
		if died := l.autopsy(node); died != nil {
			return died
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return l.report(node, CauseBoot, err.Error())
			}
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ping waits for one beat of a node's agent.
func (l *Lab) ping(ctx context.Context, node string) error {
	conn, _, err := l.connect(ctx, node, request{Op: opWatch})
	if err != nil {
		return err
	}
	return conn.Close()
}

// autopsy returns how a node died by itself; nil if it runs, or if the lab killed it or never started it.
func (l *Lab) autopsy(node string) *NodeDied {
	state, err := l.stateOf(node)
	if err != nil {
		return nil // the lab was taken down: that is no death
	}
	n := state.Nodes[node]
	if n.Power != PowerOn || n.Process.Alive() {
		return nil
	}
	cause := CauseReset
	if !n.Emulated {
		cause = CauseEnded
	}
	return l.report(node, cause, "")
}

// report makes a NodeDied. What the console says wins over the cause given.
func (l *Lab) report(node string, cause Cause, detail string) *NodeDied {
	died := &NodeDied{Node: node, Cause: cause, Detail: detail}
	state, err := l.stateOf(node)
	if err != nil {
		died.Detail = err.Error()
		return died
	}
	n := state.Nodes[node]
	died.After = time.Since(n.Since)
	console, err := readTail(l.consolePath(node, n.Boots), consoleTail)
	if err != nil {
		died.Console = err.Error()
		return died
	}
	const keep = 60
	died.Console = lastLines(console, keep)
	if !n.Emulated {
		return died
	}
	emulator, err := readTail(l.emulatorLog(node, n.Boots), consoleTail)
	if err != nil {
		died.Console += "\n" + err.Error()
	}
	if c, d, ok := classify(console, emulator); ok {
		died.Cause, died.Detail = c, d
	}
	return died
}

// Explain puts the death of a node in front of an error that may come from it. It waits a moment for a dying node to finish when
// there is an error to explain. nil stays nil.
func (l *Lab) Explain(err error) error {
	var known *NodeDied
	if err == nil || errors.As(err, &known) {
		return err
	}
	state, stateErr := readState(l.dir)
	if stateErr != nil {
		return err
	}
	for deadline := time.Now().Add(settleTime); ; time.Sleep(200 * time.Millisecond) {
		for _, node := range state.Config.Nodes {
			if died := l.autopsy(node); died != nil {
				return errors.Join(died, err)
			}
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Guard watches the nodes: the context that it returns ends with a *NodeDied as its cause (context.Cause) when a node dies by
// itself or hangs. Nodes that the lab kills are no longer watched. stop ends the watching and waits.
func (l *Lab) Guard(ctx context.Context) (guarded context.Context, stop func(), err error) {
	state, err := readState(l.dir)
	if err != nil {
		return nil, nil, err
	}
	guarded, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	for _, node := range state.Config.Nodes {
		if state.Nodes[node].Power != PowerOn {
			continue
		}
		wg.Go(func() { l.nudge(node, guarded.Done()) })
		wg.Go(func() {
			if died := l.watch(guarded, node); died != nil {
				cancel(died)
			}
		})
	}
	return guarded, func() { cancel(context.Canceled); wg.Wait() }, nil
}

// watch follows one node's heartbeat until the node dies by itself (returned), is killed by the lab, or ctx ends (nil).
func (l *Lab) watch(ctx context.Context, node string) *NodeDied {
	lastBeat := time.Now()
	for ctx.Err() == nil {
		err := l.followBeats(ctx, node, &lastBeat)
		state, stateErr := l.stateOf(node)
		if stateErr != nil || state.Nodes[node].Power != PowerOn {
			return nil
		}
		if died := l.autopsy(node); died != nil {
			return died
		}
		if ctx.Err() == nil && l.hangs(state.Nodes[node].Process, time.Since(lastBeat)) {
			return l.report(node, CauseHang, fmt.Sprintf("silent for %v: %v", time.Since(lastBeat).Round(time.Second), err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// hangs tells whether a node that has been silent for some time counts as hanging. One that is ready to run and doesn't get a
// CPU of this machine is only slow, and is given much longer.
func (l *Lab) hangs(p Process, silent time.Duration) bool {
	if silent <= l.hangAfter {
		return false
	}
	return silent > starvedPatience*l.hangAfter || !p.starved()
}

// followBeats reads a node's heartbeat until it stops.
func (l *Lab) followBeats(ctx context.Context, node string, lastBeat *time.Time) error {
	conn, _, err := l.connect(ctx, node, request{Op: opWatch})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for {
		*lastBeat = time.Now()
		var beat answer
		if err := readBeat(conn, &beat); err != nil {
			return err
		}
	}
}

// readBeat reads one beat; a node whose process died is found out by its autopsy, so the wait is short.
func readBeat(conn net.Conn, beat *answer) error {
	if err := conn.SetReadDeadline(time.Now().Add(4 * heartbeatEvery)); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	return readMessage(conn, beat)
}

// NodeStatus is one node as it is now.
type NodeStatus struct {
	Name     string    `json:"name"`
	Emulated bool      `json:"emulated"`
	Power    Power     `json:"power"`
	Answers  bool      `json:"answers"` // its agent does
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"` // of the last change of Power
	Addrs    []string  `json:"addresses"`
	Console  string    `json:"console"` // log file
	Died     string    `json:"died,omitempty"`
}

// Status is a lab as it is now.
type Status struct {
	Dir     string       `json:"dir"`
	Backend Backend      `json:"backend"`
	Reason  string       `json:"reason"`
	Nodes   []NodeStatus `json:"nodes"`
}

// Status asks every node.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	state, err := readState(l.dir)
	if err != nil {
		return Status{}, err
	}
	s := Status{Dir: l.dir, Backend: state.Backend, Reason: state.Reason, Nodes: make([]NodeStatus, len(state.Config.Nodes))}
	var wg sync.WaitGroup
	for i, node := range state.Config.Nodes {
		wg.Go(func() { s.Nodes[i] = l.nodeStatus(ctx, node, state.Nodes[node]) })
	}
	wg.Wait()
	return s, nil
}

func (l *Lab) nodeStatus(ctx context.Context, node string, n *NodeState) NodeStatus {
	s := NodeStatus{
		Name: node, Emulated: n.Emulated, Power: n.Power, PID: n.Process.PID, Since: n.Since, Console: l.consolePath(node, n.Boots),
	}
	for _, nic := range nicsOf(node) {
		s.Addrs = append(s.Addrs, nic.Addr)
	}
	if n.Power != PowerOn {
		return s
	}
	if died := l.autopsy(node); died != nil {
		s.Died = died.Error()
		return s
	}
	s.Answers = l.ping(ctx, node) == nil
	return s
}
