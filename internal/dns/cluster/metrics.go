package cluster

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// RegisterClientMetrics makes the clients of the Kubernetes API count in r,
// under CoreDNS's names. client-go has one place for this in a process and
// takes the first who asks: call it once, where the process begins.
func RegisterClientMetrics(r prometheus.Registerer) {
	opts := func(name, help string) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: "coredns_kubernetes_rest_client_" + name, Help: help, Buckets: prometheus.DefBuckets}
	}
	requests := plugin.Register(r, prometheus.NewHistogramVec(opts("request_duration_seconds", "Request latency in seconds, by verb and host."), []string{"verb", "host"}))
	limiter := plugin.Register(r, prometheus.NewHistogramVec(opts("rate_limiter_duration_seconds", "Client side rate limiter latency in seconds, by verb and host."), []string{"verb", "host"}))
	results := plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "coredns_kubernetes_rest_client_requests_total", Help: "Number of HTTP requests, by status code, method and host.",
	}, []string{"code", "method", "host"}))
	metrics.Register(metrics.RegisterOpts{
		RequestLatency:     latency{requests},
		RateLimiterLatency: latency{limiter},
		RequestResult:      result{results},
	})
}

type latency struct{ *prometheus.HistogramVec }

func (l latency) Observe(_ context.Context, verb string, u url.URL, took time.Duration) {
	l.WithLabelValues(verb, u.Host).Observe(took.Seconds())
}

type result struct{ *prometheus.CounterVec }

func (r result) Increment(_ context.Context, code, method, host string) {
	r.WithLabelValues(code, method, host).Inc()
}
