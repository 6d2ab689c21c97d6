package prometheus

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/version"
)

const defaultAddr = "localhost:9153"

type (
	collectorKey struct{}
	serverKey    struct{ addr string }
)

// Setup reads `prometheus [ADDR] { runtime_metrics; tls WEBCONFIG_FILE }`.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	d := lines[0]
	addr := defaultAddr
	switch len(d.Args) {
	case 0:
	case 1:
		addr = d.Args[0].Text
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, corefile.Errorf(d.Args[0], "address %q: %w; write host:port or :port", addr, err)
		}
	default:
		return nil, corefile.Arguments(d, "at most an address")
	}
	runtimeMetrics := false
	var config *tls.Config
	for _, p := range d.Block {
		switch p.Name.Text {
		case "runtime_metrics":
			runtimeMetrics = true
		case "tls":
			if len(p.Args) != 1 {
				return nil, corefile.Arguments(p, "a web configuration file")
			}
			var err error
			if config, err = serverTLS(b.File(p.Args[0].Text)); err != nil {
				return nil, corefile.Errorf(p.Args[0], "tls: %w", err)
			}
		default:
			return nil, corefile.Unknown("property of prometheus", p.Name, "runtime_metrics", "tls")
		}
	}
	all := b.Env.Kept(collectorKey{}, func() any { return newCollector() }).(*collector)
	srv := b.Shared(serverKey{addr}, func() any { return &server{addr: addr} }).(*server)
	if config != nil {
		srv.tls = config
	}
	h := &handler{all: all}
	var on []enabled
	b.OnStart(func(context.Context) error {
		register(b.Env.Registry, all, runtimeMetrics)
		on = enabledIn(b)
		all.enable(on, 1)
		return srv.start(b.Env)
	})
	b.OnShutdown(func() error {
		all.enable(on, -1)
		on = nil
		return srv.stop()
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

// register adds what is the same for the whole process.
func register(r *prometheus.Registry, all *collector, runtimeMetrics bool) {
	plugin.Register(r, prometheus.Collector(all))
	goCollector := collectors.NewGoCollector()
	if runtimeMetrics {
		r.Unregister(goCollector)
		goCollector = collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll))
	}
	_ = r.Register(goCollector) // the agent may have its own already
	_ = r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	v := version.Get()
	info := plugin.Register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "coredns_build_info", Help: "A metric with a constant '1' value labeled by version, revision, and goversion from which CoreDNS was built.",
	}, []string{"version", "revision", "goversion"}))
	info.WithLabelValues(v.Version, v.Commit, runtime.Version()).Set(1)
}

// enabledIn lists the block's plugins for each of its servers and zones.
func enabledIn(b *plugin.Block) []enabled {
	var list []enabled
	addrs := b.Bind
	if len(addrs) == 0 {
		addrs = []string{""}
	}
	for _, k := range b.Keys {
		for _, addr := range addrs {
			l := labels{k.Scheme + "://" + net.JoinHostPort(addr, k.Port), k.Zone, b.View}
			for _, h := range b.Handlers() {
				list = append(list, enabled{l, h.Name()})
			}
		}
	}
	return list
}

// server is the HTTP server of one address, shared by the blocks that name it.
type server struct {
	addr string
	tls  *tls.Config // nil: clear text

	mu   sync.Mutex
	http *http.Server
	done chan struct{}
}

func (s *server) start(env *plugin.Env) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return nil
	}
	l, err := env.Listen("tcp", s.addr)
	if err != nil {
		return plugin.Error(name, err)
	}
	if s.tls != nil {
		l = tls.NewListener(l, s.tls)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(env.Registry, promhttp.HandlerOpts{}))
	s.http = &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
	s.done = make(chan struct{})
	go func(h *http.Server, done chan struct{}) {
		defer close(done)
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			env.Log.Error("serving metrics", "plugin", name, "error", err)
		}
	}(s.http, s.done)
	return nil
}

func (s *server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close() // a scrape that hangs does not delay the end
	}
	<-s.done
	s.http = nil
	return err
}
