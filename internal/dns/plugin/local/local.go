// Package local answers for names that must not leave the host: localhost and
// the reverse zones of 0/8, 127/8 and 255/8 (RFC 6761, RFC 6303).
package local

import (
	"context"
	"net"
	"strings"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "local"

type handler struct {
	next    plugin.Handler
	prefix  bool // localhost.* is localhost too
	counter prometheus.Counter
	zones   plugin.Zones
	scope   scope.Scope
}

// Setup reads:
//
//	local {
//	    localhost_prefix on|off
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	zones := plugin.Zones{"localhost.", "0.in-addr.arpa.", "127.in-addr.arpa.", "255.in-addr.arpa."}
	h := &handler{prefix: true, zones: zones, scope: scope.Of(zones...)}
	for _, d := range lines {
		if err := d.Want(0, 0, "no argument"); err != nil {
			return nil, err
		}
		for _, p := range d.Block {
			if p.Name.Text != "localhost_prefix" {
				return nil, corefile.Unknown("property of local", p.Name, "localhost_prefix")
			}
			if err := p.Want(1, 1, "on or off"); err != nil {
				return nil, err
			}
			if err := p.Args[0].OneOf("value of localhost_prefix", "on", "off"); err != nil {
				return nil, err
			}
			h.prefix = p.Args[0].Text == "on"
		}
	}
	h.counter = plugin.Register(b.Env.Registry, prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "coredns", Subsystem: "local", Name: "localhost_requests_total",
		Help: "Queries for names under localhost, or beginning with it.",
	}))
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) Name() string { return name }

// ttl is a week, as RFC 6303 §3 has it.
const ttl = 604800

// ServeDNS answers for the local names.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if q.Name() != "localhost." && (strings.HasSuffix(q.Name(), ".localhost.") || h.prefix && strings.HasPrefix(q.Name(), "localhost.")) {
		h.counter.Inc()
		m := new(dns.Msg)
		m.SetReply(r)
		if m.Answer = loopback(q); m.Answer == nil {
			m.Ns = soa(q.QName())
		}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	zone := h.zones.Matches(q.Name())
	if zone == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	apex := q.QName()[len(q.QName())-len(zone):] // as the asker spells it
	switch {
	case q.Name() == zone:
		m.Answer = apexRecords(q)
	case q.Name() == "1.0.0.127.in-addr.arpa.":
		if q.QType() == dns.TypePTR {
			m.Answer = []dns.RR{&dns.PTR{Hdr: header(q.QName(), dns.TypePTR), Ptr: "localhost."}}
		}
	default:
		m.Rcode = dns.RcodeNameError
	}
	if m.Answer == nil {
		m.Ns = soa(apex)
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func loopback(q *plugin.Request) []dns.RR {
	switch q.QType() {
	case dns.TypeA:
		return []dns.RR{&dns.A{Hdr: header(q.QName(), dns.TypeA), A: net.IPv4(127, 0, 0, 1)}}
	case dns.TypeAAAA:
		return []dns.RR{&dns.AAAA{Hdr: header(q.QName(), dns.TypeAAAA), AAAA: net.IPv6loopback}}
	}
	return nil
}

func apexRecords(q *plugin.Request) []dns.RR {
	switch q.QType() {
	case dns.TypeSOA:
		return soa(q.QName())
	case dns.TypeNS:
		return []dns.RR{&dns.NS{Hdr: header(q.QName(), dns.TypeNS), Ns: "localhost."}}
	}
	if q.Name() == "localhost." {
		return loopback(q)
	}
	return nil
}

func soa(owner string) []dns.RR {
	return []dns.RR{&dns.SOA{Hdr: header(owner, dns.TypeSOA), Ns: "localhost.", Mbox: "root.localhost.", Serial: 1, Minttl: ttl}}
}

// ServeDirect lets all other names pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if h.scope.Has(q) || h.prefix && q.Labels() > 0 && string(q.Label(0)) == "localhost" {
		return plugin.Chain
	}
	return plugin.Next
}
