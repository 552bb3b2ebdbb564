package main

import (
	"context"
	"log/slog"

	"github.com/pollux-ha/pollux/checkpoint/arbiter"
)

type witnessCmd struct {
	Listen  string `default:"127.0.0.1:2379" help:"Address for the hosts of the pair."`
	DataDir string `default:"/var/lib/pollux/witness" help:"Where the record is kept; it survives a crash." placeholder:"DIR"`
	TLSCert string `name:"tls-cert" help:"The witness's certificate." placeholder:"FILE"`
	TLSKey  string `name:"tls-key" help:"Its private key." placeholder:"FILE"`
	TLSCA   string `name:"tls-ca" help:"The authority that signed the hosts' certificates." placeholder:"FILE"`
}

func (c *witnessCmd) Run(ctx context.Context, log *slog.Logger) error {
	w, err := arbiter.StartWitness(ctx, arbiter.WitnessConfig{
		Dir: c.DataDir, Listen: c.Listen, CertFile: c.TLSCert, KeyFile: c.TLSKey, CAFile: c.TLSCA, Logger: log,
	})
	if err != nil {
		return err
	}
	log.Info("the witness is ready", "address", w.Addr().String())
	err = w.Wait(ctx)
	if ctx.Err() != nil {
		err = nil // it was asked to end
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}
