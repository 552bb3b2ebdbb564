package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// controlFlag names the machine that a command is for.
type controlFlag struct {
	Control string `required:"" help:"Path of the machine's control socket." placeholder:"PATH"`
}

// call sends one request to the control socket and returns the answer's body.
func (c controlFlag) call(ctx context.Context, method, path string, request any) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", c.Control)
		},
	}}
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	// The host name is a formality: the socket is the address.
	r, err := http.NewRequestWithContext(ctx, method, "http://machine"+path, body)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("reach the machine at %s: %w (is it running, with --control %[1]s?)", c.Control, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("read the machine's answer: %w", err)
	}
	if answer.StatusCode/100 != 2 {
		return nil, fmt.Errorf("the machine refused: %s", refusal(answer.Status, b))
	}
	return b, nil
}

// refusal is the reason in an answer that is no success.
func refusal(status string, body []byte) string {
	var e struct{ Error string }
	if json.Unmarshal(body, &e) == nil && e.Error != "" {
		return e.Error
	}
	return strings.TrimSpace(status + " " + string(body))
}

type statusCmd struct{ controlFlag }

func (c statusCmd) Run(ctx context.Context, w io.Writer) error {
	b, err := c.call(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return fmt.Errorf("read the machine's answer: %w", err)
	}
	_, err = fmt.Fprintln(w, strings.TrimSpace(indented.String()))
	return err
}

type pauseCmd struct{ controlFlag }

func (c pauseCmd) Run(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/pause", nil)
	return err
}

type resumeCmd struct{ controlFlag }

func (c resumeCmd) Run(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/resume", nil)
	return err
}

type powerButtonCmd struct{ controlFlag }

func (c powerButtonCmd) Run(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/power-button", nil)
	return err
}

type quitCmd struct{ controlFlag }

func (c quitCmd) Run(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/quit", nil)
	return err
}

type snapshotCmd struct {
	controlFlag
	File string `arg:"" help:"The file to write."`
}

func (c snapshotCmd) Run(ctx context.Context) error {
	path, err := filepath.Abs(c.File) // the machine's process has another working directory
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPost, "/snapshot", map[string]string{"path": path})
	return err
}
