package cache

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// metrics keep CoreDNS's names and labels.
type metrics struct {
	zones string

	entries                                           *prometheus.GaugeVec // server, type, zones, view
	size                                              *prometheus.GaugeVec // the same
	hits, evictions                                   *prometheus.CounterVec
	requests, misses, prefetches, drops, stale, fresh *prometheus.CounterVec // server, zones, view

	origins sync.Map // *plugin.Origin to *counters
}

// counters are the series of one listener and block.
type counters struct {
	entries, size                                     [2]prometheus.Gauge // success, denial
	hits, evictions                                   [2]prometheus.Counter
	requests, misses, prefetches, drops, stale, fresh prometheus.Counter
}

func newMetrics(r prometheus.Registerer, zones string) *metrics {
	counter := func(namespace, name, help string, labels ...string) *prometheus.CounterVec {
		return plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: "cache", Name: name, Help: help,
		}, labels))
	}
	gauge := func(namespace, name, help string) *prometheus.GaugeVec {
		return plugin.Register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: "cache", Name: name, Help: help,
		}, []string{"server", "type", "zones", "view"}))
	}
	return &metrics{
		zones:      zones,
		entries:    gauge("coredns", "entries", "Entries in the cache."),
		size:       gauge("rutter", "bytes", "Memory that the entries take, about."),
		hits:       counter("coredns", "hits_total", "Queries answered from the cache.", "server", "type", "zones", "view"),
		evictions:  counter("coredns", "evictions_total", "Entries that had to make room for others.", "server", "type", "zones", "view"),
		requests:   counter("coredns", "requests_total", "Queries that were looked up.", "server", "zones", "view"),
		misses:     counter("coredns", "misses_total", "Queries that were not in the cache.", "server", "zones", "view"),
		prefetches: counter("coredns", "prefetch_total", "Entries refreshed before a client had to wait.", "server", "zones", "view"),
		drops:      counter("coredns", "drops_total", "Replies not kept because they do not match their question.", "server", "zones", "view"),
		stale:      counter("coredns", "served_stale_total", "Queries answered from expired entries.", "server", "zones", "view"),
		fresh:      counter("rutter", "superseded_total", "Entries passed over because the name appeared in this server's own data.", "server", "zones", "view"),
	}
}

// of returns the counters of an origin.
func (m *metrics) of(o *plugin.Origin) *counters {
	if c, ok := m.origins.Load(o); ok {
		return c.(*counters)
	}
	c := &counters{
		requests:   m.requests.WithLabelValues(o.Server, m.zones, o.View),
		misses:     m.misses.WithLabelValues(o.Server, m.zones, o.View),
		prefetches: m.prefetches.WithLabelValues(o.Server, m.zones, o.View),
		drops:      m.drops.WithLabelValues(o.Server, m.zones, o.View),
		stale:      m.stale.WithLabelValues(o.Server, m.zones, o.View),
		fresh:      m.fresh.WithLabelValues(o.Server, m.zones, o.View),
	}
	for i, kind := range [...]string{"success", "denial"} {
		c.entries[i] = m.entries.WithLabelValues(o.Server, kind, m.zones, o.View)
		c.size[i] = m.size.WithLabelValues(o.Server, kind, m.zones, o.View)
		c.hits[i] = m.hits.WithLabelValues(o.Server, kind, m.zones, o.View)
		c.evictions[i] = m.evictions.WithLabelValues(o.Server, kind, m.zones, o.View)
	}
	if o.Server == "" {
		return c // outside a server: an origin per query
	}
	got, _ := m.origins.LoadOrStore(o, c)
	return got.(*counters)
}

// held shows how much the stores hold.
func (c *counters) held(s *stores) {
	for i, st := range s.both() {
		c.entries[i].Set(float64(st.entries.Load()))
		c.size[i].Set(float64(st.bytes.Load()))
	}
}
