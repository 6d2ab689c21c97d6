// Package log writes a line per query.
package log

import (
	"context"
	"log/slog"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "log"

type handler struct {
	next  plugin.Handler
	log   *slog.Logger
	rules []rule
	scope scope.Scope // of all rules
}

// rule says which replies to names of a zone are logged, and how.
type rule struct {
	zone    string
	classes classes
	format  []piece
}

func (h *handler) Name() string { return name }

// ServeDNS logs by the first rule whose zone the name is in.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	for i := range h.rules {
		if plugin.InZone(q.Name(), h.rules[i].zone) {
			return h.logged(ctx, &h.rules[i], q)
		}
	}
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

func (h *handler) logged(ctx context.Context, rule *rule, q *plugin.Request) (int, error) {
	start := plugin.Received(ctx)
	rec := plugin.NewRecorder(q.W)
	rcode, err := plugin.NextOrFailure(name, h.next, ctx, rec, q.Req)
	m := rec.Msg
	if m == nil && !plugin.ClientWrite(rcode) {
		// The server will answer with the code alone.
		m = new(dns.Msg)
		m.SetRcode(q.Req, rcode)
		rec.Len = m.Len()
	}
	kind := reply.KindOf(m, start)
	if !rule.classes.has(kind.Class()) {
		return rcode, err
	}
	metadata.Set(ctx, "log/type", kind.String)
	metadata.Set(ctx, "log/class", kind.Class().String)
	l := line{ctx: ctx, q: q, reply: m, size: rec.Len, took: time.Since(start)}
	buf := make([]byte, 0, 256)
	for i := range rule.format {
		buf = rule.format[i].append(buf, &l)
	}
	h.log.Info(string(buf))
	return rcode, err
}

// ServeDirect sends queries that may have to be logged through the chain: the
// line tells things that only a message has.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if h.scope.Has(q) {
		return plugin.Chain
	}
	return plugin.Next
}
