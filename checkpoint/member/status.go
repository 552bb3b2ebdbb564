package member

import (
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/role"
)

// Takeover says how long a takeover took, and where the time went.
type Takeover struct {
	Epoch   uint64        `json:"epoch"`
	Total   time.Duration `json:"total_ns"`   // from the loss of the peer being noticed to the guest running
	Arbiter time.Duration `json:"arbiter_ns"` // until the arbiter had agreed
	Load    time.Duration `json:"load_ns"`    // finishing the image and loading state
	Start   time.Duration `json:"start_ns"`   // network and vCPUs
}

// Status is what a Member knows of itself, for people and programs.
type Status struct {
	VM         string              `json:"vm"`
	Node       string              `json:"node"`
	Phase      string              `json:"phase"`
	Active     bool                `json:"active"`     // the guest runs here
	Held       bool                `json:"held"`       // its output waits
	Generation uint64              `json:"generation"` // in which it runs here
	Record     string              `json:"record"`     // the newest known
	Peer       string              `json:"peer"`       // empty: not connected
	Arbiter    string              `json:"arbiter"`    // why it last gave no answer; empty: it did
	Takeover   *Takeover           `json:"takeover,omitempty"`
	View       role.View           `json:"-"`
	Stats      checkpoint.Snapshot `json:"stats"`
}

// note brings what Status tells up to date. The loop calls it.
func (m *Member) note() {
	v := m.role.View()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.View = v
	m.status.Peer = ""
	if v.PeerUp {
		m.status.Peer = string(v.Peer.Node)
	}
}

// setArbiter notes why the arbiter gave no answer, or that it did, and reports whether that is news.
func (m *Member) setArbiter(s string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	news := m.status.Arbiter != s
	m.status.Arbiter = s
	return news
}

// Status tells where the member stands. It may be called from any goroutine, before, during and after Run.
func (m *Member) Status() Status {
	m.mu.Lock()
	s := m.status
	m.mu.Unlock()
	s.VM, s.Node = m.cfg.VM, m.cfg.Node
	v := s.View
	s.Phase, s.Active, s.Held, s.Generation, s.Record = v.Phase.String(), v.Phase.Active(), v.Held, v.Generation, v.Record.String()
	s.Stats = m.stats.Snapshot()
	return s
}
