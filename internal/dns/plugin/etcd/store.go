package etcd

import (
	"context"
	"errors"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// errNotFound says that there is no such key.
var errNotFound = errors.New("key not found")

// timeout is how long etcd may take.
const timeout = 5 * time.Second

// pair is a key with its value and lease.
type pair struct {
	key   string
	value []byte
	lease int64 // 0: none
}

// store reads etcd.
type store struct {
	client *clientv3.Client
}

func (o *options) dial() (*store, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: o.endpoints, TLS: o.tls, Username: o.user, Password: o.password,
		DialKeepAliveTime: timeout,
		Logger:            zap.NewNop(), // errors come back with each query
	})
	if err != nil {
		return nil, err
	}
	return &store{c}, nil
}

func (s *store) close() error { return s.client.Close() }

// get returns a key, or with tree everything below it and, if that is nothing,
// the key.
func (s *store) get(ctx context.Context, key string, tree bool) ([]pair, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var pairs []pair
	read := func(key string, opts ...clientv3.OpOption) error {
		r, err := s.client.Get(ctx, key, opts...)
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			pairs = append(pairs, pair{string(kv.Key), kv.Value, kv.Lease})
		}
		return nil
	}
	if tree {
		if err := read(strings.TrimSuffix(key, "/")+"/", clientv3.WithPrefix()); err != nil {
			return nil, err
		}
	}
	if len(pairs) == 0 {
		if err := read(key); err != nil {
			return nil, err
		}
	}
	if len(pairs) == 0 {
		return nil, errNotFound
	}
	return pairs, nil
}

// remaining returns the seconds that are left of a lease; 0 when that cannot be
// told.
func (s *store) remaining(ctx context.Context, lease int64) int64 {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := s.client.TimeToLive(ctx, clientv3.LeaseID(lease))
	if err != nil {
		return 0
	}
	return max(r.TTL, 0)
}
