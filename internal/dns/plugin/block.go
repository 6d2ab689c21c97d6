package plugin

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
)

// Env is what plugins may use of the process. It outlives a reload.
type Env struct {
	Log      *slog.Logger
	Registry *prometheus.Registry
	Version  string // of Rutter, for banners and user agents

	// Listen opens a listener for a plugin's own port (health, ready,
	// prometheus). The socket stays open over a reload: a plugin that asks for
	// the same address again gets another listener on the same socket. Close
	// what it returns in OnShutdown.
	Listen func(network, addr string) (net.Listener, error)

	// Load reads and parses the Corefile again, imports included; nil when the
	// configuration does not come from a file.
	Load func() ([]corefile.ServerBlock, error)
	// Reload puts blocks in the place of what is served. On error nothing has
	// changed. The hooks of the old configuration run after it returned, so a
	// plugin may call it from its own goroutine.
	Reload func(blocks []corefile.ServerBlock) error
	// Reloaded is told how an attempt to serve what the Corefile says now went:
	// nil when it is served. May be nil itself.
	Reloaded func(error)
	// Fatal ends the process with the error (the loop plugin).
	Fatal func(error)

	// Kept returns the value of a key, made by the first caller, for the
	// process's life: what must survive a reload (cache contents). Keys are
	// values of unexported types, as in context.
	Kept func(key any, make func() any) any
}

// Timeouts are a listener's limits on TCP connections.
type Timeouts struct {
	Read, Write, Idle time.Duration // 0: default (3 s, 5 s, 10 s)
	MaxQueries        int           // per connection; 0: default (no limit)
}

// Block is one server block while its plugins are set up, and later what its
// hooks refer to.
type Block struct {
	Env   *Env
	Keys  []corefile.Key
	Zones Zones // the zones of Keys, without repeats

	// What the Configures plugins say. They stand first in the order, so other
	// Setups find these fields complete.
	Root     string   // root: base of relative file names
	Bind     []string // bind: addresses; empty for all
	Sockets  int      // multisocket: sockets per address; 0 for one per CPU
	Timeouts Timeouts // timeouts
	TLS      *tls.Config
	Debug    bool // debug: panics are not recovered
	AnyClass bool // chaos, forward: classes other than IN get through the door
	// View and Filter: the block takes only queries for which Filter is true.
	View   string
	Filter func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) bool

	// Shared returns the value of a key, made by the first caller, for this
	// configuration: what several blocks have in common (one ready server per
	// address).
	Shared func(key any, make func() any) any

	handlers []Handler
	order    []Entry
	hooks    hooks
}

type hooks struct {
	start         []func(context.Context) error
	shutdown      []func() error
	finalShutdown []func() error
}

// Log returns the logger of a plugin.
func (b *Block) Log(name string) *slog.Logger { return b.Env.Log.With("plugin", name) }

// OnStart registers f to run before the block serves; an error refuses the
// whole configuration, and what started is shut down. ctx ends when the
// configuration does: goroutines that f starts must end with it.
func (b *Block) OnStart(f func(ctx context.Context) error) {
	b.hooks.start = append(b.hooks.start, f)
}

// OnShutdown registers f to run when the configuration is replaced or the
// server stops, after the last query; also when another hook's start failed,
// even if its own plugin has not started.
func (b *Block) OnShutdown(f func() error) { b.hooks.shutdown = append(b.hooks.shutdown, f) }

// OnFinalShutdown registers f to run when the process stops, while queries are
// still served (the lame duck period).
func (b *Block) OnFinalShutdown(f func() error) {
	b.hooks.finalShutdown = append(b.hooks.finalShutdown, f)
}

// Handlers returns the block's handlers in query order; complete when OnStart
// hooks run, nil in Setup.
func (b *Block) Handlers() []Handler { return b.handlers }

// Handler returns the block's first handler of that plugin, or nil; for OnStart
// hooks.
func (b *Block) Handler(name string) Handler {
	for _, h := range b.handlers {
		if h.Name() == name {
			return h
		}
	}
	return nil
}

// Effect returns what the order list says of a plugin.
func (b *Block) Effect(name string) Effect {
	for _, e := range b.order {
		if e.Name == name {
			return e.Effect
		}
	}
	return Changes
}

// File returns path joined to the root directory, unless it is absolute.
func (b *Block) File(path string) string {
	if b.Root == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(b.Root, path)
}

// Register registers c, or returns the collector like it that was registered
// before, so that counters survive a reload.
func Register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	err := r.Register(c)
	if are, ok := err.(prometheus.AlreadyRegisteredError); ok {
		return are.ExistingCollector.(C)
	}
	if err != nil {
		panic(err) // two metrics of one name and different labels: a bug
	}
	return c
}
