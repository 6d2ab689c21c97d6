// Package server answers DNS queries over UDP and TCP from server blocks.
//
// A query's way, in order: udp.go or tcp.go reads it; wire.Query.Parse judges
// it; route.go finds the server block of the longest matching zone; direct.go
// answers it at once on the reading goroutine if the block's plugins can;
// relay.go hands it to one that passes it on as it is; else chain.go hands it
// to a bounded number of workers that run the plugins' ServeDNS, and reply.go
// fits what they wrote to the client. compile.go turns the blocks of a Corefile
// into a generation of routes; this file starts, replaces and stops generations;
// listen.go opens sockets, which outlive them.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Config is what a server is made of.
type Config struct {
	Blocks  []corefile.ServerBlock
	Plugins []plugin.Entry // the order list

	Log      *slog.Logger         // required
	Registry *prometheus.Registry // nil: a new one
	Version  string

	// Load, Fatal: see plugin.Env; may be nil.
	Load  func() ([]corefile.ServerBlock, error)
	Fatal func(error)

	// Elsewhere says how a user makes the server listen elsewhere, for errors:
	// "choose another port with -dns.port" (the default).
	Elsewhere string

	// MaxChain bounds the queries that are in the chain of plugins at a time,
	// those waiting for upstreams included; 0 means 2048. Queries beyond it
	// are dropped, those of the client that has most first.
	MaxChain int
	// MaxTCP bounds the TCP connections; 0 means 2048. One client address may
	// hold a quarter of them.
	MaxTCP int
}

// Server serves one configuration after another on sockets that stay open.
type Server struct {
	cfg     Config
	env     *plugin.Env
	log     *slog.Logger
	metrics *metrics
	chain   *limiter
	tcp     *connLimiter
	ports   portPool

	mu        sync.Mutex // serialises Start, Reload and Shutdown
	first     *generation
	current   *generation
	listeners map[listenerKey]*listener
	stopped   bool
	cleanup   sync.WaitGroup // old generations on their way out

	kept   shared
	failed atomic.Pointer[ReloadFailure]
}

// ReloadFailure tells why the Corefile as it is now is not the one that is
// served.
type ReloadFailure struct {
	Err   error
	Since time.Time // of the first failure after the last success
}

// ReloadFailure returns nil when all is well, as far as anybody tried.
func (s *Server) ReloadFailure() *ReloadFailure { return s.failed.Load() }

func (s *Server) reloaded(err error) {
	if err == nil {
		s.failed.Store(nil)
		return
	}
	f := &ReloadFailure{err, time.Now()}
	if old := s.failed.Load(); old != nil {
		f.Since = old.Since
	}
	s.failed.Store(f)
}

// New parses and validates the configuration; nothing is opened or started.
func New(cfg Config) (*Server, error) {
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Elsewhere == "" {
		cfg.Elsewhere = "choose another port with -dns.port or another address with the bind plugin"
	}
	if cfg.MaxChain == 0 {
		cfg.MaxChain = 2048
	}
	if cfg.MaxTCP == 0 {
		cfg.MaxTCP = 2048
	}
	s := &Server{
		cfg:       cfg,
		log:       cfg.Log,
		metrics:   newMetrics(cfg.Registry),
		tcp:       newConnLimiter(cfg.MaxTCP),
		listeners: make(map[listenerKey]*listener),
	}
	s.chain = newLimiter(cfg.MaxChain, s.metrics.shed)
	s.env = &plugin.Env{
		Log:      cfg.Log,
		Registry: cfg.Registry,
		Version:  cfg.Version,
		Listen:   s.ports.listen,
		Load:     cfg.Load,
		Reload:   s.Reload,
		Reloaded: s.reloaded,
		Fatal:    cfg.Fatal,
		Kept:     s.kept.get,
	}
	if s.env.Fatal == nil {
		s.env.Fatal = func(err error) { s.log.Error(err.Error()) }
	}
	gen, err := s.compile(cfg.Blocks)
	if err != nil {
		return nil, err
	}
	s.first = gen
	return s, nil
}

// Start runs the plugins' start hooks, opens the listeners and serves. ctx
// bounds the starting only. Call it once.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.install(ctx, s.first)
}

// Reload replaces what is served by blocks. Sockets that both need stay open,
// and no query is lost. On error the old configuration serves on, unchanged.
func (s *Server) Reload(blocks []corefile.ServerBlock) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("the server is shutting down")
	}
	gen, err := s.compile(blocks)
	if err != nil {
		return err
	}
	return s.install(context.Background(), gen)
}

// ReloadFile reads the Corefile again and serves by it, as Reload. It needs
// Config.Load.
func (s *Server) ReloadFile() error {
	blocks, err := s.cfg.Load()
	if err == nil {
		err = s.Reload(blocks)
	}
	s.reloaded(err)
	return err
}

// install makes gen the served configuration: hooks, new sockets, then the
// swap. What goes wrong before the swap is undone.
func (s *Server) install(ctx context.Context, gen *generation) error {
	if err := gen.start(ctx); err != nil {
		gen.stop()
		return err
	}
	opened, err := s.open(gen)
	if err != nil {
		gen.stop()
		return err
	}
	old := s.current
	s.current = gen
	for key, l := range s.listeners {
		if r, ok := gen.routes[key]; ok {
			l.routes.Store(r)
		}
	}
	for _, l := range opened {
		s.listeners[l.key] = l
		l.routes.Store(gen.routes[l.key])
		l.serve()
	}
	for key, l := range s.listeners {
		if _, ok := gen.routes[key]; !ok {
			l.close()
			delete(s.listeners, key)
		}
	}
	if old != nil {
		s.cleanup.Go(func() {
			old.drain(drainTime)
			if err := old.stop(); err != nil {
				s.log.Warn("stopping the old configuration", "error", err)
			}
		})
	}
	return nil
}

// drainTime is how long open queries may take when their configuration goes
// away (CoreDNS's value).
const drainTime = 5 * time.Second

// Shutdown runs the plugins' final hooks while queries are still served, then
// stops taking queries, waits up to 5 s for the open ones and stops. ctx can
// cut the waiting short.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	gen := s.current
	if gen == nil {
		return nil
	}
	final := make(chan error, 1)
	go func() { final <- gen.finalShutdown() }()
	var errs []error
	select {
	case err := <-final:
		errs = append(errs, err)
	case <-ctx.Done():
	}
	for _, l := range s.listeners {
		l.stopReading()
	}
	wait := drainTime
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline))
	}
	gen.drain(wait)
	for _, l := range s.listeners {
		l.close()
	}
	errs = append(errs, gen.stop())
	s.cleanup.Wait()
	return errors.Join(errs...)
}

// Addrs lists what is served as CoreDNS prints it at start: one line per zone
// and listener, "example.org.:1053 on 127.0.0.1".
func (s *Server) Addrs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	gen := s.current
	if gen == nil {
		gen = s.first
	}
	var lines []string
	for key, r := range gen.routes {
		for _, z := range r.zones {
			line := z.name + ":" + key.port
			if key.addr != "" {
				line += " on " + key.addr
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// LocalAddr returns the address of a listener of the network "udp" or "tcp",
// for tests that serve on port 0.
func (s *Server) LocalAddr(network string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		return l.addr(network)
	}
	return nil
}

// shared is a map of values made by their first user.
type shared struct {
	mu sync.Mutex
	m  map[any]any
}

func (s *shared) get(key any, make_ func() any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.m[key]; ok {
		return v
	}
	if s.m == nil {
		s.m = make(map[any]any)
	}
	v := make_()
	s.m[key] = v
	return v
}

func (k listenerKey) String() string {
	return fmt.Sprintf("dns://%s", net.JoinHostPort(k.addr, k.port))
}
