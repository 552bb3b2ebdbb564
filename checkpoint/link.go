package checkpoint

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/checkpoint/wire"
)

const (
	// handshakeTimeout bounds dialling and the TLS handshake.
	handshakeTimeout = 10 * time.Second
	// writeTimeout bounds one write to the socket. Whether the peer is lost is found out much sooner, by its silence; this
	// only ends a write to a peer that talks but doesn't listen.
	writeTimeout = 10 * time.Second

	// socketBuffer gathers TLS records (16 KiB each) into fewer system calls.
	socketBuffer = 256 << 10
	// recordBuffer gathers small frames and fields into TLS records.
	recordBuffer = 64 << 10
)

// Link is one connection to the peer: TLS over TCP, buffered on both sides of the encryption. One goroutine may read; any may
// write, between Begin and End.
type Link struct {
	socket *socket
	tls    *tls.Conn
	reader *wire.Reader

	mu     sync.Mutex // held from Begin to End
	plain  *bufio.Writer
	writer *wire.Writer
	err    error // first error of writing; the link is of no use after it
}

// Dial connects to a listening peer, whose certificate must carry the given name.
func Dial(ctx context.Context, address, name string, creds *Credentials) (*Link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the peer: %w", err)
	}
	s := newSocket(conn)
	return handshake(ctx, s, tls.Client(s, creds.ClientTLS(name)))
}

// Accept makes a link of an accepted connection. The peer's certificate must carry the given name, if it isn't empty.
func Accept(ctx context.Context, conn net.Conn, name string, creds *Credentials) (*Link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	s := newSocket(conn)
	return handshake(ctx, s, tls.Server(s, creds.ServerTLS(name)))
}

func handshake(ctx context.Context, s *socket, conn *tls.Conn) (*Link, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("agree on TLS with %v (do both certificates come from the same CA, with the right names?): %w", s.RemoteAddr(), err)
	}
	s.gather = true
	l := &Link{socket: s, tls: conn, reader: wire.NewReader(conn)}
	l.plain = bufio.NewWriterSize(conn, recordBuffer)
	l.writer = wire.NewWriter(l.plain)
	return l, nil
}

// Reader reads what the peer sends. It belongs to one goroutine.
func (l *Link) Reader() *wire.Reader { return l.reader }

// Begin locks the link for writing. The writer may be used until End.
func (l *Link) Begin() *wire.Writer {
	l.mu.Lock()
	return l.writer
}

// End unlocks the link. err is that of what was written in between; flush sends everything on its way. The first error of a link
// stays, closes it, and is returned ever after.
func (l *Link) End(err error, flush bool) error {
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if err == nil && flush {
		if err = l.plain.Flush(); err == nil {
			err = l.socket.flush()
		}
	}
	if err != nil {
		// A part of a frame may be out: nothing that follows would be understood.
		l.err = err
		_ = l.socket.Close()
	}
	return err
}

// Received counts the reads from the socket that brought something. A count that stands still is a silent peer.
func (l *Link) Received() uint64 { return l.socket.received.Load() }

// Sent and Read are the bytes that went over the wire, encryption included.
func (l *Link) Sent() uint64 { return l.socket.sent.Load() }

// Peer is the other end's address.
func (l *Link) Peer() net.Addr { return l.socket.RemoteAddr() }

// SetReadDeadline bounds reads, for the first frames of a connection.
func (l *Link) SetReadDeadline(t time.Time) error { return l.socket.SetReadDeadline(t) }

// Close ends the connection at once. Reads and writes under way fail. It may be called more than once.
func (l *Link) Close() error {
	if err := l.socket.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the link: %w", err)
	}
	return nil
}

// socket is the connection below TLS. Once gather is set, writes stay in a buffer until flush or until it is full: otherwise
// every TLS record would be a system call.
type socket struct {
	net.Conn
	in       *bufio.Reader
	gather   bool // set once, between the handshake and the first use
	received atomic.Uint64
	sent     atomic.Uint64

	mu  sync.Mutex // TLS writes alerts from its reading goroutine
	out *bufio.Writer
}

func newSocket(conn net.Conn) *socket {
	s := &socket{Conn: conn}
	s.in = bufio.NewReaderSize(countingReader{s}, socketBuffer)
	s.out = bufio.NewWriterSize(timedWriter{s}, socketBuffer)
	return s
}

func (s *socket) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.out.Write(p)
	if err == nil && !s.gather {
		err = s.out.Flush()
	}
	return n, err
}

func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Flush()
}

type countingReader struct{ s *socket }

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.s.Conn.Read(p)
	if n > 0 {
		r.s.received.Add(1)
	}
	return n, err
}

type timedWriter struct{ s *socket }

func (w timedWriter) Write(p []byte) (int, error) {
	if err := w.s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := w.s.Conn.Write(p)
	w.s.sent.Add(uint64(n))
	return n, err
}
