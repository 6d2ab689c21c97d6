package server

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// metrics are what the server itself counts. Queries by zone and reply are the
// prometheus plugin's.
type metrics struct {
	panics prometheus.Counter
	shed   *prometheus.CounterVec
	paths  *paths
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		panics: plugin.Register(r, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coredns_panics_total", Help: "Panics in plugins, each answered with SERVFAIL.",
		})),
		shed: plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rutter_dns_shed_total", Help: "Queries and connections dropped because too many were open, by reason.",
		}, []string{"reason"})),
		paths: plugin.Register(r, &paths{}),
	}
}

// paths counts queries by the way they went. Each reading goroutine counts in
// a place of its own.
type paths struct {
	places [16]pathCount
}

type pathCount struct {
	direct, relay, chain, refused atomic.Uint64
	_                             [64 - 32]byte // a cache line each
}

func (p *paths) of(worker int) *pathCount { return &p.places[worker%len(p.places)] }

var descQueries = prometheus.NewDesc("rutter_dns_queries_total", "Queries by the way they went: direct, relay, chain, or refused without looking at a server block.", []string{"path"}, nil)

// Describe names the metric.
func (p *paths) Describe(ch chan<- *prometheus.Desc) { ch <- descQueries }

// Collect adds the places up.
func (p *paths) Collect(ch chan<- prometheus.Metric) {
	var direct, relay, chain, refused uint64
	for i := range p.places {
		direct += p.places[i].direct.Load()
		relay += p.places[i].relay.Load()
		chain += p.places[i].chain.Load()
		refused += p.places[i].refused.Load()
	}
	for path, n := range map[string]uint64{"direct": direct, "relay": relay, "chain": chain, "refused": refused} {
		ch <- prometheus.MustNewConstMetric(descQueries, prometheus.CounterValue, float64(n), path)
	}
}
