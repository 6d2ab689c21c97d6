// Package loadbalance puts the addresses of answers in an order that spreads
// clients: at random, by weight, or with preferred networks first.
package loadbalance

import (
	"context"
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "loadbalance"

// handler reorders what the plugins below answer.
type handler struct {
	next    plugin.Handler
	weights *weights       // nil: round_robin
	prefer  []netip.Prefix // first in the list, first in the answer
}

func (h *handler) Name() string { return name }

// ServeDNS passes the query on and reorders the reply.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure(name, h.next, ctx, &writer{ResponseWriter: w, handler: h}, r)
}

// ServeDirect asks for shuffled addresses. Orders that look at more than
// chance, and MX records, which have no direct shuffle, take the chain.
func (h *handler) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	if h.weights != nil || h.prefer != nil || q.Type == dns.TypeMX {
		return plugin.Chain
	}
	a.Shuffle = true
	return plugin.Next
}

// writer reorders messages on their way to the client.
type writer struct {
	dns.ResponseWriter
	handler *handler
}

// WriteMsg reorders successful replies that are no zone transfer.
func (w *writer) WriteMsg(m *dns.Msg) error {
	if m.Rcode != dns.RcodeSuccess || len(m.Question) > 0 && (m.Question[0].Qtype == dns.TypeAXFR || m.Question[0].Qtype == dns.TypeIXFR) {
		return w.ResponseWriter.WriteMsg(m)
	}
	out := *m // m may belong to a cache
	if w.handler.weights != nil {
		w.handler.weights.order(&out)
	} else {
		out.Answer, out.Ns, out.Extra = roundRobin(m.Answer), roundRobin(m.Ns), roundRobin(m.Extra)
	}
	if w.handler.prefer != nil {
		out.Answer = preferred(out.Answer, w.handler.prefer)
	}
	return w.ResponseWriter.WriteMsg(&out)
}

// roundRobin returns CNAMEs, other records, addresses, MX: the first two as
// they were, the others each shuffled.
func roundRobin(in []dns.RR) []dns.RR {
	if len(in) < 2 {
		return in
	}
	p := partition(in)
	shuffle(p.addresses)
	shuffle(p.mx)
	return p.join(p.cnames, p.rest, p.addresses, p.mx)
}

// preferred returns CNAMEs, addresses with those of the networks first, in the
// networks' order, MX, other records.
func preferred(in []dns.RR, networks []netip.Prefix) []dns.RR {
	if len(in) < 2 {
		return in
	}
	p := partition(in)
	var first []dns.RR
	left := p.addresses
	for _, n := range networks {
		var rest []dns.RR
		for _, rr := range left {
			if n.Contains(addressOf(rr)) {
				first = append(first, rr)
			} else {
				rest = append(rest, rr)
			}
		}
		left = rest
	}
	return p.join(p.cnames, append(first, left...), p.mx, p.rest)
}

type parts struct {
	cnames, addresses, mx, rest []dns.RR
	total                       int
}

func partition(in []dns.RR) parts {
	p := parts{total: len(in)}
	for _, rr := range in {
		switch rr.Header().Rrtype {
		case dns.TypeCNAME:
			p.cnames = append(p.cnames, rr)
		case dns.TypeA, dns.TypeAAAA:
			p.addresses = append(p.addresses, rr)
		case dns.TypeMX:
			p.mx = append(p.mx, rr)
		default:
			p.rest = append(p.rest, rr)
		}
	}
	return p
}

func (p parts) join(lists ...[]dns.RR) []dns.RR {
	out := make([]dns.RR, 0, p.total)
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

func shuffle(list []dns.RR) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

func addressOf(rr dns.RR) netip.Addr {
	var a netip.Addr
	switch rr := rr.(type) {
	case *dns.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	return a.Unmap()
}
