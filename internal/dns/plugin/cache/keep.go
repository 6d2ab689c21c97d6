package cache

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// keeper is the ResponseWriter of a query that was not in the cache: it keeps
// the reply on its way to the client.
type keeper struct {
	dns.ResponseWriter
	handler *handler
	ctx     context.Context // of the query: who replied
	req     *dns.Msg
	asked   question
	ad      bool // the client asked for authenticated data
	refresh bool // drops a denial that the reply replaces
}

// WriteMsg keeps m if it may be kept and passes it on with the TTLs it is kept
// with.
func (k *keeper) WriteMsg(m *dns.Msg) error {
	if k.local() {
		return k.ResponseWriter.WriteMsg(m)
	}
	k.handler.keep(plugin.OriginOf(k.ctx), k.asked, m, matches(m, k.req), k.refresh)
	if !k.asked.do && !k.ad {
		m.AuthenticatedData = false
	}
	return k.ResponseWriter.WriteMsg(m)
}

// Write passes raw bytes on.
func (k *keeper) Write(b []byte) (int, error) { return k.ResponseWriter.Write(b) }

// local tells whether the reply comes from data of this server's own.
func (k *keeper) local() bool {
	t := plugin.TraceOf(k.ctx)
	return t != nil && k.handler.block.Effect(t.Reached()) == plugin.Local
}

// Keep keeps a reply that was relayed.
func (h *handler) Keep(o *plugin.Origin, q *wire.Query, m *dns.Msg) {
	c := h.metrics.of(o)
	c.requests.Inc()
	c.misses.Inc()
	// Its question is q's: the relay has compared them.
	h.keep(o, question{name: string(q.Name), qtype: q.Type, qclass: q.Class, do: q.DO, cd: q.CD}, m, true, false)
	if !q.DO && !q.AD {
		m.AuthenticatedData = false
	}
}

// owned is the keeper of a name that has an entry but is in data of this
// server's own.
type owned struct{ *handler }

func (h owned) Keep(o *plugin.Origin, q *wire.Query, m *dns.Msg) {
	h.metrics.of(o).fresh.Inc()
	h.handler.Keep(o, q, m)
}

// keep keeps m, the reply to the question asked, if it may be kept, and gives
// it the TTLs it is kept with. Matches tells whether its question is that one;
// refresh drops a denial that the reply replaces.
func (h *handler) keep(o *plugin.Origin, asked question, m *dns.Msg, matches, refresh bool) {
	now := h.now()
	kind := kindOf(m, now)
	keep := cacheable(m, kind) // looks at the OPT record, which goes now
	class, st := &h.success, h.stores.success
	ttl := h.servfail
	switch kind {
	case reply.NoName, reply.NoData:
		class, st = &h.denial, h.stores.denial
		ttl = class.clamp(lowestTTL(m, kind, class.ttl))
	case reply.ServerError:
		class, st = &h.denial, h.stores.denial
	default:
		ttl = class.clamp(lowestTTL(m, kind, class.ttl))
	}
	prepare(m, uint32(ttl/time.Second))
	if !keep || ttl < time.Second {
		return
	}
	c := h.metrics.of(o)
	if !matches {
		c.drops.Inc()
		return
	}
	if qname := strings.ToLower(m.Question[0].Name); class.disabled.Matches(qname) != "" {
		return
	}
	e := newEntry(asked, m, uint32(ttl/time.Second), now)
	if e == nil {
		return
	}
	positive := st == h.stores.success
	if positive && h.preferPositive && !e.answers {
		if old := st.get([]byte(e.name), e.qtype, e.qclass, e.do, e.cd); old != nil {
			if e.lastGood = old; !old.answers {
				e.lastGood = old.lastGood
			}
		}
	}
	kindOfStore := 1
	if positive {
		kindOfStore = 0
	}
	c.evictions[kindOfStore].Add(float64(st.put(e)))
	if positive && (h.preferPositive && e.answers || !h.preferPositive && refresh) {
		h.stores.denial.remove(asked)
	}
	c.held(h.stores)
}

func (c *class) clamp(ttl time.Duration) time.Duration { return min(max(ttl, c.minTTL), c.ttl) }

// matches tells whether m is a reply to r's question.
func matches(m, r *dns.Msg) bool {
	if !m.Response || len(m.Question) != 1 {
		return false
	}
	got, want := m.Question[0], r.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}
