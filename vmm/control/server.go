package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm"
)

// Machine is what the socket controls; *vmm.Machine is one.
type Machine interface {
	Name() string
	CPUs() int
	State() string
	Pause() error
	Resume() error
	Snapshot(path string) error
	PressPowerButton()
	Stop(why string)
}

// Status is the answer to GET /status.
type Status struct {
	Name        string `json:"name"`
	State       string `json:"state"` // fresh, running, paused or ended
	CPUs        int    `json:"cpus"`
	MemoryBytes uint64 `json:"memory_bytes"`
	PID         int    `json:"pid"`
	// Protection is what the machine's pair says, if it has one.
	Protection json.RawMessage `json:"protection,omitempty"`
}

// Config says what a Server serves.
type Config struct {
	Machine     Machine
	MemoryBytes uint64
	// Protection returns what Status shows under that name, or nil; it may be nil itself.
	Protection func() any
	Logger     *slog.Logger
}

// maxBody bounds a request; all that one carries is a path.
const maxBody = 64 << 10

// shutdownPatience is how long Close waits for requests that are being answered.
const shutdownPatience = 5 * time.Second

// Server answers on a control socket until it is closed.
type Server struct {
	cfg  Config
	http http.Server
	done chan struct{} // closed when serving has ended
	err  error         // of serving; read after done
}

// Listen serves on a new Unix socket at path. A socket that a dead process left there is replaced; one that is alive is
// an error.
func Listen(path string, cfg Config) (*Server, error) {
	listener, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	s := &Server{cfg: cfg, done: make(chan struct{})}
	s.http = http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	go func() {
		defer close(s.done)
		s.err = s.http.Serve(listener)
	}()
	return s, nil
}

func listen(path string) (net.Listener, error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return nil, errors.New("another machine answers there")
	}
	// Linux refuses connections to ordinary files too, which are not ours to remove.
	if info, serr := os.Lstat(path); errors.Is(err, unix.ECONNREFUSED) && serr == nil && info.Mode().Type() == os.ModeSocket {
		if err := unix.Unlink(path); err != nil {
			return nil, fmt.Errorf("remove what a dead process left: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Between the two calls the socket has the mode that the umask gives; whoever connected then is not served before Serve.
	if err := unix.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close stops answering, waits for what is being answered, and removes the socket.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	if !errors.Is(s.err, http.ErrServerClosed) {
		err = errors.Join(err, s.err)
	}
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("POST /pause", s.action("pause", func(*http.Request) error { return s.cfg.Machine.Pause() }))
	mux.HandleFunc("POST /resume", s.action("resume", func(*http.Request) error { return s.cfg.Machine.Resume() }))
	mux.HandleFunc("POST /snapshot", s.action("snapshot", s.snapshot))
	mux.HandleFunc("POST /power-button", s.action("power button", func(*http.Request) error {
		s.cfg.Machine.PressPowerButton()
		return nil
	}))
	mux.HandleFunc("POST /quit", s.action("quit", func(*http.Request) error {
		s.cfg.Machine.Stop("asked to by the control socket")
		return nil
	}))
	return mux
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	m := s.cfg.Machine
	status := Status{
		Name: m.Name(), State: m.State(), CPUs: m.CPUs(), MemoryBytes: s.cfg.MemoryBytes, PID: unix.Getpid(),
	}
	if s.cfg.Protection != nil {
		p, err := json.Marshal(s.cfg.Protection())
		if err != nil {
			s.fail(w, http.StatusInternalServerError, fmt.Errorf("describe the protection: %w", err))
			return
		}
		status.Protection = p
	}
	s.answer(w, http.StatusOK, status)
}

// snapshotRequest is the body of POST /snapshot.
type snapshotRequest struct {
	Path string `json:"path"`
}

func (s *Server) snapshot(r *http.Request) error {
	var request snapshotRequest
	d := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&request); err != nil {
		return badRequest{fmt.Errorf("read request: %w", err)}
	}
	if !filepath.IsAbs(request.Path) {
		// The machine's working directory is not the one in which the operator typed.
		return badRequest{fmt.Errorf("snapshot path %q is not absolute", request.Path)}
	}
	return s.cfg.Machine.Snapshot(request.Path)
}

// badRequest is an error that is the client's fault.
type badRequest struct{ error }

// action makes a handler of something to do, whose success needs no words.
func (s *Server) action(name string, do func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := do(r)
		var bad badRequest
		switch {
		case err == nil:
			s.cfg.Logger.Info("done by the control socket", "action", name)
			s.answer(w, http.StatusOK, struct{}{})
		case errors.As(err, &bad):
			s.fail(w, http.StatusBadRequest, err)
		case errors.Is(err, vmm.ErrOver):
			s.fail(w, http.StatusConflict, err)
		default:
			s.fail(w, http.StatusInternalServerError, err)
		}
	}
}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

func (s *Server) fail(w http.ResponseWriter, code int, err error) {
	s.cfg.Logger.Warn("control socket", "error", err)
	s.answer(w, code, failure{err.Error()})
}

func (s *Server) answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.cfg.Logger.Debug("control socket: the client is gone", "error", err)
	}
}
