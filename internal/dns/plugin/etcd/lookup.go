package etcd

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// maxAliases is how long a chain of aliases may be.
const maxAliases = 10

// lookup is a question on its way through the keys.
type lookup struct {
	*handler
	ctx  context.Context
	q    *plugin.Request
	zone string
}

// services returns what there is at a name: below it and else exactly at it,
// or with exact only at it.
func (l *lookup) services(name string, exact bool) ([]service, error) {
	key, star := keyOf(l.prefix, name)
	pairs, err := l.store.get(l.ctx, key, !exact)
	if err != nil {
		return nil, err
	}
	var list []service
	seen := make(map[service]bool)
	leases := make(map[int64]int64)
	for _, p := range pairs {
		if star && !fits(p.key, l.prefix, name) {
			continue
		}
		s, err := parse(p.key, p.value)
		if err != nil {
			return nil, err
		}
		if seen[s] {
			continue
		}
		seen[s] = true
		s.TTL = l.ttl(s.TTL, p.lease, leases)
		if s.Host != "" || s.Text != "" && l.q.QType() == dns.TypeTXT {
			list = append(list, s)
		}
	}
	return grouped(list), nil
}

// ttl is the lower of a service's own TTL and what is left of its lease, which
// counts within limits.
func (l *lookup) ttl(own uint32, lease int64, known map[int64]int64) uint32 {
	left := int64(0)
	if lease != 0 {
		var ok bool
		if left, ok = known[lease]; !ok {
			left = l.store.remaining(l.ctx, lease)
			known[lease] = left
		}
	}
	if left > 0 {
		left = min(max(left, int64(l.minLease)), int64(l.maxLease))
	}
	switch {
	case left == 0 && own == 0:
		return defaultTTL
	case left == 0:
		return own
	case own == 0:
		return uint32(left)
	}
	return min(own, uint32(left))
}

// atName returns the services that answer a question for a name; the zone has
// its own below apex.dns.
func (l *lookup) atName(name string) ([]service, error) {
	if name == l.zone {
		if list, err := l.services(join("apex.dns", l.zone), false); err == nil {
			return list, nil
		}
	}
	return l.services(name, false)
}

func join(labels, zone string) string { return labels + "." + strings.TrimPrefix(zone, ".") }

// records returns the A, AAAA or TXT records of a name, with the aliases that
// lead to them. The owner is how the name is spelled in the answer.
func (l *lookup) records(owner string, qtype uint16, chain []string) (list []dns.RR, truncated bool, err error) {
	name := strings.ToLower(dns.Fqdn(owner))
	var services []service
	if qtype == dns.TypeTXT {
		services, err = l.services(name, false)
	} else {
		services, err = l.atName(name)
	}
	if err != nil {
		return nil, false, err
	}
	seen := make(map[string]bool)
	for i := range services {
		s := &services[i]
		kind, _ := s.kind()
		switch {
		case kind == dns.TypeCNAME:
			more, tc := l.alias(s, owner, name, qtype, chain)
			list = append(list, more...)
			truncated = truncated || tc
		case kind != qtype:
		case kind == dns.TypeTXT:
			if !seen[s.Text] {
				seen[s.Text] = true
				list = append(list, &dns.TXT{Hdr: s.header(owner, kind), Txt: s.texts()})
			}
		case !seen[s.Host]:
			seen[s.Host] = true
			list = append(list, s.address(owner))
		}
	}
	return list, truncated, nil
}

// alias returns an alias with what it leads to, inside the zone or elsewhere;
// nothing when that is nothing, or when it leads to itself.
func (l *lookup) alias(s *service, owner, name string, qtype uint16, chain []string) ([]dns.RR, bool) {
	target := dns.Fqdn(s.Host)
	lower := strings.ToLower(target)
	if plugin.InZone(lower, name) || len(chain) > maxAliases {
		return nil, false // names below would find themselves again
	}
	for _, c := range chain {
		if c == lower {
			return nil, false
		}
	}
	c := &dns.CNAME{Hdr: s.header(owner, dns.TypeCNAME), Target: target}
	if plugin.InZone(lower, l.zone) {
		more, tc, err := l.records(target, qtype, append(chain, lower))
		if err != nil || len(more) == 0 {
			return nil, tc
		}
		return append([]dns.RR{c}, more...), tc
	}
	m, err := plugin.Lookup(l.ctx, l.q.W, l.q.Req, target, qtype)
	if err != nil {
		return nil, false
	}
	return append([]dns.RR{c}, m.Answer...), m.Truncated
}

// srv returns the SRV records of a name, with the addresses of their targets.
// The weights of a priority become shares of 100.
func (l *lookup) srv() (list, extra []dns.RR, err error) {
	services, err := l.services(l.q.Name(), false)
	if err != nil {
		return nil, nil, err
	}
	weightOf := func(s *service) int {
		if s.Weight == 0 {
			return 100
		}
		return s.Weight
	}
	sums := make(map[int]int)
	for i := range services {
		sums[services[i].Priority] += weightOf(&services[i])
	}
	t := newTargets(l)
	for i := range services {
		s := &services[i]
		if s.Port == -1 {
			continue
		}
		weight := 100.0 / float64(sums[s.Priority]) * float64(weightOf(s))
		rr := &dns.SRV{
			Hdr:      s.header(l.q.QName(), dns.TypeSRV),
			Priority: uint16(s.Priority), Weight: max(uint16(weight), 1), Port: uint16(s.Port), Target: s.target(),
		}
		if t.add(s, rr.Target, int(rr.Port)) {
			list = append(list, rr)
		}
	}
	return list, t.extra, nil
}

// mx returns the MX records of a name, with the addresses of their targets.
func (l *lookup) mx() (list, extra []dns.RR, err error) {
	services, err := l.services(l.q.Name(), false)
	if err != nil {
		return nil, nil, err
	}
	t := newTargets(l)
	for i := range services {
		s := &services[i]
		if !s.Mail {
			continue
		}
		rr := &dns.MX{Hdr: s.header(l.q.QName(), dns.TypeMX), Preference: uint16(s.Priority), Mx: s.target()}
		if t.add(s, rr.Mx, int(rr.Preference)) {
			list = append(list, rr)
		}
	}
	return list, t.extra, nil
}

// targets collects the addresses of what records point to, each once.
type targets struct {
	*lookup
	records   map[string]bool // target and number
	addresses map[string]bool // target and address, or the target alone
	extra     []dns.RR
}

func newTargets(l *lookup) *targets {
	return &targets{lookup: l, records: make(map[string]bool), addresses: make(map[string]bool)}
}

// add tells whether a record for a service is to be added: services that share
// a key's name share it with each number, a port or preference.
func (t *targets) add(s *service, target string, number int) bool {
	kind, _ := s.kind()
	if kind == dns.TypeTXT {
		return false
	}
	if kind == dns.TypeCNAME {
		if !t.addresses[target] {
			t.addresses[target] = true
			t.resolve(target)
		}
		return true
	}
	if at := target + " " + s.Host; !t.addresses[at] {
		t.addresses[at] = true
		t.extra = append(t.extra, s.address(target))
	}
	record := fmt.Sprint(target, " ", number)
	if t.records[record] {
		return false
	}
	t.records[record] = true
	return true
}

// resolve adds the addresses of a name.
func (t *targets) resolve(target string) {
	if plugin.InZone(strings.ToLower(target), t.zone) {
		if list, _, err := t.lookup.records(target, dns.TypeA, nil); err == nil {
			t.extra = append(t.extra, list...)
		}
		return
	}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m, err := plugin.Lookup(t.ctx, t.q.W, t.q.Req, target, qtype)
		if err != nil {
			continue
		}
		for _, rr := range m.Answer {
			if rr.Header().Rrtype == dns.TypeCNAME && qtype == dns.TypeAAAA {
				continue // there already
			}
			t.extra = append(t.extra, rr)
		}
	}
}

// exact returns the CNAME or PTR record exactly at the name asked for.
func (l *lookup) exact(qtype uint16) ([]dns.RR, error) {
	services, err := l.services(l.q.Name(), true)
	if err != nil {
		return nil, err
	}
	var list []dns.RR
	seen := make(map[string]bool)
	for i := range services {
		s := &services[i]
		if kind, _ := s.kind(); kind == dns.TypeA || kind == dns.TypeAAAA || seen[s.Host] {
			continue
		}
		seen[s.Host] = true
		if qtype == dns.TypePTR {
			list = append(list, &dns.PTR{Hdr: s.header(l.q.QName(), qtype), Ptr: dns.Fqdn(s.Host)})
			continue
		}
		return []dns.RR{&dns.CNAME{Hdr: s.header(l.q.QName(), qtype), Target: dns.Fqdn(s.Host)}}, nil
	}
	return list, nil
}

// nameServers returns the NS records of the zone, which live below ns.dns, with
// their addresses.
func (l *lookup) nameServers() (list, extra []dns.RR, err error) {
	services, err := l.services(join("ns.dns", l.zone), false)
	if err != nil {
		return nil, nil, err
	}
	seen := make(map[string]bool)
	for i := range services {
		s := &services[i]
		if kind, _ := s.kind(); kind != dns.TypeA && kind != dns.TypeAAAA {
			return nil, nil, fmt.Errorf("NS record must be an IP address: %s", s.Host)
		}
		target := s.target()
		extra = append(extra, s.address(target))
		if !seen[target] {
			seen[target] = true
			list = append(list, &dns.NS{Hdr: s.header(l.q.QName(), dns.TypeNS), Ns: target})
		}
	}
	return list, extra, nil
}
