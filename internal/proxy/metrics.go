package proxy

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are kube-proxy's, by its names and labels, so that dashboards go on
// working, and a few of our own.
type metrics struct {
	full, partial, latency, flowsDuration   histogram
	failures, cleanupFailures, flowsRemoved counter
	healthz, livez                          counter // by HTTP status

	refused                         prometheus.Gauge
	repairs                         prometheus.Counter
	queued                          *prometheus.GaugeVec
	serviceChanges, endpointChanges prometheus.Counter
	noLocal                         *prometheus.GaugeVec // by traffic_policy, ip_family
}

// histogram is one that has a series per family.
type histogram struct {
	*prometheus.HistogramVec
	sum *prometheus.HistogramVec // observed along, may be nil
	at  *prometheus.GaugeVec     // set to now, may be nil
}

func (h histogram) observe(cfg Config, d time.Duration) {
	for _, f := range families(cfg) {
		h.WithLabelValues(f).Observe(d.Seconds())
		if h.sum != nil {
			h.sum.WithLabelValues(f).Observe(d.Seconds())
		}
		if h.at != nil {
			h.at.WithLabelValues(f).SetToCurrentTime()
		}
	}
}

type counter struct{ *prometheus.CounterVec }

func (c counter) add(cfg Config, n int) {
	for _, f := range families(cfg) {
		c.WithLabelValues(f).Add(float64(n))
	}
}

func families(cfg Config) []string {
	switch {
	case cfg.IPv4 && cfg.IPv6:
		return []string{"IPv4", "IPv6"}
	case cfg.IPv6:
		return []string{"IPv6"}
	}
	return []string{"IPv4"}
}

func newMetrics(r prometheus.Registerer, cfg Config) (*metrics, error) {
	label := []string{"ip_family"}
	sync := prometheus.ExponentialBuckets(0.001, 2, 15)
	hist := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "kubeproxy", Name: name, Help: help, Buckets: buckets}, label)
	}
	all := hist("sync_proxy_rules_duration_seconds", "Time to program changed services", sync)
	last := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: "sync_proxy_rules_last_timestamp_seconds",
		Help: "When services were last programmed successfully"}, label)
	answers := func(name, help string) counter {
		return counter{prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: help}, []string{"code"})}
	}
	total := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: help})
	}
	// Changes are programmed when they are handed over: none is ever pending
	// between two scrapes. Cleanup happens with each change and is a part of it.
	none := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: name, Help: help})
	}
	cleanup := counter{prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: "sync_proxy_rules_nftables_cleanup_failures_total",
		Help: "Failures to remove unused chains"}, label)}
	m := &metrics{
		full:    histogram{hist("sync_full_proxy_rules_duration_seconds", "Time to go through all services", sync), all, last},
		partial: histogram{hist("sync_partial_proxy_rules_duration_seconds", "Time to program the services that changed", sync), all, last},
		latency: histogram{hist("network_programming_duration_seconds",
			"From a change of an EndpointSlice until the kernel holds it", programmingBuckets()), nil, nil},
		failures: counter{prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: "sync_proxy_rules_nftables_sync_failures_total",
			Help: "Failures to program the kernel"}, label)},

		flowsDuration: histogram{hist("conntrack_reconciler_sync_duration_seconds", "Time to remove stale flows", sync), nil, nil},
		flowsRemoved: counter{prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: "conntrack_reconciler_deleted_entries_total",
			Help: "Stale flows removed"}, label)},
		cleanupFailures: cleanup,
		queued: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: "sync_proxy_rules_last_queued_timestamp_seconds",
			Help: "When changes were last handed to the proxy"}, label),
		serviceChanges: total("sync_proxy_rules_service_changes_total", "Services that changed"),
		// The unit of change is a service with its endpoints: one count for both.
		endpointChanges: total("sync_proxy_rules_endpoint_changes_total", "Services whose endpoints changed"),
		noLocal: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: "sync_proxy_rules_no_local_endpoints_total",
			Help: "Service ports with policy Local that have endpoints, but none on this node"}, []string{"traffic_policy", "ip_family"}),
		healthz: answers("proxy_healthz_total", "Answers of /healthz by status"),
		livez:   answers("proxy_livez_total", "Answers of /livez by status"),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{Name: "rutter_proxy_repairs_total",
			Help: "Times that another program had changed our tables"}),
		refused: prometheus.NewGauge(prometheus.GaugeOpts{Name: "rutter_proxy_refused_services",
			Help: "Services that the kernel refuses to take"}),
	}
	for _, c := range []counter{m.failures, m.cleanupFailures, m.flowsRemoved} {
		c.add(cfg, 0) // so that the series exist
	}
	for _, f := range families(cfg) {
		m.flowsDuration.WithLabelValues(f)
		m.latency.WithLabelValues(f)
		m.noLocal.WithLabelValues("internal", f).Set(0)
		m.noLocal.WithLabelValues("external", f).Set(0)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{all, m.full.HistogramVec, m.partial.HistogramVec, m.latency.HistogramVec, m.failures.CounterVec, m.flowsDuration.HistogramVec, m.flowsRemoved.CounterVec, last, m.refused, m.repairs, m.healthz.CounterVec, m.livez.CounterVec,
		m.queued, m.serviceChanges, m.endpointChanges, m.noLocal, m.cleanupFailures.CounterVec,
		none("sync_proxy_rules_service_changes_pending", "Services that wait to be programmed"),
		none("sync_proxy_rules_endpoint_changes_pending", "Services whose endpoints wait to be programmed")} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the proxy's metrics: %w", err)
		}
	}
	return m, nil
}

// programmingBuckets are kube-proxy's: 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5,
// 120 to 300 by 30.
func programmingBuckets() []float64 {
	b := []float64{0.25, 0.5}
	for s := 1.0; s < 60; s++ {
		b = append(b, s)
	}
	for s := 60.0; s < 120; s += 5 {
		b = append(b, s)
	}
	for s := 120.0; s <= 300; s += 30 {
		b = append(b, s)
	}
	return b
}

// changed counts changes that were handed over.
func (m *metrics) changed(cfg Config, services int) {
	m.serviceChanges.Add(float64(services))
	m.endpointChanges.Add(float64(services))
	for _, f := range families(cfg) {
		m.queued.WithLabelValues(f).SetToCurrentTime()
	}
}

// modeCollector exports the metrics that the present mode has besides those
// that all have. It describes none of them, for the mode may change.
type modeCollector struct{ proxy *Proxy }

// Describe implements prometheus.Collector.
func (c modeCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c modeCollector) Collect(ch chan<- prometheus.Metric) {
	c.proxy.mu.Lock()
	data := c.proxy.data
	c.proxy.mu.Unlock()
	if m, ok := data.(prometheus.Collector); ok {
		m.Collect(ch)
	}
}
