package register

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// maxConnections bounds the TCP connections that one server holds; further ones are closed at once. It is far above what
// any test uses and far below what would exhaust a small guest.
const maxConnections = 1024

// Server serves one set of registers over TCP and UDP on the same port. Create it with Listen.
type Server struct {
	log  *slog.Logger
	tcp  *net.TCPListener
	udp  *net.UDPConn
	boot uint64
	wg   sync.WaitGroup

	mu        sync.Mutex
	registers [Registers]uint64
	sequence  uint64

	connsMu sync.Mutex
	conns   map[*net.TCPConn]struct{}
	closed  bool
}

// Listen starts a server on address, "host:port"; port 0 picks a free one, the same for TCP and UDP. It serves until
// Close.
func Listen(address string, log *slog.Logger) (*Server, error) {
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("choose the boot nonce: %w", err)
	}
	tcp, udp, err := listenBoth(address)
	if err != nil {
		return nil, fmt.Errorf("listen for register requests on %s: %w", address, err)
	}
	s := &Server{
		log: log, tcp: tcp, udp: udp,
		boot:  binary.BigEndian.Uint64(nonce[:]),
		conns: make(map[*net.TCPConn]struct{}),
	}
	s.wg.Add(2)
	go s.acceptTCP()
	go s.serveUDP()
	return s, nil
}

// listenBoth opens TCP and UDP on the same port. With port 0 the kernel picks the TCP port, and somebody else may hold
// that number for UDP, so a few are tried.
func listenBoth(address string) (*net.TCPListener, *net.UDPConn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	attempts := 1
	if port == "0" {
		attempts = 10
	}
	for range attempts {
		var l net.Listener
		if l, err = net.Listen("tcp", address); err != nil {
			return nil, nil, err
		}
		tcp := l.(*net.TCPListener)
		got := tcp.Addr().(*net.TCPAddr).Port
		var p net.PacketConn
		if p, err = net.ListenPacket("udp", net.JoinHostPort(host, strconv.Itoa(got))); err == nil {
			return tcp, p.(*net.UDPConn), nil
		}
		err = errors.Join(err, tcp.Close())
	}
	return nil, nil, err
}

// Addr is the address that the server listens on, for both TCP and UDP.
func (s *Server) Addr() netip.AddrPort { return s.tcp.Addr().(*net.TCPAddr).AddrPort() }

// Boot is the nonce in every answer of this server.
func (s *Server) Boot() uint64 { return s.boot }

// Sequence is the number of answers given so far.
func (s *Server) Sequence() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sequence
}

// Close stops listening, closes every connection and waits until nothing of the server runs any more.
func (s *Server) Close() error {
	s.connsMu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.connsMu.Unlock()
	err := errors.Join(s.tcp.Close(), s.udp.Close())
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// apply performs r and numbers its answer.
func (s *Server) apply(r Request) Answer {
	a := Answer{Op: r.Op, Register: r.Register, Client: r.Client, ID: r.ID, Boot: s.boot}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sequence++
	a.Sequence = s.sequence
	if r.Register >= Registers {
		a.Status = BadRequest
		return a
	}
	reg := &s.registers[r.Register]
	switch r.Op {
	case Read:
	case Write:
		*reg = r.Value
	case CompareAndSwap:
		if *reg == r.Expect {
			*reg = r.Value
		} else {
			a.Status = Mismatch
		}
	default:
		a.Status = BadRequest
	}
	a.Value = *reg
	return a
}

func (s *Server) acceptTCP() {
	defer s.wg.Done()
	for {
		c, err := s.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory, or a peer that left at once: the listener itself is fine.
			s.log.Warn("accept a register connection", "error", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if !s.adopt(c) {
			c.Close()
			continue
		}
		go s.serveTCP(c)
	}
}

// adopt takes c into the server's care, unless the server is closing or full.
func (s *Server) adopt(c *net.TCPConn) bool {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	if s.closed || len(s.conns) >= maxConnections {
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) serveTCP(c *net.TCPConn) {
	defer s.wg.Done()
	defer func() {
		s.connsMu.Lock()
		delete(s.conns, c)
		s.connsMu.Unlock()
		c.Close()
	}()
	if err := s.exchange(c); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Info("register connection ended", "peer", c.RemoteAddr().String(), "error", err)
	}
}

// exchange answers requests until the peer ends the stream. Answers to requests that arrived together leave together.
func (s *Server) exchange(c *net.TCPConn) error {
	r := bufio.NewReaderSize(c, 64*RequestSize)
	w := bufio.NewWriterSize(c, 64*AnswerSize)
	var request [RequestSize]byte
	var answer [AnswerSize]byte
	for {
		if _, err := io.ReadFull(r, request[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a request: %w", err)
		}
		q, err := ParseRequest(request[:])
		if err != nil {
			return errors.Join(err, w.Flush())
		}
		if _, err := w.Write(AppendAnswer(answer[:0], s.apply(q))); err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
		if r.Buffered() >= RequestSize {
			continue
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("write answers: %w", err)
		}
	}
}

func (s *Server) serveUDP() {
	defer s.wg.Done()
	var request [RequestSize + 1]byte // one more byte shows a datagram that is too long
	var answer [AnswerSize]byte
	for {
		n, peer, err := s.udp.ReadFromUDPAddrPort(request[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// For instance an ICMP error about an earlier answer: it concerns that peer only.
			s.log.Info("read a register datagram", "error", err)
			time.Sleep(time.Millisecond)
			continue
		}
		q, err := ParseRequest(request[:n])
		if err != nil {
			continue
		}
		if _, err := s.udp.WriteToUDPAddrPort(AppendAnswer(answer[:0], s.apply(q)), peer); err != nil {
			s.log.Info("send a register answer", "peer", peer.String(), "error", err)
		}
	}
}
