// Package prometheus counts queries and serves the metrics of the whole
// process, under CoreDNS's names.
//
// counters.go is what counting costs, collector.go what a scrape sees,
// serve.go the HTTP server; this file hangs them into the chain of plugins and
// the direct path.
package prometheus

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "prometheus"

// handler counts the queries of one server block.
type handler struct {
	next plugin.Handler
	all  *collector

	mu   sync.Mutex
	sets atomic.Pointer[map[*plugin.Origin]*set] // grows; a handful per block
}

func (h *handler) Name() string { return name }

// ServeDNS counts what the plugins below answer.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	start := plugin.Received(ctx)
	state := plugin.Request{W: w, Req: r}
	q := requestOf(&state)
	rec := plugin.NewRecorder(w)
	rcode, err := plugin.NextOrFailure(name, h.next, ctx, rec, r)
	q.rcode, q.responseSize = rcode, rec.Len
	if plugin.ClientWrite(rcode) {
		q.rcode = rec.Rcode
		if t := plugin.TraceOf(ctx); t != nil && rec.Msg != nil {
			q.plugin = t.Reached()
		}
	}
	q.took = time.Since(start)
	h.setOf(plugin.OriginOf(ctx)).count(int(rand.Uint32()>>1), q)
	return rcode, err
}

// requestOf reads the request before a plugin can change it.
func requestOf(state *plugin.Request) seen {
	return seen{
		tcp: state.Proto() == "tcp", ipv6: state.Family() == 2, do: state.Do(),
		qtype: state.QType(), requestSize: state.Req.Len(),
	}
}

// ObserveDirect counts a query that was answered on the direct path.
func (h *handler) ObserveDirect(o *plugin.Origin, answeredBy string, q *wire.Query, a *wire.Answer) {
	h.setOf(o).count(q.Worker, seen{
		tcp: q.TCP, ipv6: q.IPv6(), do: q.DO, qtype: q.Type,
		requestSize: len(q.Raw), responseSize: a.Len(),
		rcode: int(a.Rcode), plugin: answeredBy, took: time.Since(q.Received),
	})
}

// ObserveDrop counts a query that no server block took.
func (h *handler) ObserveDrop(o *plugin.Origin, w dns.ResponseWriter, r *dns.Msg, rcode int) {
	state := plugin.Request{W: w, Req: r}
	q := requestOf(&state)
	q.rcode, q.responseSize = rcode, q.requestSize
	h.all.set(labels{o.Server, o.Zone, o.View}).count(int(rand.Uint32()>>1), q)
}

// setOf returns the counters for an origin.
func (h *handler) setOf(o *plugin.Origin) *set {
	if m := h.sets.Load(); m != nil {
		if s := (*m)[o]; s != nil {
			return s
		}
	}
	s := h.all.set(labels{o.Server, o.Zone, o.View})
	if o.Serve == nil {
		return s // made for one query, not one that comes again
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[*plugin.Origin]*set{o: s}
	if m := h.sets.Load(); m != nil {
		for k, v := range *m {
			next[k] = v
		}
	}
	h.sets.Store(&next)
	return s
}

func itoa(n int) string { return strconv.Itoa(n) }
