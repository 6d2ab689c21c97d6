package prometheus

import (
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

var (
	descRequests     = prometheus.NewDesc("coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.", []string{"server", "zone", "view", "proto", "family", "type"}, nil)
	descDo           = prometheus.NewDesc("coredns_dns_do_requests_total", "Counter of DNS requests with DO bit set per zone.", []string{"server", "zone", "view"}, nil)
	descDuration     = prometheus.NewDesc("coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.", []string{"server", "zone", "view"}, nil)
	descRequestSize  = prometheus.NewDesc("coredns_dns_request_size_bytes", "Size of the requests in bytes.", []string{"server", "zone", "view", "proto"}, nil)
	descResponseSize = prometheus.NewDesc("coredns_dns_response_size_bytes", "Size of the replies in bytes.", []string{"server", "zone", "view", "proto"}, nil)
	descResponses    = prometheus.NewDesc("coredns_dns_responses_total", "Counter of response status codes.", []string{"server", "zone", "view", "rcode", "plugin"}, nil)
	descEnabled      = prometheus.NewDesc("coredns_plugin_enabled", "A metric that indicates whether a plugin is enabled on per server and zone basis.", []string{"server", "zone", "view", "name"}, nil)
)

// collector holds all sets of the process; they survive reloads.
type collector struct {
	shards int

	mu      sync.Mutex
	sets    map[labels]*set
	enabled map[enabled]int // how many configurations have it: two during a reload
}

type enabled struct {
	labels
	plugin string
}

func newCollector() *collector {
	return &collector{shards: min(runtime.GOMAXPROCS(0), 8), sets: make(map[labels]*set), enabled: make(map[enabled]int)}
}

func (c *collector) set(l labels) *set {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[l]
	if s == nil {
		s = newSet(l, c.shards)
		c.sets[l] = s
	}
	return s
}

// enable counts in plugins that a configuration has; disable counts them out.
func (c *collector) enable(list []enabled, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range list {
		if c.enabled[e] += n; c.enabled[e] == 0 {
			delete(c.enabled, e)
		}
	}
}

// Describe names the metrics.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRequests, descDo, descDuration, descRequestSize, descResponseSize, descResponses, descEnabled} {
		ch <- d
	}
}

// Collect adds up the shards.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.enabled {
		ch <- prometheus.MustNewConstMetric(descEnabled, prometheus.GaugeValue, 1, e.server, e.zone, e.view, e.plugin)
	}
	for _, s := range c.sets {
		s.collect(ch)
	}
}

func (s *set) collect(ch chan<- prometheus.Metric) {
	l := []string{s.labels.server, s.labels.zone, s.labels.view}
	with := func(more ...string) []string { return append(l[:len(l):len(l)], more...) }
	counter := func(d *prometheus.Desc, n uint64, labels []string) {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
		}
	}
	add := func(get func(*shard) uint64) (n uint64) {
		for i := range s.shards {
			n += get(&s.shards[i])
		}
		return n
	}
	for tcp, proto := range []string{"udp", "tcp"} {
		for v6, family := range []string{"1", "2"} {
			for t, name := range typeNames {
				counter(descRequests, add(func(sh *shard) uint64 { return sh.requests[tcp][v6][t].Load() }), with(proto, family, name))
			}
		}
		size := func(d *prometheus.Desc, get func(*shard) *sizes) {
			bounds := make(map[float64]uint64, len(sizeBounds))
			count := uint64(0)
			for i := range len(sizeBounds) + 1 {
				count += add(func(sh *shard) uint64 { return get(sh).buckets[i].Load() })
				if i < len(sizeBounds) {
					bounds[sizeBounds[i]] = count
				}
			}
			if count > 0 {
				sum := add(func(sh *shard) uint64 { return get(sh).sum.Load() })
				ch <- prometheus.MustNewConstHistogram(d, count, float64(sum), bounds, with(proto)...)
			}
		}
		size(descRequestSize, func(sh *shard) *sizes { return &sh.requestSize[tcp] })
		size(descResponseSize, func(sh *shard) *sizes { return &sh.responseSize[tcp] })
	}
	counter(descDo, add(func(sh *shard) uint64 { return sh.do.Load() }), l)

	bounds := make(map[float64]uint64, durationBuckets)
	count := uint64(0)
	for i := range durationBuckets + 1 {
		count += add(func(sh *shard) uint64 { return sh.took[i].Load() })
		if i < durationBuckets {
			bounds[(firstDuration << i).Seconds()] = count
		}
	}
	if count > 0 {
		sum := add(func(sh *shard) uint64 { return sh.tookSum.Load() })
		ch <- prometheus.MustNewConstHistogram(descDuration, count, time.Duration(sum).Seconds(), bounds, l...)
	}
	for i, plugin := range *s.plugins.Load() {
		for rcode := range maxRcode + 1 {
			counter(descResponses, add(func(sh *shard) uint64 { return sh.responses[rcode][i].Load() }), with(rcodeName(rcode), plugin))
		}
	}
}

func rcodeName(rcode int) string {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return "RCODE" + itoa(rcode)
}
