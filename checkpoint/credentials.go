package checkpoint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"
)

// Credentials are what a node proves itself with, and what it asks of its peers: TLS 1.3, both ends with a certificate of one
// CA. There is no way to go without.
type Credentials struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// LoadCredentials reads a certificate, its key and the CA that peers must be signed by, all PEM. The certificate must be good for
// both ends of a connection (extended key usage serverAuth and clientAuth), because either end may dial.
func LoadCredentials(certFile, keyFile, caFile string) (*Credentials, error) {
	if certFile == "" || keyFile == "" || caFile == "" {
		return nil, errors.New("the link needs a certificate, its key and a CA file; one is missing")
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate %s with key %s: %w", certFile, keyFile, err)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("load the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load the CA: %s holds no PEM certificate", caFile)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}, Intermediates: x509.NewCertPool()}
		for _, der := range cert.Certificate[1:] {
			if c, err := x509.ParseCertificate(der); err == nil {
				opts.Intermediates.AddCert(c)
			}
		}
		if _, err := cert.Leaf.Verify(opts); err != nil {
			return nil, fmt.Errorf("certificate %s is not one that peers with the CA %s will accept: %w", certFile, caFile, err)
		}
	}
	return &Credentials{cert: cert, pool: pool}, nil
}

// ClientTLS is the configuration to dial a peer whose certificate must carry the given name (host name or IP address).
func (c *Credentials) ClientTLS(serverName string) *tls.Config {
	cfg := c.base()
	cfg.ServerName = serverName
	return cfg
}

// ServerTLS is the configuration to accept peers. With a name, the peer's certificate must carry it; without, the CA's
// signature is enough.
func (c *Credentials) ServerTLS(peerName string) *tls.Config {
	cfg := c.base()
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	if peerName != "" {
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			return s.PeerCertificates[0].VerifyHostname(peerName)
		}
	}
	return cfg
}

func (c *Credentials) base() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c.cert},
		RootCAs:      c.pool,
		ClientCAs:    c.pool,
		MinVersion:   tls.VersionTLS13,
		// A link lives for days, and a resumed session would skip the check of a certificate that has expired since.
		SessionTicketsDisabled: true,
		// Small first records help a browser, not a stream of pages.
		DynamicRecordSizingDisabled: true,
		Time:                        time.Now,
	}
}
