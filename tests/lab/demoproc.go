package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// process is a pollux process in a node; what it prints goes to a file.
type process struct {
	node, command string
	session       *Session
	said          *lastLine
	log           *os.File
}

func (p *process) String() string { return fmt.Sprintf("`pollux %s` on %s", p.command, p.node) }

// end is why a process that has ended did.
func (p *process) end() error {
	err := p.session.Wait()
	if err == nil {
		err = errors.New("without an error")
	}
	return fmt.Errorf("%w; it last said %q", err, p.said)
}

func (d *demo) logPath(node, command string) string {
	return filepath.Join(d.lab.Dir(), "logs", node+"-"+command+".log")
}

// start runs args ("pollux", command, …) in a node until closeAll.
func (d *demo) start(ctx context.Context, node string, args []string) (*process, error) {
	path := d.logPath(node, args[1])
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	p := &process{node: node, command: args[1], said: &lastLine{}, log: f}
	out := io.MultiWriter(f, p.said)
	if p.session, err = d.lab.Begin(ctx, node, Command{Args: args}, out, out); err != nil {
		f.Close()
		return nil, fmt.Errorf("demo: start %s: %w", p, err)
	}
	d.cfg.Logger.Debug("started", "node", node, "command", strings.Join(args, " "))
	return p, nil
}

func (d *demo) closeAll() {
	if d.client != nil {
		d.client.Close()
	}
	for _, p := range []*process{d.host, d.twin, d.witness} {
		if p != nil {
			p.session.Close()
			p.log.Close()
		}
	}
}

// keepLogs saves what a failure may be explained by, next to the processes' own logs.
func (d *demo) keepLogs() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, node := range []string{HostA, HostB} {
		f, err := os.Create(d.logPath(node, "serial"))
		if err != nil {
			d.cfg.Logger.Warn("the guest's console can't be kept", "err", err)
			continue
		}
		if err := d.lab.Get(ctx, node, serialPath, f); err != nil {
			d.cfg.Logger.Debug("no guest console here", "node", node, "err", err)
		}
		f.Close()
	}
	d.say("Logs are in %s.", filepath.Join(d.lab.Dir(), "logs"))
}
