package cache

import (
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
)

// kindOf is reply.KindOf, except that a chain of aliases which ends without the
// type asked for is NODATA if the zone's SOA is there (RFC 2308 §2.2).
func kindOf(m *dns.Msg, now time.Time) reply.Kind {
	k := reply.KindOf(m, now)
	if k == reply.Positive && len(m.Answer) > 0 && hasSOA(m) && !answersQuestion(m) {
		return reply.NoData
	}
	return k
}

// cacheable tells whether a reply of kind k may be kept at all.
func cacheable(m *dns.Msg, k reply.Kind) bool {
	switch k {
	case reply.OtherError, reply.Meta, reply.Update:
		return false
	case reply.NoName:
		return !m.Truncated && hasSOA(m) // without it nothing says for how long (RFC 2308 §5)
	case reply.Positive:
		// An unfinished chain of aliases is no answer, and without SOA there
		// is no time for it. An empty answer may be one that is elsewhere.
		if len(m.Answer) > 0 && !hasSOA(m) && !answersQuestion(m) {
			return false
		}
	}
	return !m.Truncated
}

func hasSOA(m *dns.Msg) bool {
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return true
		}
	}
	return false
}

// answersQuestion tells whether the answer section has a record of the type
// asked for, at the name asked for or where its aliases lead (RFC 1034 §3.6.2).
func answersQuestion(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || len(m.Question) == 0 {
		return false
	}
	q := m.Question[0]
	at := func(rr dns.RR, name string) bool {
		return (q.Qclass == dns.ClassANY || rr.Header().Class == q.Qclass) && strings.EqualFold(rr.Header().Name, name)
	}
	name := q.Name
	// A chain that is longer than the section goes in a circle.
	for range len(m.Answer) + 1 {
		alias := ""
		for _, rr := range m.Answer {
			if !at(rr, name) {
				continue
			}
			if q.Qtype == dns.TypeANY {
				return true
			}
			if c, ok := rr.(*dns.CNAME); ok {
				if alias != "" && !strings.EqualFold(alias, c.Target) {
					return false // two canonical names (RFC 2181 §10.1)
				}
				alias = c.Target
			}
		}
		switch {
		case q.Qtype == dns.TypeANY:
			return false
		case q.Qtype == dns.TypeCNAME:
			return alias != ""
		case alias != "":
			name = alias
			continue
		}
		for _, rr := range m.Answer {
			if at(rr, name) && rr.Header().Rrtype == q.Qtype {
				return true
			}
		}
		return false
	}
	return false
}

// lowestTTL is the lowest TTL in m, at most limit; kinds that carry no data and
// replies without records have noDataTTL.
func lowestTTL(m *dns.Msg, k reply.Kind, limit time.Duration) time.Duration {
	if k != reply.Positive && k != reply.NoName && k != reply.NoData {
		return noDataTTL
	}
	n := 0
	lowest := uint32(limit / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue // its TTL field is something else
			}
			n++
			lowest = min(lowest, rr.Header().Ttl)
		}
	}
	if n == 0 {
		return noDataTTL
	}
	return time.Duration(lowest) * time.Second
}

const noDataTTL = 5 * time.Second

// prepare removes OPT records, which are between neighbours only, and sets all
// TTLs.
func prepare(m *dns.Msg, ttl uint32) {
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		kept := (*section)[:0]
		for _, rr := range *section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			rr.Header().Ttl = ttl
			kept = append(kept, rr)
		}
		*section = kept
	}
}
