// Package healthcheck answers load balancers on the health check node port of a
// service: whether this node has an endpoint of its own for it
// (spec.healthCheckNodePort; KEP-1669, KEP-3836).
package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Servers are the servers of all services. Its methods may be called by several
// goroutines.
type Servers struct {
	cfg Config

	mu      sync.Mutex
	addrs   []netip.Addr
	wanted  map[catalog.ServiceName]*plan.HealthCheck
	running map[catalog.ServiceName]*server
}

// Config is what Servers are made with.
type Config struct {
	// Healthy tells whether the proxy programs services in time.
	Healthy func() bool
	// Failed is told when a port cannot be listened on; it is tried again with
	// Retry. May be nil.
	Failed func(service catalog.ServiceName, err error)
	Log    *slog.Logger
}

// New returns no servers yet.
func New(cfg Config) *Servers {
	return &Servers{cfg: cfg, wanted: make(map[catalog.ServiceName]*plan.HealthCheck), running: make(map[catalog.ServiceName]*server)}
}

// Listen sets the addresses to listen on; nil, as at first, for all of them.
// Servers begin anew if that is another set.
func (s *Servers) Listen(addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(addrs, s.addrs) && (addrs == nil) == (s.addrs == nil) {
		return
	}
	s.addrs = addrs
	for name, h := range s.wanted {
		s.stop(name)
		s.start(name, h)
	}
}

// server answers for one service.
type server struct {
	name     catalog.ServiceName
	healthy  func() bool
	families [2]bool
	port     uint16
	http     [2]*http.Server

	mu    sync.Mutex
	local [2]int
}

// Set makes the service's server be as planned; nil stops it. Connections of a
// server whose port stays are kept.
func (s *Servers) Set(name catalog.ServiceName, h *plan.HealthCheck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h == nil {
		delete(s.wanted, name)
		s.stop(name)
		return
	}
	s.wanted[name] = h
	if srv := s.running[name]; srv != nil {
		if srv.port == h.NodePort && srv.families == h.Families {
			srv.set(h)
			return
		}
		s.stop(name)
	}
	s.start(name, h)
}

// Retry tries again what could not be listened on.
func (s *Servers) Retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, h := range s.wanted {
		if s.running[name] == nil {
			s.start(name, h)
		}
	}
}

// Retain stops the servers of services that keep does not name.
func (s *Servers) Retain(keep func(catalog.ServiceName) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.wanted {
		if !keep(name) {
			delete(s.wanted, name)
			s.stop(name)
		}
	}
}

// Close stops all servers.
func (s *Servers) Close() { s.Retain(func(catalog.ServiceName) bool { return false }) }

func (s *Servers) start(name catalog.ServiceName, h *plan.HealthCheck) {
	srv := &server{name: name, port: h.NodePort, families: h.Families, healthy: s.cfg.Healthy}
	srv.set(h)
	for f, on := range h.Families {
		if !on {
			continue
		}
		listeners, err := s.listen(f == 1, h.NodePort)
		if err != nil {
			srv.close()
			s.cfg.Log.Error("cannot answer health checks of a service; it is tried again", "service", name.String(), "port", h.NodePort, "err", err)
			if s.cfg.Failed != nil {
				s.cfg.Failed(name, err)
			}
			return
		}
		srv.http[f] = &http.Server{Handler: srv.handler(f), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
		for _, l := range listeners {
			go srv.http[f].Serve(l) // ends with close
		}
	}
	s.running[name] = srv
}

func (s *Servers) stop(name catalog.ServiceName) {
	if srv := s.running[name]; srv != nil {
		srv.close()
		delete(s.running, name)
	}
}

func (s *Servers) listen(v6 bool, port uint16) (listeners []net.Listener, err error) {
	network, addrs := "tcp4", []string{"0.0.0.0"}
	if v6 {
		network, addrs = "tcp6", []string{"::"}
	}
	if s.addrs != nil {
		addrs = nil
		for _, a := range s.addrs {
			if a.Is6() == v6 {
				addrs = append(addrs, a.String())
			}
		}
	}
	for _, a := range addrs {
		l, err := net.Listen(network, net.JoinHostPort(a, strconv.Itoa(int(port))))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("listen for health checks: %w", err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func (srv *server) set(h *plan.HealthCheck) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.local = h.Local
}

func (srv *server) close() {
	for _, h := range srv.http {
		if h == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		if err := h.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
			h.Close()
		}
		cancel()
	}
}

// answer is the body of an answer, as kube-proxy gives it.
type answer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// handler answers on every path: 200 if the node has a ready endpoint of its
// own and the proxy is healthy, else 503.
func (srv *server) handler(family int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		srv.mu.Lock()
		n := srv.local[family]
		srv.mu.Unlock()
		a := answer{LocalEndpoints: n, ServiceProxyHealthy: srv.healthy()}
		a.Service.Namespace, a.Service.Name = srv.name.Namespace, srv.name.Name
		body, err := json.Marshal(a)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(n))
		if n == 0 || !a.ServiceProxyHealthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(body)
	})
}
