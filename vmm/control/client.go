package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"

	"golang.org/x/sys/unix"
)

// ErrNoMachine is wrapped by errors of a Client whose socket nobody answers.
var ErrNoMachine = errors.New("no machine answers")

// Client asks the machine behind a control socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at path. It connects for each request.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks what the machine is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	return status, c.do(ctx, http.MethodGet, "status", nil, &status)
}

// Pause stops the guest until Resume.
func (c *Client) Pause(ctx context.Context) error { return c.post(ctx, "pause", nil) }

// Resume lets the guest run again.
func (c *Client) Resume(ctx context.Context) error { return c.post(ctx, "resume", nil) }

// Snapshot has the machine write a snapshot to an absolute path on its host.
func (c *Client) Snapshot(ctx context.Context, path string) error {
	return c.post(ctx, "snapshot", snapshotRequest{path})
}

// PressPowerButton asks the guest to power off.
func (c *Client) PressPowerButton(ctx context.Context) error { return c.post(ctx, "power-button", nil) }

// Quit ends the machine as if its power had been cut.
func (c *Client) Quit(ctx context.Context) error { return c.post(ctx, "quit", nil) }

func (c *Client) post(ctx context.Context, what string, body any) error {
	return c.do(ctx, http.MethodPost, what, body, nil)
}

// do makes one request; answer is where to put what comes back, nil for nowhere.
func (c *Client) do(ctx context.Context, method, what string, body, answer any) error {
	if err := c.exchange(ctx, method, what, body, answer); err != nil {
		return fmt.Errorf("%s by control socket %s: %w", what, c.path, err)
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, method, what string, body, answer any) error {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://machine/"+what, &content)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return ErrNoMachine
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	d := json.NewDecoder(io.LimitReader(response.Body, 1<<20))
	if response.StatusCode >= http.StatusBadRequest {
		var f failure
		if err := d.Decode(&f); err != nil || f.Error == "" {
			return errors.New(response.Status)
		}
		return errors.New(f.Error)
	}
	if answer == nil {
		return nil
	}
	return d.Decode(answer)
}
