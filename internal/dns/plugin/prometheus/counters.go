package prometheus

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// typeNames are the values of the label type; everything else is "other".
var typeNames = [...]string{
	"other", "A", "AAAA", "CNAME", "DNSKEY", "DS", "MX", "NSEC", "NSEC3", "NS", "PTR", "RRSIG",
	"SOA", "SRV", "TXT", "HTTPS", "SVCB", "IXFR", "AXFR", "ANY",
}

// typeIndex returns the place of a type in typeNames.
func typeIndex(qtype uint16) int {
	switch qtype {
	case dns.TypeA:
		return 1
	case dns.TypeAAAA:
		return 2
	case dns.TypeCNAME:
		return 3
	case dns.TypeDNSKEY:
		return 4
	case dns.TypeDS:
		return 5
	case dns.TypeMX:
		return 6
	case dns.TypeNSEC:
		return 7
	case dns.TypeNSEC3:
		return 8
	case dns.TypeNS:
		return 9
	case dns.TypePTR:
		return 10
	case dns.TypeRRSIG:
		return 11
	case dns.TypeSOA:
		return 12
	case dns.TypeSRV:
		return 13
	case dns.TypeTXT:
		return 14
	case dns.TypeHTTPS:
		return 15
	case dns.TypeSVCB:
		return 16
	case dns.TypeIXFR:
		return 17
	case dns.TypeAXFR:
		return 18
	case dns.TypeANY:
		return 19
	}
	return 0
}

// CoreDNS's bounds of the size histograms.
var sizeBounds = [...]float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}

// durationBounds are 0.25 ms, doubled 15 times.
const (
	firstDuration   = 250 * time.Microsecond
	durationBuckets = 16
)

const (
	maxRcode   = 24 // assigned ones end at BADCOOKIE (23)
	maxPlugins = 16 // plugins of one server block that write answers; more share the last place
)

// seen is one query and its answer, as the metrics see them.
type seen struct {
	tcp, ipv6, do bool
	qtype         uint16
	requestSize   int
	responseSize  int
	rcode         int
	plugin        string // who answered; empty when the server did
	took          time.Duration
}

// labels identify a set of counters.
type labels struct{ server, zone, view string }

// set is the counters of one server, zone and view. Each reading goroutine
// counts in a shard of its own, so counting is an uncontended atomic add;
// collecting adds the shards up.
type set struct {
	labels labels
	shards []shard

	mu      sync.Mutex
	plugins atomic.Pointer[[]string] // names by index; grows
}

type shard struct {
	requests     [2][2][len(typeNames)]atomic.Uint64 // by tcp, ipv6
	do           atomic.Uint64
	requestSize  [2]sizes
	responseSize [2]sizes
	took         [durationBuckets + 1]atomic.Uint64
	tookSum      atomic.Uint64 // ns
	responses    [maxRcode + 1][maxPlugins]atomic.Uint64
	_            [64]byte // keeps the next shard off this one's last cache line
}

type sizes struct {
	buckets [len(sizeBounds) + 1]atomic.Uint64
	sum     atomic.Uint64
}

func (s *sizes) observe(n int) {
	i := 0
	for i < len(sizeBounds) && float64(n) > sizeBounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	s.sum.Add(uint64(n))
}

func newSet(l labels, shards int) *set {
	s := &set{labels: l, shards: make([]shard, shards)}
	s.plugins.Store(&[]string{""})
	return s
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// count adds a query; worker spreads the counting.
func (s *set) count(worker int, q seen) {
	sh := &s.shards[worker%len(s.shards)]
	tcp := index(q.tcp)
	sh.requests[tcp][index(q.ipv6)][typeIndex(q.qtype)].Add(1)
	if q.do {
		sh.do.Add(1)
	}
	sh.requestSize[tcp].observe(q.requestSize)
	sh.responseSize[tcp].observe(q.responseSize)
	sh.took[durationIndex(q.took)].Add(1)
	sh.tookSum.Add(uint64(q.took))
	sh.responses[min(max(q.rcode, 0), maxRcode)][s.plugin(q.plugin)].Add(1)
}

func durationIndex(d time.Duration) int {
	if d <= firstDuration {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/firstDuration)), durationBuckets)
}

// plugin returns the index of a name, new or known.
func (s *set) plugin(name string) int {
	list := *s.plugins.Load()
	for i, p := range list {
		if p == name {
			return i
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list = *s.plugins.Load()
	for i, p := range list {
		if p == name {
			return i
		}
	}
	if len(list) == maxPlugins {
		return maxPlugins - 1
	}
	next := append(list[:len(list):len(list)], name)
	s.plugins.Store(&next)
	return len(next) - 1
}
