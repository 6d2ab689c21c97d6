// Package rewrite changes queries on their way in, and replies on their way
// out so that clients find in them what they asked for.
package rewrite

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "rewrite"

type handler struct {
	next  plugin.Handler
	log   *slog.Logger
	rules []rule
}

// rule is one rewrite line.
type rule struct {
	rewriter
	goOn bool // continue: later rules are looked at too
}

// rewriter is what a rule does.
type rewriter interface {
	// rewrite changes the query if the rule fits it, and returns how the
	// reply is to be changed. The query may be changed in place but for its
	// OPT record, which query.opt gives a copy of.
	rewrite(ctx context.Context, q *query) (answers []answer, fits bool)
	// mayFit tells, without knowing for sure, whether the rule fits.
	mayFit(q *wire.Query) bool
}

// answer changes a reply.
type answer interface {
	// record changes one record; it is called for all but OPT.
	record(rr dns.RR)
	// message changes the rest.
	message(m *dns.Msg)
}

// query is a query while rules are applied to it.
type query struct {
	plugin.Request
	original dns.Question
	extra    []dns.RR // as the query came
	copied   bool     // the additional section is a copy
	edns     []ednsChange
}

// opt returns an OPT record of the query that may be changed, made if there is
// none.
func (q *query) opt() *dns.OPT {
	if !q.copied {
		q.copied = true
		q.Req.Extra = make([]dns.RR, len(q.extra))
		for i, rr := range q.extra {
			q.Req.Extra[i] = dns.Copy(rr)
		}
	}
	if q.Req.IsEdns0() == nil {
		q.Req.SetEdns0(4096, false)
	}
	return q.Req.IsEdns0()
}

// restore makes the query what it was.
func (q *query) restore() {
	q.Req.Question[0] = q.original
	q.Req.Extra = q.extra
}

func (h *handler) Name() string { return name }

// ServeDNS applies the rules in order, up to the first that fits and does not
// say continue.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &query{Request: plugin.Request{W: w, Req: r}, original: r.Question[0], extra: r.Extra}
	defer q.restore()
	var answers []answer
	for i := range h.rules {
		more, fits := h.rules[i].rewrite(ctx, q)
		if !fits {
			continue
		}
		if _, ok := dns.IsDomainName(r.Question[0].Name); !ok {
			return dns.RcodeServerFailure, fmt.Errorf("invalid name after rewrite: %s", r.Question[0].Name)
		}
		q.Forget()
		answers = append(answers, more...)
		if !h.rules[i].goOn {
			return h.ask(ctx, q, answers)
		}
	}
	if len(answers) == 0 && r.Question[0] == q.original && !q.copied {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	return h.ask(ctx, q, answers)
}

// ask passes the changed query on. A reply that the server would write itself
// is written here, since it would know nothing of the rules.
func (h *handler) ask(ctx context.Context, q *query, answers []answer) (int, error) {
	w := &writer{ResponseWriter: q.W, query: q, answers: answers}
	rcode, err := plugin.NextOrFailure(name, h.next, ctx, w, q.Req)
	if plugin.ClientWrite(rcode) {
		return rcode, err
	}
	m := new(dns.Msg)
	m.SetRcode(q.Req, rcode)
	if werr := w.WriteMsg(m); werr != nil && err == nil {
		err = werr
	}
	return dns.RcodeSuccess, err
}

// ServeDirect lets queries pass that no rule can fit.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	for i := range h.rules {
		if h.rules[i].mayFit(q) {
			return plugin.Chain
		}
	}
	return plugin.Next
}

// writer changes replies.
type writer struct {
	dns.ResponseWriter
	query   *query
	answers []answer
}

// WriteMsg gives a copy of m the client's question, applies the answers, the
// last first, and writes it. The copy is for records that others hold too.
func (w *writer) WriteMsg(m *dns.Msg) error {
	m = m.Copy()
	m.Question = []dns.Question{w.query.original}
	for i := len(w.answers) - 1; i >= 0; i-- {
		a := w.answers[i]
		for _, section := range [][]dns.RR{m.Ns, m.Answer, m.Extra} {
			for _, rr := range section {
				if rr.Header().Rrtype != dns.TypeOPT {
					a.record(rr)
				}
			}
		}
		a.message(m)
	}
	w.query.revertEDNS(m)
	return w.ResponseWriter.WriteMsg(m)
}
