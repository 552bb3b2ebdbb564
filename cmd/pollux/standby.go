package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/node"
)

// pairFlags are what both hosts of a pair are told.
type pairFlags struct {
	Node           string        `help:"This host's name; default: its host name." group:"protection"`
	Arbiter        []string      `help:"Endpoints of the etcd that decides who may run (a witness, or a cluster)." placeholder:"URL" group:"protection"`
	ArbiterUser    string        `help:"User for the arbiter; its password is taken from POLLUX_ARBITER_PASSWORD." group:"protection"`
	Heartbeat      time.Duration `default:"20ms" help:"How often the hosts say that they are alive." group:"protection"`
	Misses         int           `default:"5" help:"After how many missed heartbeats the other host counts as lost." group:"protection"`
	UnsafeTakeover bool          `help:"Without an arbiter: take over all the same. Both hosts may end up running the machine. For labs." group:"protection"`
	TLSCert        string        `name:"tls-cert" help:"This host's certificate." placeholder:"FILE" group:"protection"`
	TLSKey         string        `name:"tls-key" help:"Its private key." placeholder:"FILE" group:"protection"`
	TLSCA          string        `name:"tls-ca" help:"The certificate of the authority that signed both hosts' certificates." placeholder:"FILE" group:"protection"`
}

// pair completes the flags: files are read, and a host without a name takes its own.
func (f *pairFlags) pair() (node.Pair, error) {
	p := node.Pair{
		Node: f.Node, Arbiter: f.Arbiter, ArbiterUser: f.ArbiterUser,
		ArbiterPassword: os.Getenv("POLLUX_ARBITER_PASSWORD"), UnsafeTakeover: f.UnsafeTakeover,
		Heartbeat: f.Heartbeat, Misses: f.Misses,
	}
	if p.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return p, err
		}
		p.Node = name
	}
	var err error
	p.Credentials, err = checkpoint.LoadCredentials(f.TLSCert, f.TLSKey, f.TLSCA)
	return p, err
}

type standbyCmd struct {
	Listen  string    `default:"0.0.0.0:7000" help:"Where the other host connects." group:"protection"`
	Name    string    `default:"vm" help:"The machine's name, as on the other host."`
	Net     []netFlag `help:"Where the machine's network interfaces are attached here, in their order: tap=NAME and/or bridge=NAME." placeholder:"SPEC" sep:"none"`
	Serial  string    `default:"none" help:"The first serial port after a takeover: stdio, none, file:PATH or unix:PATH."`
	Control string    `help:"Path of the machine's control socket." placeholder:"PATH"`
	KVM     string    `name:"kvm" default:"/dev/kvm" help:"Path of KVM's device." placeholder:"PATH"`
	pairFlags
}

func (c *standbyCmd) Run(ctx context.Context, log *slog.Logger) error {
	p, err := c.pair()
	if err != nil {
		return err
	}
	p.Listen = c.Listen
	o := node.Options{
		Spec:   node.Spec{Name: c.Name, Nets: nets(c.Name, c.Net), KVM: c.KVM},
		Serial: c.Serial, Control: c.Control, Logger: log,
	}
	return exitStatus(node.StandBy(ctx, o, p))
}
