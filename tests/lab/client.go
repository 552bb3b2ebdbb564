package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/guests/register"
	"github.com/pollux-ha/pollux/guests/register/history"
)

// ClientReport is the verdict of a checking client on a guest's register server.
type ClientReport struct {
	AnswersBefore      uint64        `json:"answers_before"` // the loss that the client was told of; all, if none
	AnswersAfter       uint64        `json:"answers_after"`
	LostWrites         uint64        `json:"lost_writes"`
	SequenceViolations uint64        `json:"sequence_violations"`
	ConnectionResets   uint64        `json:"connection_resets"`
	Restarts           uint64        `json:"restarts"` // answers of a server that was started anew
	NotLinearizable    []uint16      `json:"not_linearizable,omitempty"`
	LongestGap         time.Duration `json:"longest_gap_ns"`
	P50, P99           time.Duration
	Wrong              string `json:"wrong,omitempty"` // everything that was, in words
}

// ClientStats is how things stand for a checking client.
type ClientStats struct {
	Answers    uint64        `json:"answers"`
	TCP        uint64        `json:"tcp"`
	UDP        uint64        `json:"udp"`
	LongestGap time.Duration `json:"longest_gap_ns"`
	LastAnswer time.Time     `json:"last_answer"`
	P99        time.Duration `json:"p99_ns"`
}

// clientLine is one line that the client prints: exactly one field is set.
type clientLine struct {
	Stats  *ClientStats  `json:"stats,omitempty"`
	Report *ClientReport `json:"report,omitempty"`
}

const (
	udpPrefix        = "udp:"
	clientStatsEvery = 200 * time.Millisecond
	// clientPace leaves the emulated guest time for something else than answering.
	clientPace = 2 * time.Millisecond
	// checkTime bounds the final check of the history; it takes well under a second for a demo.
	checkTime = 30 * time.Second
	// clientPatience is how long the server may take to answer at all, at the start.
	clientPatience = 2 * time.Minute
)

// ClientMain is the checking client of a lab, which runs in the client node: it works on the register server at address over one
// TCP connection and one UDP flow and prints JSON lines, statistics as it goes and a report at the end. On standard input it
// takes lines: "loss NANOSECONDS" (Unix time at which a host was lost, for the counts before and after) and "stop". It also
// stops at the input's end, and when the TCP connection breaks. An address that begins with "udp:" is that of a server that
// has no TCP: the client then uses two UDP flows.
//
// It runs as a hidden subcommand of the pollux binary ("lab-client ADDRESS").
func ClientMain(ctx context.Context, address string, in io.Reader, out io.Writer) error {
	load := history.LoadOptions{TCP: 1, UDP: 1, Pace: clientPace}
	network := "tcp"
	if rest, ok := strings.CutPrefix(address, udpPrefix); ok {
		address, network = rest, "udp"
		load.TCP, load.UDP = 0, 2
	}
	load.Address = address
	roundTrip, err := waitForServer(ctx, network, address)
	if err != nil {
		return err
	}
	load.UDPTimeout = udpTimeout(roundTrip)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &client{history: history.New(), out: json.NewEncoder(out), stop: cancel}
	// Ends with the process at the latest: reading standard input can't be interrupted.
	go c.commands(in)
	printed := make(chan error, 1)
	go func() { printed <- c.print(ctx) }()
	loadErr := history.Load(ctx, load, c.history)
	cancel()
	if err := <-printed; err != nil {
		return err
	}
	return c.report(loadErr)
}

// udpTimeout is how long a client waits until it asks again. Much more than a round trip, or a slow guest's answers would all
// come too late; but not more than that, or the longest gap would be about the client's patience and not about the guest.
func udpTimeout(roundTrip time.Duration) time.Duration {
	const most, least, trips = 3 * time.Second, 40 * time.Millisecond, 2
	return min(max(trips*roundTrip, least), most)
}

// waitForServer waits until the server answers, and returns the longest of a few round trips.
func waitForServer(ctx context.Context, network, address string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, clientPatience)
	defer cancel()
	for {
		roundTrip, err := tryServer(ctx, network, address)
		if err == nil {
			return roundTrip, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("lab client: no answer from %s: %w", address, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func tryServer(ctx context.Context, network, address string) (longest time.Duration, err error) {
	const tries, patience = 5, 15 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := register.Dial(ctx, network, address, register.ClientOptions{})
	if err != nil {
		return 0, err
	}
	for n := 0; n < tries && err == nil; n++ {
		sent := time.Now()
		_, err = c.Read(ctx, 0)
		longest = max(longest, time.Since(sent))
	}
	return longest, errors.Join(err, c.Close())
}

type client struct {
	history *history.History
	out     *json.Encoder
	stop    func()

	mu   sync.Mutex
	loss time.Time // guarded by mu
}

func (c *client) commands(in io.Reader) {
	defer c.stop()
	s := bufio.NewScanner(in)
	for s.Scan() {
		verb, value, _ := strings.Cut(s.Text(), " ")
		switch verb {
		case "stop":
			return
		case "loss":
			if ns, err := strconv.ParseInt(value, 10, 64); err == nil {
				c.mu.Lock()
				c.loss = time.Unix(0, ns)
				c.mu.Unlock()
			}
		}
	}
}

// print prints statistics until ctx ends.
func (c *client) print(ctx context.Context) error {
	t := time.NewTicker(clientStatsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		s := c.history.Snapshot()
		line := clientLine{Stats: &ClientStats{
			Answers: s.Answers, TCP: s.TCPAnswers, UDP: s.UDPAnswers, LongestGap: s.LongestGap, LastAnswer: s.LastAnswer, P99: s.P99,
		}}
		if err := c.out.Encode(line); err != nil {
			return fmt.Errorf("lab client: print: %w", err)
		}
	}
}

func (c *client) report(loadErr error) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	verdict := c.history.Check(ctx)
	c.mu.Lock()
	loss := c.loss
	c.mu.Unlock()
	r := &ClientReport{
		AnswersBefore: verdict.Stats.Answers, LostWrites: verdict.LostWrites, SequenceViolations: verdict.SequenceViolations,
		ConnectionResets: verdict.Stats.ConnectionResets, Restarts: verdict.Stats.BootChanges, NotLinearizable: verdict.NotLinearizable,
		LongestGap: verdict.Stats.LongestGap, P50: verdict.Stats.P50, P99: verdict.Stats.P99,
	}
	if !loss.IsZero() {
		r.AnswersBefore, r.AnswersAfter = c.history.AnswersBefore(loss)
	}
	if err := errors.Join(verdict.Err(), loadErr); err != nil {
		r.Wrong = err.Error()
	}
	if err := c.out.Encode(clientLine{Report: r}); err != nil {
		return fmt.Errorf("lab client: print the report: %w", err)
	}
	return nil
}
