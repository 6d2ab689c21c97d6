package forward

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// metrics keep CoreDNS's names and labels.
type metrics struct {
	broken    prometheus.Counter
	rejected  prometheus.Counter
	durations *prometheus.HistogramVec // proxy_name, to, rcode
	failures  *prometheus.CounterVec   // proxy_name, to
	hits      *prometheus.CounterVec   // proxy_name, to, proto
	misses    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(subsystem, name, help string, labels ...string) *prometheus.CounterVec {
		return plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "coredns", Subsystem: subsystem, Name: name, Help: help,
		}, labels))
	}
	return &metrics{
		broken:   counter("forward", "healthcheck_broken_total", "Queries for which every upstream was down.").WithLabelValues(),
		rejected: counter("forward", "max_concurrent_rejects_total", "Queries refused because max_concurrent was reached.").WithLabelValues(),
		failures: counter("proxy", "healthcheck_failures_total", "Failed health checks.", "proxy_name", "to"),
		hits:     counter("proxy", "conn_cache_hits_total", "Queries sent on an open connection.", "proxy_name", "to", "proto"),
		misses:   counter("proxy", "conn_cache_misses_total", "Queries that needed a new connection.", "proxy_name", "to", "proto"),
		durations: plugin.Register(r, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "coredns", Subsystem: "proxy", Name: "request_duration_seconds",
			Help:                        "Time an upstream took to reply.",
			Buckets:                     prometheus.ExponentialBuckets(0.00025, 2, 16), // 0.25 ms to 8 s
			NativeHistogramBucketFactor: 1.05,
		}, []string{"proxy_name", "to", "rcode"})),
	}
}

func (m *metrics) connection(to, proto string, reused bool) {
	c := m.misses
	if reused {
		c = m.hits
	}
	c.WithLabelValues(name, to, proto).Inc()
}

// known are the metrics of an upstream that have been looked up by their labels.
type known struct {
	hit       atomic.Pointer[prometheus.Counter]
	durations [16]atomic.Pointer[prometheus.Observer] // by rcode
}

// socket is connection for the relay, and replied is duration.
func (m *metrics) socket(u *upstream, reused bool) {
	if !reused {
		m.connection(u.addr, "udp", false)
		return
	}
	c := u.known.hit.Load()
	if c == nil {
		hit := m.hits.WithLabelValues(name, u.addr, "udp")
		c = &hit
		u.known.hit.Store(c)
	}
	(*c).Inc()
}

func (m *metrics) replied(u *upstream, rcode int, d time.Duration) {
	o := u.known.durations[rcode].Load()
	if o == nil {
		durations := m.durations.WithLabelValues(name, u.addr, rcodeText(rcode))
		o = &durations
		u.known.durations[rcode].Store(o)
	}
	(*o).Observe(d.Seconds())
}

func (m *metrics) checkFailed(to string) { m.failures.WithLabelValues(name, to).Inc() }

func (m *metrics) duration(to string, rcode int, d time.Duration) {
	m.durations.WithLabelValues(name, to, rcodeText(rcode)).Observe(d.Seconds())
}

func rcodeText(rcode int) string {
	if text, ok := dns.RcodeToString[rcode]; ok {
		return text
	}
	return strconv.Itoa(rcode)
}
