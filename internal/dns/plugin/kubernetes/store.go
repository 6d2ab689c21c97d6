package kubernetes

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Store is what DNS may answer: the part of the catalogue that has been
// published. Its owner decides when: a name whose virtual IP is new is
// published after the dataplane knows the address, one whose virtual IP is gone
// is withdrawn before the dataplane forgets it.
type Store struct {
	// Now is the clock of serial numbers; set it before the first change.
	Now func() time.Time

	hash   hashes
	synced atomic.Bool
	done   chan struct{} // closed when synced

	mu         sync.Mutex // writers
	services   map[catalog.ServiceName]catalog.Entry
	namespaces map[string]*catalog.Namespace
	pods       map[catalog.ServiceName]*catalog.Pod
	views      map[string]*view
	programmed *prometheus.HistogramVec
}

// NewStore returns an empty store. The registry receives the metric of the DNS
// programming SLI; nil for none.
func NewStore(r prometheus.Registerer) *Store {
	s := &Store{
		Now:        time.Now,
		hash:       hashes{maphash.MakeSeed()},
		done:       make(chan struct{}),
		services:   make(map[catalog.ServiceName]catalog.Entry),
		namespaces: make(map[string]*catalog.Namespace),
		pods:       make(map[catalog.ServiceName]*catalog.Pod),
		views:      make(map[string]*view),
	}
	if r != nil {
		s.programmed = plugin.Register(r, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coredns_kubernetes_dns_programming_duration_seconds",
			Help:    "Time from a change of pods or services until DNS answers with it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
		}, []string{"service_kind"}))
	}
	return s
}

// ForAll is a Stores that gives every server block s, whatever connection it
// names: for an agent that follows one cluster.
func (s *Store) ForAll(context.Context, Connection) (*Store, error) { return s, nil }

// Synced tells whether a complete catalogue has been published.
func (s *Store) Synced() bool { return s.synced.Load() }

// WaitSynced waits for it, or for ctx.
func (s *Store) WaitSynced(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Withdraw takes out of DNS what must not be answered while the dataplane
// changes: the names of services that lost an address. What needs no dataplane
// (headless and external services, namespaces, pods) is published at once.
func (s *Store) Withdraw(cat *catalog.Catalog, ch catalog.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setOthers(cat, ch)
	for _, name := range ch.Services {
		now, _ := cat.Service(name)
		switch {
		case now.Service == nil, !now.Service.HasClusterIP():
			s.setService(name, now)
		case lostAddress(s.services[name].Service, now.Service):
			s.setService(name, catalog.Entry{Slices: now.Slices})
		}
	}
}

func lostAddress(was, now *catalog.Service) bool {
	if was == nil {
		return false
	}
	for _, ip := range was.ClusterIPs {
		if !slices.Contains(now.ClusterIPs, ip) {
			return true
		}
	}
	return false
}

// Publish makes DNS answer the catalogue's present state of what changed.
func (s *Store) Publish(cat *catalog.Catalog, ch catalog.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setOthers(cat, ch)
	for _, name := range ch.Services {
		now, _ := cat.Service(name)
		s.setService(name, now)
	}
	if ch.Synced && s.synced.CompareAndSwap(false, true) {
		close(s.done)
	}
}

// Follow publishes every change of the catalogue as it happens, until ctx
// ends: for a DNS server without a dataplane.
func (s *Store) Follow(ctx context.Context, cat *catalog.Catalog) {
	sub := cat.Subscribe()
	defer sub.Close()
	for {
		ch, err := sub.Next(ctx)
		if err != nil {
			return
		}
		s.Publish(cat, ch)
	}
}

func (s *Store) setOthers(cat *catalog.Catalog, ch catalog.Changes) {
	for _, name := range ch.Namespaces {
		n := cat.Namespace(name)
		if n == nil {
			delete(s.namespaces, name)
		} else {
			s.namespaces[name] = n
		}
		for _, v := range s.views {
			v.setNamespace(name, n)
		}
	}
	for _, name := range ch.Pods {
		was, now := s.pods[name], cat.Pod(name.Namespace, name.Name)
		if now == nil {
			delete(s.pods, name)
		} else {
			s.pods[name] = now
		}
		for _, v := range s.views {
			v.setPod(was, now)
		}
	}
}

func (s *Store) setService(name catalog.ServiceName, now catalog.Entry) {
	was := s.services[name]
	if was.Service == now.Service && slices.Equal(was.Slices, now.Slices) {
		return
	}
	if now.Service == nil && len(now.Slices) == 0 {
		delete(s.services, name)
	} else {
		s.services[name] = now
	}
	for _, v := range s.views {
		v.setService(name, now)
	}
	s.observe(was, now)
}

// observe measures the time since the change that led to the new slices.
func (s *Store) observe(was, now catalog.Entry) {
	if s.programmed == nil || now.Service == nil || !s.synced.Load() {
		return
	}
	kind := "cluster_ip"
	if now.Service.Headless {
		kind = "headless_with_selector"
	}
	for _, sl := range now.Slices {
		if !sl.ChangeTriggered.IsZero() && !slices.Contains(was.Slices, sl) {
			s.programmed.WithLabelValues(kind).Observe(time.Since(sl.ChangeTriggered).Seconds())
		}
	}
}

// view returns the store as sel sees it; release it when done.
func (s *Store) view(sel selection) *view {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sel.key()
	v := s.views[key]
	if v == nil {
		v = newView(s.hash, s.Now, sel)
		for name, n := range s.namespaces {
			v.setNamespace(name, n)
		}
		for name, e := range s.services {
			v.setService(name, e)
		}
		for _, p := range s.pods {
			v.setPod(nil, p)
		}
		s.views[key] = v
	}
	v.users++
	return v
}

func (s *Store) release(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.users--; v.users == 0 {
		delete(s.views, v.sel.key())
	}
}

// Service returns what is published under a name; for plugins that answer from
// the same data (k8s_external).
func (s *Store) Service(name catalog.ServiceName) (catalog.Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.services[name]
	return e, ok
}
