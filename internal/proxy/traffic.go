package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
)

// Traffic is what went to a service.
type Traffic struct {
	Service     catalog.ServiceName
	Connections uint64
	// Packets and Bytes, of both directions, are 0 unless Config.CountBytes.
	Packets, Bytes uint64
	Endpoints      []EndpointTraffic // those with most connections first
}

// EndpointTraffic is an endpoint's part of it.
type EndpointTraffic struct {
	Endpoint                    netip.AddrPort
	Protocol                    catalog.Protocol
	Connections, Packets, Bytes uint64
}

// traffic adds up what the kernel counts. The kernel forgets a flow a day after
// its last packet, and begins at 0 when the table is made anew; the sums of a
// service never go back while it exists.
type traffic struct {
	mu   sync.Mutex
	last map[dataplane.Flow]dataplane.Count
	sums map[catalog.ServiceName]map[endpointKey]*EndpointTraffic
	read time.Time
}

type endpointKey struct {
	endpoint netip.AddrPort
	proto    catalog.Protocol
}

// Counters are read at most this often.
const countersEvery = 5 * time.Second

// Traffic returns what went to each service since this process started to
// count, those with most connections first.
func (p *Proxy) Traffic() ([]Traffic, error) {
	p.traffic.mu.Lock()
	defer p.traffic.mu.Unlock()
	if time.Since(p.traffic.read) > countersEvery {
		if err := p.readCounters(); err != nil {
			return nil, err
		}
		p.traffic.read = time.Now()
	}
	list := make([]Traffic, 0, len(p.traffic.sums))
	for name, endpoints := range p.traffic.sums {
		t := Traffic{Service: name}
		for _, e := range endpoints {
			t.Connections += e.Connections
			t.Packets += e.Packets
			t.Bytes += e.Bytes
			t.Endpoints = append(t.Endpoints, *e)
		}
		slices.SortFunc(t.Endpoints, func(a, b EndpointTraffic) int {
			return cmp.Or(cmp.Compare(b.Connections, a.Connections), a.Endpoint.Compare(b.Endpoint))
		})
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), compareNames(a.Service, b.Service))
	})
	return list, nil
}

// readCounters adds what is new in the kernel to the sums.
func (p *Proxy) readCounters() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return nil
	}
	counts, err := p.data.Counters()
	if err != nil {
		return err
	}
	t := &p.traffic
	for name := range t.sums {
		if _, ok := p.counts[name]; !ok {
			delete(t.sums, name)
		}
	}
	for f, now := range counts {
		name, ok := p.claims.owner(f.Front, f.Protocol)
		if !ok {
			continue // of a service that is gone
		}
		if t.sums[name] == nil {
			t.sums[name] = make(map[endpointKey]*EndpointTraffic)
		}
		k := endpointKey{f.Endpoint, f.Protocol}
		e := t.sums[name][k]
		if e == nil {
			e = &EndpointTraffic{Endpoint: f.Endpoint, Protocol: f.Protocol}
			t.sums[name][k] = e
		}
		was := t.last[f]
		e.Connections += since(was.Connections, now.Connections)
		e.Packets += since(was.Packets, now.Packets)
		e.Bytes += since(was.Bytes, now.Bytes)
	}
	t.last = counts
	return nil
}

// since is how far a counter went, which may have begun anew.
func since(was, now uint64) uint64 {
	if now < was {
		return now
	}
	return now - was
}

// topServices is how many services have series of their own. More would make
// the metrics of a large cluster unreadable.
const topServices = 50

// trafficCollector exports the services with most connections.
type trafficCollector struct {
	proxy                       *Proxy
	connections, packets, bytes *prometheus.Desc
}

func newTrafficCollector(p *Proxy) *trafficCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("rutter_service_"+name+"_total", help+" (the services with most connections only)", []string{"namespace", "service"}, nil)
	}
	return &trafficCollector{p,
		desc("connections", "Connections to the service that this node balanced"),
		desc("packets", "Packets of such connections, both directions"),
		desc("bytes", "Bytes of such connections, both directions")}
}

// Describe implements prometheus.Collector.
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.packets
	ch <- c.bytes
}

// Collect implements prometheus.Collector.
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	list, err := c.proxy.Traffic()
	if err != nil {
		c.proxy.log.Warn("cannot read the services' counters", "err", err)
		return
	}
	for _, t := range list[:min(len(list), topServices)] {
		put := func(d *prometheus.Desc, v uint64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), t.Service.Namespace, t.Service.Name)
		}
		put(c.connections, t.Connections)
		if c.proxy.cfg.CountBytes {
			put(c.packets, t.Packets)
			put(c.bytes, t.Bytes)
		}
	}
}
