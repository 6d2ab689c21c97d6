// Package dns64 gives names that have only IPv4 addresses IPv6 addresses that
// a NAT64 translates (RFC 6147).
package dns64

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "dns64"

type handler struct {
	next       plugin.Handler
	prefix     netip.Prefix
	all        bool // also names that have IPv6 addresses
	ipv4       bool // also for clients that ask over IPv4
	translated *prometheus.CounterVec
}

// Setup reads:
//
//	dns64 [PREFIX] {
//	    prefix PREFIX
//	    translate_all
//	    allow_ipv4
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{prefix: netip.MustParsePrefix("64:ff9b::/96")} // RFC 6052 §2.1
	for _, d := range lines {
		if err := d.Want(0, 1, "nothing, or a prefix"); err != nil {
			return nil, err
		}
		if len(d.Args) == 1 {
			if err := h.setPrefix(d.Args[0]); err != nil {
				return nil, err
			}
		}
		for _, p := range d.Block {
			if err := h.property(p); err != nil {
				return nil, err
			}
		}
	}
	h.translated = plugin.Register(b.Env.Registry, prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "coredns", Subsystem: "dns64", Name: "requests_translated_total",
		Help: "Queries that were answered with translated addresses.",
	}, []string{"server"}))
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) property(p corefile.Directive) error {
	switch p.Name.Text {
	case "prefix":
		if err := p.Want(1, 1, "a prefix"); err != nil {
			return err
		}
		return h.setPrefix(p.Args[0])
	case "translate_all":
		h.all = true
		return p.Flag()
	case "allow_ipv4":
		h.ipv4 = true
		return p.Flag()
	}
	return corefile.Unknown("property of dns64", p.Name, "prefix", "translate_all", "allow_ipv4")
}

func (h *handler) setPrefix(t corefile.Token) error {
	p, err := netip.ParsePrefix(t.Text)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits()%8 != 0 || p.Bits() < 32 || p.Bits() > 96 {
		e := corefile.Errorf(t, "%q is no prefix for translated addresses", t.Text)
		e.Expected = "an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052)"
		return e
	}
	h.prefix = p.Masked()
	return nil
}

func (h *handler) Name() string { return name }

// ServeDNS asks for IPv4 addresses when the next plugins know none of IPv6.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if q.QType() != dns.TypeAAAA || q.QClass() != dns.ClassINET || !h.ipv4 && q.Family() == 1 {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	first := &plugin.Capture{ResponseWriter: w}
	rcode, err := plugin.NextOrFailure(name, h.next, ctx, first, r)
	if first.Msg == nil {
		return rcode, err
	}
	if !h.applies(first.Msg) {
		return rcode, join(err, w.WriteMsg(first.Msg))
	}
	m, err := plugin.Lookup(ctx, w, r, q.Name(), dns.TypeA)
	if err != nil {
		return dns.RcodeServerFailure, plugin.Error(name, err)
	}
	h.translated.WithLabelValues(plugin.OriginOf(ctx).Server).Inc()
	return dns.RcodeSuccess, w.WriteMsg(h.synthesize(r, first.Msg, m))
}

func join(err, werr error) error {
	if err != nil {
		return err
	}
	return werr
}

// applies tells whether a reply is to be replaced: not if the name does not
// exist, or has IPv6 addresses (RFC 6147 §5.1).
func (h *handler) applies(m *dns.Msg) bool {
	if reply.KindOf(m, time.Now()) == reply.NoName {
		return false
	}
	if h.all {
		return true
	}
	for _, rr := range m.Answer {
		if rr.Header().Rrtype == dns.TypeAAAA {
			return false
		}
	}
	return true
}

// synthesize makes the reply: translated addresses, whose TTL is not longer
// than that of the denial (RFC 6147 §5.1.7), and all other records as they are.
func (h *handler) synthesize(r, denial, m *dns.Msg) *dns.Msg {
	limit := uint32(600)
	for _, rr := range denial.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			limit = soa.Hdr.Ttl
		}
	}
	out := new(dns.Msg)
	out.SetReply(r)
	out.Truncated = m.Truncated
	out.Ns = m.Ns
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // that was between this server and the other
			out.Extra = append(out.Extra, rr)
		}
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			rr = &dns.AAAA{
				Hdr:  dns.RR_Header{Name: a.Hdr.Name, Rrtype: dns.TypeAAAA, Class: a.Hdr.Class, Ttl: min(a.Hdr.Ttl, limit)},
				AAAA: embed(h.prefix, a.A.To4()),
			}
		}
		out.Answer = append(out.Answer, rr)
	}
	return out
}

// embed puts an IPv4 address behind the prefix, leaving octet 8 zero (RFC 6052
// §2.2).
func embed(prefix netip.Prefix, v4 net.IP) net.IP {
	a := prefix.Addr().As16()
	at := prefix.Bits() / 8
	for _, b := range v4 {
		if at == 8 {
			at++
		}
		a[at] = b
		at++
	}
	return a[:]
}

// ServeDirect lets what is not translated pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if q.Type == dns.TypeAAAA && (h.ipv4 || q.IPv6()) {
		return plugin.Chain
	}
	return plugin.Next
}
