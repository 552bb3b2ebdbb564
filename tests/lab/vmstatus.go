package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// VMStatus is the part of a control socket's status that the lab reads.
type VMStatus struct {
	State string `json:"state"`
	Pair  struct {
		HeldFrames uint64 `json:"held_frames"`
		Phase      string `json:"phase"`
		Active     bool   `json:"active"`
		Generation uint64 `json:"generation"`
		Takeover   *struct {
			Epoch uint64        `json:"epoch"`
			Total time.Duration `json:"total_ns"`
		} `json:"takeover"`
		Stats struct {
			Committed  uint64 `json:"committed"`
			Commits    uint64 `json:"commits"`
			DirtyPages uint64 `json:"dirty_pages"`
			Rate       uint64 `json:"epochs_per_second"`
			Phases     map[string]struct {
				P50 float64 `json:"p50_us"`
				P99 float64 `json:"p99_us"`
			} `json:"phases"`
		} `json:"stats"`
	} `json:"protection"`
}

// Protected tells whether the guest runs on this host and a twin could take over.
func (s VMStatus) Protected() bool { return s.Pair.Active && s.Pair.Phase == "protected" }

// Pause is the median time for which a checkpoint stops the guest.
func (s VMStatus) Pause() time.Duration {
	return time.Duration(s.Pair.Stats.Phases["pause"].P50 * float64(time.Microsecond))
}

const (
	statusTimeout = 5 * time.Second
	maxStatus     = 1 << 20 // bytes
)

// VMStatus asks the machine with the control socket at path in a node.
func (l *Lab) VMStatus(ctx context.Context, node, path string) (VMStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return l.DialNode(ctx, node, "unix", path)
		},
	}}
	// The host name is a formality: the socket is the address.
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://machine/status", nil)
	if err != nil {
		return VMStatus{}, fmt.Errorf("lab: status of the machine on %s: %w", node, err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return VMStatus{}, fmt.Errorf("lab: status of the machine on %s: %w", node, err)
	}
	defer resp.Body.Close()
	var s VMStatus
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return VMStatus{}, fmt.Errorf("lab: status of the machine on %s: %w", node, err)
	}
	return s, nil
}
