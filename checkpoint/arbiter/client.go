package arbiter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pollux-ha/pollux/checkpoint/role"
)

// DefaultTimeout bounds one request. It is long against a healthy etcd's milliseconds, and short enough that a lost request is
// soon tried again, perhaps on another member.
const DefaultTimeout = time.Second

// Prefix is where the records are: Prefix + VM + "/role".
const Prefix = "/pollux/v1/vm/"

// Config says where the arbiter is and how to reach it.
type Config struct {
	Endpoints []string // host:port or URL, at least one
	TLS       *tls.Config
	User      string
	Password  string
	Timeout   time.Duration // of one request; DefaultTimeout if 0
	Logger    *slog.Logger
}

// Client reads and swaps role records in etcd. It may be used by several goroutines.
type Client struct {
	etcd      *clientv3.Client
	endpoints string
	timeout   time.Duration
}

// Dial connects, and makes sure that the arbiter answers: an error says which endpoints didn't.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("no arbiter endpoint is given")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	c := &Client{endpoints: strings.Join(cfg.Endpoints, ", "), timeout: cfg.Timeout}
	zapLog := zap.NewNop()
	if cfg.Logger != nil {
		zapLog = newZap(cfg.Logger)
	}
	var err error
	c.etcd, err = clientv3.New(clientv3.Config{
		Endpoints:   cfg.Endpoints,
		TLS:         cfg.TLS,
		Username:    cfg.User,
		Password:    cfg.Password,
		DialTimeout: 5 * cfg.Timeout, // of logging in
		Logger:      zapLog,
		// A connection to a dead host must not swallow the requests of a takeover.
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: cfg.Timeout,
		PermitWithoutStream:  true,
		// gRPC's own back-off grows to two minutes: too long for an arbiter that is back.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: cfg.Timeout,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("arbiter at %s: %w", c.endpoints, explain(err))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*cfg.Timeout)
	defer cancel()
	for {
		_, err = c.get(ctx, Prefix)
		if err == nil {
			return c, nil
		}
		if !retriable(err) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("arbiter at %s: %w", c.endpoints, explain(err)), c.Close())
		}
	}
}

// Close ends the connections.
func (c *Client) Close() error { return c.etcd.Close() }

// Read returns the record of a VM, the zero Record if there is none. It is linearizable: what it returns stood at some moment of the
// call. Errors wrap ErrUnanswered (ask again) or ErrRecord (a person must look).
func (c *Client) Read(ctx context.Context, vm string) (role.Record, error) {
	key, err := recordKey(vm)
	if err != nil {
		return role.Record{}, err
	}
	r, err := c.get(ctx, key)
	if err != nil {
		return role.Record{}, fmt.Errorf("read the role record of %s at %s: %w", vm, c.endpoints, explain(err))
	}
	return r, nil
}

func (c *Client) get(ctx context.Context, key string) (role.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.etcd.Get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return role.Record{}, err
	}
	return decode(resp.Kvs[0].Value)
}

// Swap replaces the record old by next, if old is what stands; the zero Record stands for none. It returns what stands after it: next if
// the swap took effect, otherwise what it found. An error that wraps ErrUnanswered says that the outcome is not known. Any
// other error means that nothing was changed and nothing will be.
func (c *Client) Swap(ctx context.Context, vm string, old, next role.Record) (role.Record, error) {
	key, err := recordKey(vm)
	if err != nil {
		return role.Record{}, err
	}
	value, err := encode(next)
	if err != nil {
		return role.Record{}, fmt.Errorf("swap the role record of %s: %w", vm, err)
	}
	expect := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	if !old.IsZero() {
		was, err := encode(old)
		if err != nil {
			return role.Record{}, fmt.Errorf("swap the role record of %s: %w", vm, err)
		}
		expect = clientv3.Compare(clientv3.Value(key), "=", was)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.etcd.Txn(ctx).If(expect).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return role.Record{}, fmt.Errorf("swap the role record of %s at %s: %w", vm, c.endpoints, explain(err))
	}
	if resp.Succeeded {
		return next, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return role.Record{}, nil
	}
	found, err := decode(kvs[0].Value)
	if err != nil {
		return role.Record{}, fmt.Errorf("role record of %s at %s: %w", vm, c.endpoints, err)
	}
	return found, nil
}

// maxName bounds the name of a VM, in bytes.
const maxName = 255

func recordKey(vm string) (string, error) {
	if vm == "" || len(vm) > maxName || strings.ContainsAny(vm, "/\x00\n") {
		return "", fmt.Errorf("%q can't be the name of a VM in the arbiter: 1 to %d bytes without a slash", vm, maxName)
	}
	return Prefix + vm + "/role", nil
}

// definite reports whether the error says that the server refused the request before it did anything.
func definite(err error) bool {
	code := status.Code(err)
	// The client turns the statuses that it knows into errors of its own.
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		code = known.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.FailedPrecondition:
		return true
	}
	return false
}

// retriable reports whether asking again can help.
func retriable(err error) bool { return !definite(err) && !errors.Is(err, ErrRecord) }

// explain puts a failure to reach etcd into words.
func explain(err error) error {
	if definite(err) || errors.Is(err, ErrRecord) {
		return err
	}
	return fmt.Errorf("%w (is etcd, or pollux witness, running there, and do the certificates match?): %w", ErrUnanswered, err)
}
