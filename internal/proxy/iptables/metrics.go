package iptables

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// stats is what is counted of a family, for kube-proxy's metrics. It has a lock
// of its own, so that who asks does not wait for a restore.
type stats struct {
	mu sync.Mutex
	// Rules by table: of services, of what they share, and written last.
	total, frame, last map[string]int
	failures, partial  int
}

// wrote counts the rules of an input that was taken.
func (s *stats) wrote(input []byte) {
	last := map[string]int{"filter": 0, "nat": 0}
	table := ""
	for line := range bytes.Lines(input) {
		switch line[0] {
		case '*':
			table = string(bytes.TrimSpace(line[1:]))
		case '-':
			last[table]++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = last
}

func (s *stats) failed(partial bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures++
	if partial {
		s.partial++
	}
}

// frames counts the rules of a table that all services share.
func (s *stats) frames(table string, chains []chain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frame[table] = 0
	for i := range chains {
		s.frame[table] += len(chains[i].rules)
	}
}

// holds counts rules that services have now more, or less.
func (s *stats) holds(h *held, by int) {
	if h == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total["nat"] += by * h.nat
	s.total["filter"] += by * h.filter
}

var (
	rulesTotal = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_total",
		"iptables rules of services", []string{"table", "ip_family"}, nil)
	rulesLast = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_last",
		"iptables rules written at the last change", []string{"table", "ip_family"}, nil)
	restoreFailures = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
		"Failures of iptables-restore", []string{"ip_family"}, nil)
	partialFailures = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
		"Failures of iptables-restore with the services that changed", []string{"ip_family"}, nil)
	invalidDropped = prometheus.NewDesc("kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
		"Packets dropped because connection tracking calls them invalid", nil, nil)
	localhostAccepted = prometheus.NewDesc("kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
		"First packets of connections to node ports on 127.0.0.0/8", nil, nil)
)

// Describe implements prometheus.Collector.
func (d *Dataplane) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{rulesTotal, rulesLast, restoreFailures, partialFailures, invalidDropped, localhostAccepted} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (d *Dataplane) Collect(ch chan<- prometheus.Metric) {
	for _, f := range d.families {
		name := familyName(f.style.v6)
		f.stats.mu.Lock()
		for _, table := range []string{"filter", "nat"} {
			ch <- prometheus.MustNewConstMetric(rulesTotal, prometheus.GaugeValue, float64(f.stats.total[table]+f.stats.frame[table]), table, name)
			ch <- prometheus.MustNewConstMetric(rulesLast, prometheus.GaugeValue, float64(f.stats.last[table]), table, name)
		}
		ch <- prometheus.MustNewConstMetric(restoreFailures, prometheus.CounterValue, float64(f.stats.failures), name)
		ch <- prometheus.MustNewConstMetric(partialFailures, prometheus.CounterValue, float64(f.stats.partial), name)
		f.stats.mu.Unlock()
	}
	counts := make(map[string]uint64)
	if len(d.families) > 0 {
		_ = d.families[0].progs.Do(func() error { // without them there is nothing to tell
			counts = readAccounts()
			return nil
		})
	}
	for name, desc := range map[string]*prometheus.Desc{invalidAccount: invalidDropped, localhostAccount: localhostAccepted} {
		if n, ok := counts[name]; ok {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
		}
	}
}

// readAccounts returns what the kernel's named counters counted.
func readAccounts() map[string]uint64 {
	counts := make(map[string]uint64)
	c, err := nfnetlink.Dial()
	if err != nil {
		return counts
	}
	defer c.Close()
	_ = c.Dump(unix.AF_UNSPEC, acctGet, nil, func() { clear(counts) }, func(attrs []byte) {
		var name string
		var packets uint64
		nfnetlink.Attributes(attrs, func(typ uint16, v []byte) {
			switch {
			case typ == acctName && len(v) > 0:
				name = string(v[:len(v)-1])
			case typ == acctPackets && len(v) == 8:
				packets = binary.BigEndian.Uint64(v)
			}
		})
		counts[name] = packets
	})
	return counts
}
