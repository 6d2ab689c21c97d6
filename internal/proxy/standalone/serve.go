package standalone

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rutter-project/rutter/internal/proxy"
)

// How long until an address that is taken is tried again.
const bindEvery = 5 * time.Second

// Serve starts the servers of healthz and of metrics.
func Serve(ctx context.Context, loops *sync.WaitGroup, o Options, p *proxy.Proxy, registry *prometheus.Registry, events *Events) error {
	for _, s := range []struct {
		address, reason string
		handler         http.Handler
	}{
		{o.Config.HealthzBindAddress, "FailedToStartProxierHealthcheck", p.Healthz()},
		{o.Config.MetricsBindAddress, "FailedToStartMetricServer", metricsHandler(o, func() string { return p.Status().Mode }, registry)},
	} {
		if s.address == "" {
			continue
		}
		listener, err := net.Listen("tcp", s.address)
		if err != nil {
			events.Post(proxy.Event{Warning: true, Reason: s.reason, Action: "StartKubeProxy", Note: err.Error()})
			if o.Config.BindAddressHardFail {
				events.flush(ctx)
				return fmt.Errorf("listen on %s (bindAddressHardFail is set): %w", s.address, err)
			}
			o.Log.Error("cannot listen; it is tried again", "address", s.address, "err", err)
		}
		server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
		loops.Go(func() {
			for listener == nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(bindEvery):
					listener, _ = net.Listen("tcp", s.address)
				}
			}
			stop := context.AfterFunc(ctx, func() { server.Close() })
			defer stop()
			if err := server.Serve(listener); ctx.Err() == nil {
				o.Log.Error("a server ended", "address", s.address, "err", err)
			}
		})
	}
	return nil
}

// metricsHandler answers on port 10249.
func metricsHandler(o Options, mode func() string, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write([]byte(s))
		}
	}
	mux.HandleFunc("/healthz", text("ok"))
	mux.HandleFunc("/healthz/{check}", text("ok"))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, r *http.Request) { text(mode())(w, r) })
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/metrics/slis", promhttp.HandlerFor(sli(registry), promhttp.HandlerOpts{}))
	paths := []string{"/configz", "/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/statusz"}
	if o.Flags != nil {
		mux.HandleFunc("/flagz", flagz(o.Flags))
		paths = append(paths, "/flagz")
	}
	mux.HandleFunc("/statusz", statusz(o.Version, time.Now(), paths))
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(map[string]any{"kubeproxy.config.k8s.io": o.Config})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})
	if o.Config.EnableProfiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}
