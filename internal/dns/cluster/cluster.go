// Package cluster follows the Kubernetes clusters that a Corefile names, for a
// DNS server that runs on its own. In the agent, which follows its cluster
// anyway, the agent's store takes its place.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/source/kube"
)

// Clusters are the followed ones, by connection.
type Clusters struct {
	ctx       context.Context
	log       *slog.Logger
	registry  prometheus.Registerer
	userAgent string

	mu     sync.Mutex
	stores map[kubernetes.Connection]*kubernetes.Store
}

// New returns no clusters yet; those that are asked for are followed until ctx
// ends.
func New(ctx context.Context, log *slog.Logger, registry prometheus.Registerer, userAgent string) *Clusters {
	return &Clusters{ctx: ctx, log: log, registry: registry, userAgent: userAgent, stores: make(map[kubernetes.Connection]*kubernetes.Store)}
}

// Store returns the store that is filled over conn (it is a
// kubernetes.Stores). The cluster is followed from the first call on; an error
// means that conn cannot be used, not that nobody answers.
func (c *Clusters) Store(_ context.Context, conn kubernetes.Connection) (*kubernetes.Store, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.stores[conn]; s != nil {
		return s, nil
	}
	cfg, err := c.rest(conn)
	if err != nil {
		return nil, err
	}
	kinds := catalog.Services | catalog.Namespaces
	if !conn.WithoutEndpoints {
		kinds |= catalog.EndpointSlices
	}
	if conn.Pods {
		kinds |= catalog.Pods
	}
	cat := catalog.New(kinds)
	source, err := kube.New(kube.Config{REST: cfg, Kinds: kinds, KeepLabels: conn.KeepLabels, Log: c.log}, cat)
	if err != nil {
		return nil, err
	}
	store := kubernetes.NewStore(c.registry)
	c.stores[conn] = store
	go source.Run(c.ctx)
	go store.Follow(c.ctx, cat)
	return store, nil
}

// rest makes the client configuration: the kubeconfig, else the endpoint, else
// the credentials of the pod that this process runs in.
func (c *Clusters) rest(conn kubernetes.Connection) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	switch {
	case conn.Kubeconfig != "":
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: conn.Kubeconfig},
			&clientcmd.ConfigOverrides{CurrentContext: conn.Context},
		).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", conn.Kubeconfig, err)
		}
	case conn.Endpoint != "":
		cfg = &rest.Config{Host: conn.Endpoint, TLSClientConfig: rest.TLSClientConfig{CertFile: conn.Cert, KeyFile: conn.Key, CAFile: conn.CA}}
	default:
		cfg, err = rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no credentials of a pod (%w); outside a cluster name the API with `kubeconfig FILE` or `endpoint URL`", err)
		}
	}
	cfg.UserAgent = c.userAgent
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.QPS, cfg.Burst = -1, 0 // the API server's fairness queues hold back where it is needed
	if conn.QPS > 0 {
		cfg.QPS = conn.QPS
	}
	if conn.Burst > 0 {
		cfg.Burst = conn.Burst
	}
	if conn.MaxInflight > 0 {
		cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return limited{next, make(chan struct{}, conn.MaxInflight)}
		})
	}
	return cfg, nil
}

// limited lets only so many requests wait for the head of their response at a
// time. A watch has its own soon.
type limited struct {
	next  http.RoundTripper
	slots chan struct{}
}

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
		return l.next.RoundTrip(r)
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}
