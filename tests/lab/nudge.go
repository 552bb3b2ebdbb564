package lab

import (
	"context"
	"net/netip"
	"time"
)

const (
	// nudgeEvery is how often an emulated node gets a nudge; it bounds how long the node can stand still.
	nudgeEvery = 20 * time.Millisecond
	// nudgePort is the discard protocol's. Nobody listens: all that matters is the datagram's interrupt.
	nudgePort = 9
)

// nudge sends a datagram to an emulated node again and again, until done is closed.
//
// QEMU's emulation of entering and leaving a nested guest changes the CPU's pending interrupt requests without the lock
// under which its device thread adds to them, and so loses one now and then. If it was the node's one-shot timer, which is
// all that wakes a node whose network is silent, the node stands still until any other interrupt makes the emulator look at
// its interrupt controller again, where the timer's is still waiting. A datagram is such an interrupt.
func (l *Lab) nudge(node string, done <-chan struct{}) {
	state, err := l.stateOf(node)
	if err != nil || !state.Nodes[node].Emulated {
		return
	}
	agent, err := agentAddr(node)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	to := netip.AddrPortFrom(agent.Addr(), nudgePort)
	conn, err := dialIn(ctx, namespaceName(l.id(), switchNamespace), "udp", to.String(), dialTimeout)
	if err != nil {
		l.log.Warn("an emulated node gets no nudges and may stand still for seconds", "node", node, "error", err)
		return
	}
	defer conn.Close()
	t := time.NewTicker(nudgeEvery)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			// The node answers that nobody listens, which the next write reports; it has done its work all the same.
			_, _ = conn.Write([]byte{0})
		}
	}
}
