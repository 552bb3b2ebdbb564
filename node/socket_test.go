package node

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestStuckConsoleUser: who connects to the console and doesn't read can't keep the machine's end waiting.
func TestStuckConsoleUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	term, err := listenTerminal(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := term.Run(ctx, func(context.Context, []byte) error { return nil }); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	user, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	c, err := newConsole(term, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Passthrough(); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 16<<10)
	for full := time.Now(); time.Since(full) < 200*time.Millisecond; {
		if c.Put(text) > 0 {
			full = time.Now()
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Close() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		user.Close()
		t.Errorf("the console's end waits for its user; then: %v", <-ended)
	}
}
