package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// CheckingClient is ClientMain at work in the lab's client node.
type CheckingClient struct {
	session *Session
	stderr  *lastLine

	mu     sync.Mutex
	rest   []byte        // guarded by mu; an incomplete line
	stats  ClientStats   // guarded by mu
	report *ClientReport // guarded by mu; nil until the end
	bad    error         // guarded by mu; a line that isn't one
}

// StartClient starts a checking client on the register server at address.
func (l *Lab) StartClient(ctx context.Context, address string) (*CheckingClient, error) {
	c := &CheckingClient{stderr: &lastLine{}}
	s, err := l.Begin(ctx, Client, Command{Args: []string{"pollux", "lab-client", address}}, c, c.stderr)
	if err != nil {
		return nil, err
	}
	c.session = s
	return c, nil
}

// Write takes what the client prints.
func (c *CheckingClient) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = append(c.rest, p...)
	for {
		line, rest, found := bytes.Cut(c.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		var l clientLine
		switch err := json.Unmarshal(line, &l); {
		case err != nil:
			c.bad = fmt.Errorf("lab: the client printed %q: %w", line, err)
		case l.Stats != nil:
			c.stats = *l.Stats
		case l.Report != nil:
			c.report = l.Report
		}
		c.rest = append(c.rest[:0], rest...)
	}
}

// Stats is what the client last told.
func (c *CheckingClient) Stats() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Ended is closed when the client has ended, which it does by itself when its TCP connection breaks.
func (c *CheckingClient) Ended() <-chan struct{} { return c.session.Done() }

// Lost tells the client when a host was lost.
func (c *CheckingClient) Lost(at time.Time) error {
	_, err := fmt.Fprintf(stream{c.session.frames, frameStdin}, "loss %d\n", at.UnixNano())
	return err
}

// Finish stops the client and returns its report.
func (c *CheckingClient) Finish() (ClientReport, error) {
	// A client that has ended already has no use for it; its report tells why.
	_, _ = io.WriteString(stream{c.session.frames, frameStdin}, "stop\n")
	err := c.session.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report == nil {
		return ClientReport{}, errors.Join(fmt.Errorf("lab: the client ended without a report; it last said %q", c.stderr), err, c.bad)
	}
	return *c.report, errors.Join(err, c.bad)
}

// Close ends the client without a report.
func (c *CheckingClient) Close() { c.session.Close() }
