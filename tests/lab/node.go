package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds one attempt to reach an agent: a node that lost its power doesn't answer at all.
const dialTimeout = 3 * time.Second

// answerTimeout bounds the wait for the agent's answer to a request.
const answerTimeout = 15 * time.Second

// connect opens a connection to a node's agent, sends a request and reads the answer.
func (l *Lab) connect(ctx context.Context, node string, req request) (net.Conn, answer, error) {
	addr, err := agentAddr(node)
	if err != nil {
		return nil, answer{}, err
	}
	conn, err := dialIn(ctx, namespaceName(l.id(), switchNamespace), "tcp", addr.String(), dialTimeout)
	if err != nil {
		return nil, answer{}, fmt.Errorf("lab: reach the agent of %s: %w", node, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ans, err := ask(conn, req)
	if err != nil {
		conn.Close()
		return nil, answer{}, fmt.Errorf("lab: %s on %s: %w", req.Op, node, errors.Join(err, ctx.Err()))
	}
	return conn, ans, nil
}

// ask sends a request and reads the answer, within a bound that a node under load keeps and a dead one doesn't.
func ask(conn net.Conn, req request) (answer, error) {
	var ans answer
	err := conn.SetDeadline(time.Now().Add(answerTimeout))
	if err == nil {
		err = writeMessage(conn, req)
	}
	if err == nil {
		err = readMessage(conn, &ans)
	}
	if err == nil && ans.Error != "" {
		err = errors.New(ans.Error)
	}
	return ans, errors.Join(err, conn.SetDeadline(time.Time{}))
}

// keepAlive ends connections to a node that is gone or stands still: it sends no word of its end. A node under load answers,
// its kernel does that.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 20}

// dialIn opens a connection from a network namespace.
func dialIn(ctx context.Context, namespace, network, address string, timeout time.Duration) (conn net.Conn, err error) {
	err = inNamespace(namespace, func() error {
		// An address without names to look up is dialled on this very thread.
		d := net.Dialer{Timeout: timeout, FallbackDelay: -1, KeepAliveConfig: keepAlive}
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// DialFrom opens a connection as the processes of a namespace node (the witness, the client) would: the lab's own clients stand
// in the lab this way. address is an IP address and a port.
func (l *Lab) DialFrom(ctx context.Context, node, network, address string) (net.Conn, error) {
	if state, err := l.stateOf(node); err != nil {
		return nil, err
	} else if state.Nodes[node].Emulated {
		return nil, fmt.Errorf("lab: node %s is emulated: connections start in namespace nodes only", node)
	}
	conn, err := dialIn(ctx, namespaceName(l.id(), node), network, address, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: from %s: %w", node, err)
	}
	return conn, nil
}

// DialNode opens a connection inside a node, over its agent: network is unix (a control socket) or tcp.
func (l *Lab) DialNode(ctx context.Context, node, network, address string) (net.Conn, error) {
	conn, _, err := l.connect(ctx, node, request{Op: opDial, Dial: &dialTarget{Network: network, Address: address}})
	return conn, err
}

// ExitError is a command in a node that ended with something else than success.
type ExitError struct {
	Node   string
	Args   []string
	Code   int         // -1 if a signal ended it
	Signal unix.Signal // 0 if none
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("%s on %s was ended by signal %v", e.Args[0], e.Node, e.Signal)
	}
	return fmt.Sprintf("%s on %s ended with exit status %d", e.Args[0], e.Node, e.Code)
}

// Exec runs a command in a node with the streams given (nil: none) until it ends or ctx does; then it is killed with all of its
// process group. A status other than 0 is an *ExitError. A node that died meanwhile is told by Explain.
func (l *Lab) Exec(ctx context.Context, node string, c Command, stdin io.Reader, stdout, stderr io.Writer) error {
	s, err := l.Begin(ctx, node, c, stdout, stderr)
	if err != nil {
		return err
	}
	if stdin == nil {
		err = s.frames.send(frameStdin, nil)
	} else {
		// Ends with the input or with the session; a blocked terminal read is left to the end of the process.
		go func() { _ = s.input(stdin) }()
	}
	return errors.Join(err, s.Wait())
}

// Session is a command that runs in a node.
type Session struct {
	node   string
	args   []string
	pid    int
	conn   net.Conn
	frames *frameWriter
	done   chan struct{}
	err    error // valid once done is closed
}

// Begin starts a command in a node, see Exec. It runs until it ends by itself, ctx ends, or Close.
func (l *Lab) Begin(ctx context.Context, node string, c Command, stdout, stderr io.Writer) (*Session, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("lab: exec on %s: no command", node)
	}
	conn, ans, err := l.connect(ctx, node, request{Op: opExec, Exec: &c})
	if err != nil {
		return nil, err
	}
	s := &Session{node: node, args: c.Args, pid: ans.PID, conn: conn, frames: &frameWriter{w: conn}, done: make(chan struct{})}
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(s.done)
		defer conn.Close()
		defer stop()
		over := make(chan struct{})
		var company sync.WaitGroup
		company.Go(func() { l.hangUp(node, conn, over) })
		company.Go(func() { l.nudge(node, over) })
		s.err = s.output(stdout, stderr)
		close(over)
		company.Wait()
		if s.err != nil && ctx.Err() != nil {
			s.err = errors.Join(context.Cause(ctx), s.err)
		}
	}()
	return s, nil
}

// hangUp closes a connection when the process of the node is gone, which the connection itself would tell only much later. It
// watches until over is closed.
func (l *Lab) hangUp(node string, conn net.Conn, over <-chan struct{}) {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	for {
		select {
		case <-over:
			return
		case <-t.C:
		}
		state, err := l.stateOf(node)
		if err != nil || !state.Nodes[node].Process.Alive() {
			conn.Close()
			return
		}
	}
}

// PID is the command's process ID inside the node.
func (s *Session) PID() int { return s.pid }

// Signal sends a signal to the command's process group.
func (s *Session) Signal(sig unix.Signal) error {
	return s.frames.send(frameSignal, []byte{byte(sig)})
}

// Done is closed when the command has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Wait waits for the command's end. The error is an *ExitError if the command failed.
func (s *Session) Wait() error {
	<-s.done
	return s.err
}

// Close kills the command if it still runs, and waits.
func (s *Session) Close() {
	s.conn.Close()
	<-s.done
}

func (s *Session) input(r io.Reader) error {
	_, err := io.CopyBuffer(stream{s.frames, frameStdin}, r, make([]byte, maxFrame))
	return errors.Join(err, s.frames.send(frameStdin, nil))
}

func (s *Session) output(stdout, stderr io.Writer) error {
	buf := make([]byte, maxFrame)
	for {
		kind, p, err := readFrame(s.conn, buf)
		if err != nil {
			return fmt.Errorf("lab: %s on %s: lost the connection to the agent: %w", s.args[0], s.node, err)
		}
		switch kind {
		case frameStdout:
			_, err = stdout.Write(p)
		case frameStderr:
			_, err = stderr.Write(p)
		case frameExit:
			return s.exit(p)
		default:
			err = fmt.Errorf("unknown frame type %d", kind)
		}
		if err != nil {
			return fmt.Errorf("lab: %s on %s: output: %w", s.args[0], s.node, err)
		}
	}
}

func (s *Session) exit(p []byte) error {
	var e exit
	if err := json.Unmarshal(p, &e); err != nil {
		return fmt.Errorf("lab: %s on %s: exit status: %w", s.args[0], s.node, err)
	}
	switch {
	case e.Error != "":
		return fmt.Errorf("lab: %s on %s: %s", s.args[0], s.node, e.Error)
	case e.Code != 0:
		return &ExitError{Node: s.node, Args: s.args, Code: e.Code, Signal: unix.Signal(e.Signal)}
	}
	return nil
}

// Put copies a file of this machine into a node.
func (l *Lab) Put(ctx context.Context, node, source, target string) error {
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("lab: put on %s: %w", node, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("lab: put on %s: %w", node, err)
	}
	return l.put(ctx, node, f, st.Size(), st.Mode(), target)
}

func (l *Lab) put(ctx context.Context, node string, r io.Reader, size int64, mode os.FileMode, target string) error {
	conn, _, err := l.connect(ctx, node, request{Op: opPut, Path: target, Mode: uint32(mode.Perm()), Size: size})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var ans answer
	if _, err = io.CopyN(conn, r, size); err == nil {
		err = readMessage(conn, &ans)
	}
	if err == nil && ans.Error != "" {
		err = errors.New(ans.Error)
	}
	if err != nil {
		return fmt.Errorf("lab: put %s on %s: %w", target, node, err)
	}
	return nil
}

// Get copies a file of a node to w.
func (l *Lab) Get(ctx context.Context, node, path string, w io.Writer) error {
	conn, ans, err := l.connect(ctx, node, request{Op: opGet, Path: path})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.CopyN(w, conn, ans.Size); err != nil {
		return fmt.Errorf("lab: get %s from %s: %w", path, node, err)
	}
	return nil
}
