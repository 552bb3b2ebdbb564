package arbiter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// WitnessConfig says where a witness keeps its data and where it listens.
type WitnessConfig struct {
	Dir    string // data directory, created if it is not there
	Listen string // host:port; "localhost:0" picks a port
	// CertFile, KeyFile and CAFile make it a TLS listener that demands a client certificate of that CA. All or none.
	CertFile, KeyFile, CAFile string
	Logger                    *slog.Logger
}

// Witness is an etcd of one member inside this process. Its data is on disk and synced before an answer, so that its own
// crash loses nothing that was agreed.
type Witness struct {
	etcd  *embed.Etcd
	addr  net.Addr
	close sync.Once
	done  chan struct{}
	err   error // why it ended, valid after done
}

// witnessStart bounds the start: one member elects itself in well under a second, a large or damaged log takes longer.
const witnessStart = 30 * time.Second

// StartWitness starts a witness and returns once it answers.
func StartWitness(ctx context.Context, cfg WitnessConfig) (*Witness, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ec, err := witnessEtcd(cfg)
	if err != nil {
		return nil, err
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start the witness on %s with its data in %s: %w", cfg.Listen, cfg.Dir, err)
	}
	timer := time.NewTimer(witnessStart)
	defer timer.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = fmt.Errorf("not ready after %v", witnessStart)
	}
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("start the witness on %s with its data in %s: %w", cfg.Listen, cfg.Dir, err)
	}
	w := &Witness{etcd: e, addr: e.Clients[0].Addr(), done: make(chan struct{})}
	go w.watch()
	return w, nil
}

func witnessEtcd(cfg WitnessConfig) (*embed.Config, error) {
	if cfg.Dir == "" {
		return nil, errors.New("start the witness: no data directory is given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start the witness: create its data directory: %w", err)
	}
	// etcd wants a URL with an address, not a name.
	addr, err := net.ResolveTCPAddr("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("start the witness: listen address %q: %w", cfg.Listen, err)
	}
	scheme := "http"
	ec := embed.NewConfig()
	if cfg.CertFile != "" || cfg.KeyFile != "" || cfg.CAFile != "" {
		if cfg.CertFile == "" || cfg.KeyFile == "" || cfg.CAFile == "" {
			return nil, errors.New("start the witness: a certificate, a key and a CA file belong together, one is missing")
		}
		// etcd reports a bad key pair only on the first connection.
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("start the witness: certificate %s with key %s: %w", cfg.CertFile, cfg.KeyFile, err)
		}
		scheme = "https"
		ec.ClientTLSInfo = transport.TLSInfo{
			CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile, ClientCertAuth: true,
		}
	}
	listen := url.URL{Scheme: scheme, Host: addr.String()}
	ec.Name = "witness"
	ec.Dir = filepath.Join(cfg.Dir, "etcd")
	ec.ListenClientUrls = []url.URL{listen}
	ec.AdvertiseClientUrls = []url.URL{listen}
	// A member without peers needs no peer listener; the advertised URL is only its name in the log.
	ec.ListenPeerUrls = nil
	ec.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:2380"}}
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	// It waits for no one's heartbeat: short ticks make its start fast.
	ec.TickMs, ec.ElectionMs = 20, 200
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModeRevision, "1000"
	ec.Logger = "zap"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(cfg.Logger))
	return ec, nil
}

// watch notes why etcd ended, and lets Wait and Close return.
func (w *Witness) watch() {
	defer close(w.done)
	select {
	case err := <-w.etcd.Err():
		w.err = err
	case <-w.etcd.Server.StopNotify():
	}
}

// Addr is where it listens.
func (w *Witness) Addr() net.Addr { return w.addr }

// Wait returns when ctx is over (nil) or the witness ended by itself (the reason).
func (w *Witness) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-w.done:
		if w.err != nil {
			return fmt.Errorf("the witness ended: %w", w.err)
		}
		return errors.New("the witness ended")
	}
}

// Close stops the witness and waits until it has. More calls change nothing.
func (w *Witness) Close() error {
	w.close.Do(w.etcd.Close)
	<-w.done
	return nil
}
