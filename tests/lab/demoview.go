package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// watchFor prints one line a second about the guest on node for some time. running are the processes that must not end.
func (d *demo) watchFor(ctx context.Context, node string, length time.Duration, running ...*process) error {
	before := d.client.Stats()
	last := time.Now()
	for end := time.Now().Add(length); time.Now().Before(end); {
		if err := d.pause(ctx, time.Second-time.Since(last)%time.Second, running...); err != nil {
			return err
		}
		if err := d.clientRuns(); err != nil {
			return err
		}
		s, err := d.lab.VMStatus(ctx, node, controlPath)
		if err != nil {
			return err
		}
		now, stats := time.Now(), d.client.Stats()
		rate := float64(stats.Answers-before.Answers) / now.Sub(last).Seconds()
		before, last = stats, now
		d.say("%s", liveLine(node, s, stats, rate))
	}
	return nil
}

// liveLine is one second of the guest's life.
func liveLine(node string, s VMStatus, c ClientStats, rate float64) string {
	st := s.Pair.Stats
	return fmt.Sprintf("%s runs it, %-9s  epoch %5d %3d/s  pause %5.1f ms  dirty %5d  held %3d  answers %6d %5.0f/s",
		node, s.Pair.Phase, st.Committed, st.Rate, milliseconds(s.Pause()), st.DirtyPages, s.Pair.HeldFrames, c.Answers, rate)
}

// DemoReport is what the demo came to. The JSON fields are a contract with whoever reads build/demo/report.json.
type DemoReport struct {
	Tier               string  `json:"tier"`
	Kernel             string  `json:"kernel"`
	Epochs             uint64  `json:"epochs"`
	AnswersBefore      uint64  `json:"answers_before"`
	AnswersAfter       uint64  `json:"answers_after"`
	LostWrites         uint64  `json:"lost_writes"`
	SequenceViolations uint64  `json:"sequence_violations"`
	ConnectionResets   uint64  `json:"connection_resets"`
	LongestGapMS       float64 `json:"longest_gap_ms"`
	TakeoverMS         float64 `json:"takeover_ms"`
	SameIP             bool    `json:"same_ip"`
	SameMAC            bool    `json:"same_mac"`

	macBefore, macAfter string
	wrong               string // what the client found, in words
}

// take fills in what the client saw.
func (r *DemoReport) take(c ClientReport) {
	r.AnswersBefore, r.AnswersAfter = c.AnswersBefore, c.AnswersAfter
	r.LostWrites, r.SequenceViolations, r.ConnectionResets = c.LostWrites, c.SequenceViolations, c.ConnectionResets
	r.LongestGapMS = milliseconds(c.LongestGap)
	r.wrong = c.Wrong
	// The client uses one address only; answers of the same server after the loss come from the same IP address.
	r.SameIP = c.AnswersAfter > 0 && c.Restarts == 0
	r.SameMAC = r.macBefore == GuestMAC().String() && r.macAfter == r.macBefore
}

// verdict is nil if everything is as promised.
func (r *DemoReport) verdict() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(r.AnswersBefore > 0, "no answers before the loss")
	check(r.AnswersAfter > 0, "no answers after the loss")
	check(r.LostWrites == 0, "%d acknowledged writes lost", r.LostWrites)
	check(r.SequenceViolations == 0, "%d sequence violations", r.SequenceViolations)
	check(r.ConnectionResets == 0, "%d connection resets", r.ConnectionResets)
	check(r.SameIP, "the guest did not keep its address, or was restarted")
	check(r.SameMAC, "the guest's MAC address was %q before and %q after, it should be %s", r.macBefore, r.macAfter, GuestMAC())
	check(r.wrong == "", "the client: %s", r.wrong)
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("demo failed: %w", errors.Join(errs...))
}

// table prints the report for people.
func (r *DemoReport) table(w io.Writer) {
	yes := map[bool]string{true: "yes", false: "NO"}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t)
	for _, row := range [][2]string{
		{"answers before the loss", fmt.Sprint(r.AnswersBefore)},
		{"answers after", fmt.Sprint(r.AnswersAfter)},
		{"lost acknowledged writes", fmt.Sprint(r.LostWrites)},
		{"sequence violations", fmt.Sprint(r.SequenceViolations)},
		{"connection resets", fmt.Sprint(r.ConnectionResets)},
		{"longest gap", fmt.Sprintf("%.0f ms", r.LongestGapMS)},
		{"takeover after", fmt.Sprintf("%.0f ms", r.TakeoverMS)},
		{"same IP address, same MAC address", yes[r.SameIP] + ", " + yes[r.SameMAC]},
		{"epochs committed before", fmt.Sprint(r.Epochs)},
		{"tier, guest kernel", r.Tier + ", " + r.Kernel},
	} {
		fmt.Fprintf(t, "  %s\t%s\n", row[0], row[1])
	}
	fmt.Fprintln(t)
	t.Flush()
}

func (r *DemoReport) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("demo: encode the report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("demo: write the report: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("demo: write the report: %w", err)
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// guestMAC is the MAC address that the client node knows the guest by; what went wrong if it knows none.
func (l *Lab) guestMAC() string {
	mac, err := l.neighbour(Client, NetClient, GuestAddr().Addr().AsSlice())
	if err != nil {
		return strings.TrimSpace(err.Error())
	}
	return mac.String()
}

// neighbour looks an address up in the ARP table of a namespace node.
func (l *Lab) neighbour(node, network string, ip net.IP) (net.HardwareAddr, error) {
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, namespaceName(l.id(), node)))
	if err != nil {
		return nil, fmt.Errorf("lab: open the namespace of %s: %w", node, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("lab: open netlink in %s: %w", node, err)
	}
	defer h.Close()
	link, err := h.LinkByName(network)
	if err != nil {
		return nil, fmt.Errorf("lab: interface %s of %s: %w", network, node, err)
	}
	list, err := h.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("lab: neighbours of %s: %w", node, err)
	}
	for _, n := range list {
		if n.IP.Equal(ip) && len(n.HardwareAddr) > 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, fmt.Errorf("lab: %s doesn't know %v", node, ip)
}
