package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Credentials are the paths, on this machine, of what one node needs for mutual TLS, in PEM.
type Credentials struct {
	CA, Cert, Key string
}

// pkiValidity is short: a lab's certificates are made anew with the lab.
const pkiValidity = 30 * 24 * time.Hour

// MakeCredentials makes a certificate authority for the lab and certificates for its nodes, each good as a server and as a
// client, for the node's name and addresses. It replaces what is there.
func (l *Lab) MakeCredentials(nodes ...string) (map[string]Credentials, error) {
	dir := filepath.Join(l.dir, "pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: certificates: %w", err)
	}
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("lab: the authority's key: %w", err)
	}
	authority, err := template(now, "Pollux lab "+l.id())
	if err != nil {
		return nil, err
	}
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("lab: the authority's certificate: %w", err)
	}
	caPath := filepath.Join(dir, "ca.crt")
	if err := writePEM(caPath, "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	all := make(map[string]Credentials)
	for _, node := range nodes {
		c := Credentials{CA: caPath, Cert: filepath.Join(dir, node+".crt"), Key: filepath.Join(dir, node+".key")}
		if err := issue(c, node, now, authority, key); err != nil {
			return nil, fmt.Errorf("lab: credentials of %s: %w", node, err)
		}
		all[node] = c
	}
	return all, nil
}

func issue(c Credentials, node string, now time.Time, authority *x509.Certificate, authorityKey *ecdsa.PrivateKey) error {
	cert, err := template(now, node)
	if err != nil {
		return err
	}
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert.DNSNames = []string{node}
	for _, network := range networksOf(node) {
		p, err := Addr(node, network)
		if err != nil {
			return err
		}
		cert.IPAddresses = append(cert.IPAddresses, net.IP(p.Addr().AsSlice()))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, authority, key.Public(), authorityKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(c.Cert, "CERTIFICATE", der, 0o644), writePEM(c.Key, "PRIVATE KEY", keyDER, 0o600))
}

// template is what all certificates of a lab share. The clocks of emulated nodes may be a little behind this machine's.
func template(now time.Time, name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("lab: serial number of a certificate: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Pollux lab"}},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(pkiValidity),
	}, nil
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("lab: write %s: %w", path, err)
	}
	return nil
}
