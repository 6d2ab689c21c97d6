// Package health answers HTTP requests for /health as long as the process
// lives, and delays its end (the lame duck period).
package health

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "health"

type endpoint struct {
	addr     string
	lameduck time.Duration
	env      *plugin.Env
	log      *slog.Logger
	duration prometheus.Histogram
	failures prometheus.Counter

	server *http.Server
	bound  string // where it listens
}

// Setup reads:
//
//	health [ADDRESS] {
//	    lameduck DURATION
//	}
//
// Of several lines in a block the last address and duration win.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	e := &endpoint{addr: ":8080", env: b.Env, log: b.Log(name)}
	for _, d := range lines {
		if err := e.parse(d); err != nil {
			return nil, err
		}
	}
	e.duration = plugin.Register(b.Env.Registry, prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "coredns", Subsystem: "health", Name: "request_duration_seconds",
		Help:                        "Time the process takes to answer its own health request.",
		Buckets:                     []float64{0.00025, 0.0025, 0.025, 0.25, 2.5},
		NativeHistogramBucketFactor: 1.05,
	}))
	e.failures = plugin.Register(b.Env.Registry, prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "coredns", Subsystem: "health", Name: "request_failures_total",
		Help: "Failed health requests of the process to itself.",
	}))
	b.OnStart(e.start)
	b.OnShutdown(e.stop)
	if e.lameduck > 0 {
		b.OnFinalShutdown(func() error {
			e.log.Info("Going into lameduck mode for " + e.lameduck.String())
			time.Sleep(e.lameduck)
			return nil
		})
	}
	return nil, nil
}

func (e *endpoint) parse(d corefile.Directive) error {
	if err := d.Want(0, 1, "nothing, or an address such as :8080"); err != nil {
		return err
	}
	if len(d.Args) == 1 {
		if _, _, err := net.SplitHostPort(d.Args[0].Text); err != nil {
			err := corefile.Errorf(d.Args[0], "%q is no address with a port", d.Args[0].Text)
			err.Expected = "an address such as :8080 or 127.0.0.1:8080"
			return err
		}
		e.addr = d.Args[0].Text
	}
	for _, p := range d.Block {
		if p.Name.Text != "lameduck" {
			return corefile.Unknown("property of health", p.Name, "lameduck")
		}
		if err := p.Want(1, 1, "a duration"); err != nil {
			return err
		}
		var err error
		if e.lameduck, err = p.Args[0].DurationFrom(0); err != nil {
			return err
		}
	}
	return nil
}

func (e *endpoint) start(ctx context.Context) error {
	l, err := e.env.Listen("tcp", e.addr)
	if err != nil {
		return plugin.Error(name, err)
	}
	e.bound = l.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "OK")
	})
	e.server = &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second}
	go func() { // ends with the server, in stop
		if err := e.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			e.log.Error("health endpoint: " + err.Error())
		}
	}()
	go e.watch(ctx) // ends with the configuration
	return nil
}

func (e *endpoint) stop() error {
	if e.server == nil {
		return nil
	}
	return e.server.Close()
}

// watch asks the own endpoint every second: when that is slow, the process is
// overloaded.
func (e *endpoint) watch(ctx context.Context) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.ask(ctx, client)
		}
	}
}

func (e *endpoint) ask(ctx context.Context, client *http.Client) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.bound+"/health", nil)
	if err != nil {
		return
	}
	start := time.Now()
	resp, err := client.Do(req)
	took := time.Since(start)
	if ctx.Err() != nil {
		return
	}
	e.duration.Observe(took.Seconds())
	if err != nil {
		e.failures.Inc()
		e.log.Warn("health request to " + req.URL.String() + " failed: " + err.Error())
		return
	}
	resp.Body.Close()
	if took > time.Second {
		e.log.Warn("health request to " + req.URL.String() + " took " + took.String())
	}
}
