// Package acl allows, refuses, empties or drops queries by who asks and for
// which type.
package acl

import (
	"context"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "acl"

type handler struct {
	next    plugin.Handler
	rules   []rule
	metrics *metrics
}

// rule is one acl line: the first of its policies that fits decides.
type rule struct {
	zones    plugin.Zones
	scope    scope.Scope
	policies []policy
}

type policy struct {
	action action
	types  []uint16 // empty: all
	nets   []netip.Prefix
	anyone bool
}

type action uint8

const (
	none action = iota // no policy fits
	allow
	block
	filter
	drop
)

var actions = map[string]action{"allow": allow, "block": block, "filter": filter, "drop": drop}

func (h *handler) Name() string { return name }

// ServeDNS goes through the rules whose zone the name is in, until a policy
// fits. An allowed query is not looked at by further rules.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	o := plugin.OriginOf(ctx)
	for i := range h.rules {
		zone := h.rules[i].zones.Matches(q.Name())
		if zone == "" {
			continue
		}
		switch h.rules[i].decide(q.Remote().Addr(), q.QType()) {
		case allow:
			h.metrics.allowed.WithLabelValues(o.Server, o.View).Inc()
			return plugin.NextOrFailure(name, h.next, ctx, w, r)
		case block:
			h.metrics.blocked.WithLabelValues(o.Server, zone, o.View).Inc()
			return refuse(w, r, dns.RcodeRefused, dns.ExtendedErrorCodeBlocked)
		case filter:
			h.metrics.filtered.WithLabelValues(o.Server, zone, o.View).Inc()
			return refuse(w, r, dns.RcodeSuccess, dns.ExtendedErrorCodeFiltered)
		case drop:
			h.metrics.dropped.WithLabelValues(o.Server, zone, o.View).Inc()
			return dns.RcodeSuccess, nil // as if written: nobody answers
		}
	}
	h.metrics.allowed.WithLabelValues(o.Server, o.View).Inc()
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

func (r *rule) decide(client netip.Addr, qtype uint16) action {
	client = client.WithZone("")
	for i := range r.policies {
		p := &r.policies[i]
		if len(p.types) > 0 && !slices.Contains(p.types, qtype) {
			continue
		}
		if p.anyone || slices.ContainsFunc(p.nets, func(n netip.Prefix) bool { return n.Contains(client) }) {
			return p.action
		}
	}
	return none
}

// refuse answers without records and says why (RFC 8914). The OPT record is
// there even for clients that sent none, as in CoreDNS.
func refuse(w dns.ResponseWriter, r *dns.Msg, rcode int, why uint16) (int, error) {
	m := new(dns.Msg)
	m.SetRcode(r, rcode)
	m.SetEdns0(4096, true)
	o := m.IsEdns0()
	o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: why})
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// ServeDirect lets allowed queries pass; the others take the chain.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	for i := range h.rules {
		if !h.rules[i].scope.Has(q) {
			continue
		}
		switch h.rules[i].decide(q.Remote.Addr().Unmap(), q.Type) {
		case none:
		case allow:
			return plugin.Next
		default:
			return plugin.Chain
		}
	}
	return plugin.Next
}

// ObserveDirect counts what ServeDirect let pass.
func (h *handler) ObserveDirect(o *plugin.Origin, _ string, _ *wire.Query, _ *wire.Answer) {
	h.metrics.allowed.WithLabelValues(o.Server, o.View).Inc()
}

// metrics keep CoreDNS's names and labels.
type metrics struct {
	allowed                    *prometheus.CounterVec // server, view
	blocked, filtered, dropped *prometheus.CounterVec // server, zone, view
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return plugin.Register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "coredns", Subsystem: "acl", Name: name, Help: help,
		}, labels))
	}
	return &metrics{
		allowed:  counter("allowed_requests_total", "Queries that were let pass.", "server", "view"),
		blocked:  counter("blocked_requests_total", "Queries that were refused.", "server", "zone", "view"),
		filtered: counter("filtered_requests_total", "Queries that were answered with nothing.", "server", "zone", "view"),
		dropped:  counter("dropped_requests_total", "Queries that were not answered.", "server", "zone", "view"),
	}
}
