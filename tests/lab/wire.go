package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// The agent's protocol: one operation per TCP connection. The lab sends a request, the agent an answer, both JSON behind a
// 32-bit big-endian length. What follows depends on the operation:
//
//	exec   frames (below) both ways, until the agent sends frameExit
//	put    Size bytes from the lab, then a second answer
//	get    Size bytes (of the answer) from the agent
//	dial   a byte stream both ways, joined to the Unix or TCP socket that the request names
//	watch  a beat (an answer) every heartbeatEvery, for as long as the connection stands
//	off    nothing: the node shuts down in an orderly way
type request struct {
	Op   string      `json:"op"`
	Exec *Command    `json:"exec,omitempty"`
	Path string      `json:"path,omitempty"` // put, get: a file
	Mode uint32      `json:"mode,omitempty"` // put: permission bits
	Size int64       `json:"size,omitempty"` // put: bytes that follow
	Dial *dialTarget `json:"dial,omitempty"`
}

type dialTarget struct {
	Network string `json:"network"` // unix or tcp
	Address string `json:"address"`
}

type answer struct {
	Error  string        `json:"error,omitempty"`
	Size   int64         `json:"size,omitempty"`
	PID    int           `json:"pid,omitempty"`    // exec
	Uptime time.Duration `json:"uptime,omitempty"` // watch: since the agent started
}

const (
	opExec  = "exec"
	opPut   = "put"
	opGet   = "get"
	opDial  = "dial"
	opWatch = "watch"
	opOff   = "off"
)

// heartbeatEvery is how often an agent tells that its node is alive.
const heartbeatEvery = 500 * time.Millisecond

// Frame types of exec: from the lab, frameStdin (empty: end of input) and frameSignal (one byte, the number); from the agent,
// frameStdout, frameStderr and, last, frameExit (JSON of exit).
const (
	frameStdin byte = 1 + iota
	frameSignal
	frameStdout
	frameStderr
	frameExit
)

type exit struct {
	Code   int    `json:"code"`             // -1 if a signal ended it
	Signal int    `json:"signal,omitempty"` // the signal that ended it
	Error  string `json:"error,omitempty"`
}

const (
	maxMessage = 1 << 20 // bytes of JSON; a command line and environment fit well
	maxFrame   = 64 << 10
	frameHead  = 5 // type, 32-bit big-endian length
)

var errTooLong = errors.New("longer than the protocol allows")

func writeMessage(w io.Writer, m any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes: %w", len(b), errTooLong)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	if _, err := w.Write(append(buf, b...)); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

func readMessage(r io.Reader, m any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("message of %d bytes: %w", n, errTooLong)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if err := json.Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// frameWriter sends whole frames from several goroutines over one stream.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (f *frameWriter) send(kind byte, p []byte) error {
	if len(p) > maxFrame {
		return fmt.Errorf("frame of %d bytes: %w", len(p), errTooLong)
	}
	buf := make([]byte, 0, frameHead+len(p))
	buf = append(buf, kind)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(p)))
	buf = append(buf, p...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.w.Write(buf); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// readFrame reads one frame into buf, which holds at least maxFrame bytes; the payload is a part of buf.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes: %w", n, errTooLong)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("read frame: %w", err)
	}
	return head[0], buf[:n], nil
}

// stream is one direction of exec's output as an io.Writer: it sends what is written as frames of one kind.
type stream struct {
	f    *frameWriter
	kind byte
}

func (s stream) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		if err := s.f.send(s.kind, p[:n]); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}
