// Package etcd answers from etcd, where services are kept in SkyDNS's layout.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "etcd"

type options struct {
	zones              plugin.Zones
	prefix             string
	endpoints          []string
	tls                *tls.Config
	user, password     string
	fall               plugin.Fall
	minLease, maxLease uint32 // limits of a lease as TTL
}

type handler struct {
	options
	line  string // a hash of the Corefile's line
	next  plugin.Handler
	store *store // from start to stop
}

func (h *handler) Name() string { return name }

// Source tells which etcd is asked: what has been cached of it is forgotten
// when it changes.
func (h *handler) Source() string { return h.line }

// ServeDNS answers for names in the zones.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	zone := h.zones.Matches(q.Name())
	if zone == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	l := &lookup{handler: h, ctx: ctx, q: q, zone: zone}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	err := l.answer(m)
	switch {
	case errors.Is(err, errNotFound):
		if h.fall.Through(q.Name()) {
			return plugin.NextOrFailure(name, h.next, ctx, w, r)
		}
		m.Rcode, err = dns.RcodeNameError, nil
	case err != nil:
		m.Rcode = dns.RcodeServerFailure
		err = plugin.Error(name, err)
	}
	if m.Rcode != dns.RcodeSuccess {
		m.Answer, m.Extra = nil, nil
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa(zone)}
	}
	if werr := w.WriteMsg(m); err == nil {
		err = werr
	}
	return dns.RcodeSuccess, err
}

// answer fills m.
func (l *lookup) answer(m *dns.Msg) (err error) {
	switch t := l.q.QType(); {
	case t == dns.TypeA, t == dns.TypeAAAA, t == dns.TypeTXT:
		m.Answer, m.Truncated, err = l.records(l.q.QName(), t, nil)
	case t == dns.TypeCNAME, t == dns.TypePTR:
		m.Answer, err = l.exact(t)
	case t == dns.TypeMX:
		m.Answer, m.Extra, err = l.mx()
	case t == dns.TypeSRV:
		m.Answer, m.Extra, err = l.srv()
	case t == dns.TypeSOA:
		m.Answer = []dns.RR{soa(l.zone)}
	case t == dns.TypeNS && l.q.Name() == l.zone:
		m.Answer, m.Extra, err = l.nameServers()
	default:
		_, err = l.atName(l.q.Name()) // whether the name exists
	}
	return err
}

// soa is made up; etcd has no serial for a zone.
func soa(zone string) *dns.SOA {
	const ttl = 30
	return &dns.SOA{
		Hdr:  dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Mbox: join("hostmaster", zone), Ns: join("ns.dns", zone),
		Serial: uint32(time.Now().Unix()), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
