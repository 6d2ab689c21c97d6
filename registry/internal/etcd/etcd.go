// Package etcd is where the registry's data lives: an etcd of one member
// inside this process, or an external one.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/rutter-project/rutter/registry/internal/config"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Store says how to reach etcd.
type Store struct {
	Endpoints []string
	CAFile    string
	CertFile  string
	KeyFile   string
	Prefix    string
	Where     string // for messages: a directory or URLs
}

// External describes an etcd that is somebody else's.
func External(c config.Etcd) Store {
	return Store{
		Endpoints: c.Endpoints, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile,
		Prefix: c.Prefix, Where: strings.Join(c.Endpoints, ","),
	}
}

// probeTime bounds how long an external etcd is waited for. It covers an etcd
// that restarts at the same moment; a wrong address should be told soon.
const probeTime = 15 * time.Second

// Probe waits until one endpoint answers and checks that its version fits.
func (s Store) Probe(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	for said := false; ; {
		var last error
		for _, e := range s.Endpoints {
			version, err := s.version(ctx, e)
			if err == nil {
				return checkVersion(e, version)
			}
			last = fmt.Errorf("%s: %w", e, err)
		}
		if !said {
			said = true
			log.Info("waiting for etcd", "at most", probeTime, "error", last)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("no etcd answered within %v (%w); check --etcd-endpoints, that etcd runs, and the certificates given with --etcd-cafile, --etcd-certfile and --etcd-keyfile", probeTime, last)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// version connects to one endpoint and asks for its version. It connects
// before it asks: only then does the error say why there is no connection.
func (s Store) version(ctx context.Context, endpoint string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := s.client(ctx, []string{endpoint}, grpc.WithBlock(), grpc.FailOnNonTempDialError(true), grpc.WithReturnConnectionError()) //nolint:staticcheck // the replacement has no such error
	if err != nil {
		return "", plain(err)
	}
	defer c.Close()
	r, err := c.Status(ctx, endpoint)
	if err != nil {
		return "", plain(err)
	}
	return r.Version, nil
}

// Get reads one key below the prefix; nil when it does not exist.
func (s Store) Get(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	c, err := s.client(ctx, s.Endpoints)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.Get(ctx, s.Prefix+key)
	if err != nil {
		return nil, fmt.Errorf("reading %s from etcd (%s): %w", s.Prefix+key, s.Where, plain(err))
	}
	if len(r.Kvs) == 0 {
		return nil, nil
	}
	return r.Kvs[0].Value, nil
}

func (s Store) client(ctx context.Context, endpoints []string, o ...grpc.DialOption) (*clientv3.Client, error) {
	var t *tls.Config
	if strings.HasPrefix(endpoints[0], "https:") {
		info := transport.TLSInfo{TrustedCAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile}
		var err error
		if t, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("the certificates for etcd cannot be used: %w", err)
		}
	}
	return clientv3.New(clientv3.Config{
		Context: ctx, Endpoints: endpoints, TLS: t, DialTimeout: 3 * time.Second,
		DialOptions: o, Logger: zap.NewNop(),
	})
}

// plain shortens gRPC's way of putting things.
func plain(err error) error {
	s := err.Error()
	if _, after, ok := strings.Cut(s, "desc = "); ok {
		s = strings.Trim(after, `"`)
	}
	return errors.New(strings.ReplaceAll(s, "\n", " "))
}
