// Package hosts answers from files in the format of /etc/hosts.
package hosts

import (
	"bytes"
	"context"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reverse"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "hosts"

type handler struct {
	next        plugin.Handler
	zones       plugin.Zones
	ttl         uint32
	fall        plugin.Fall
	unsupported bool // fallthrough_unsupported

	zoneScope, fallScope scope.Scope // zones and fall for the direct path

	source source
	table  atomic.Pointer[table]
}

func (h *handler) Name() string { return name }

// ServeDNS answers A, AAAA and PTR. A name that is known has no other records;
// there is no SOA to say so with.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if q.QType() == dns.TypePTR {
		// Reverse zones need not be among the zones, and an address that is
		// not known is always somebody else's.
		if names := h.lookupAddr(q.Name()); len(names) > 0 {
			return h.answer(q, h.pointers(q.Name(), names))
		}
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	if h.zones.Matches(q.Name()) == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	var found *addresses
	if key, ok := wireName(q.Name()); ok {
		found = h.table.Load().find([]byte(key))
	}
	switch {
	case found == nil && h.fall.Through(q.Name()), found != nil && h.passes(q.QType()):
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	case found == nil:
		// NXDOMAIN would need an SOA; this is what CoreDNS says instead.
		return dns.RcodeServerFailure, nil
	}
	return h.answer(q, h.records(q.Name(), q.QType(), found))
}

// passes tells whether a type is left to the next plugin even for known names.
func (h *handler) passes(qtype uint16) bool {
	return h.unsupported && qtype != dns.TypeA && qtype != dns.TypeAAAA
}

func (h *handler) answer(q *plugin.Request, records []dns.RR) (int, error) {
	m := new(dns.Msg)
	m.SetReply(q.Req)
	m.Authoritative = true
	m.Answer = records
	return dns.RcodeSuccess, q.W.WriteMsg(m)
}

func (h *handler) records(owner string, qtype uint16, found *addresses) []dns.RR {
	var list []dns.RR
	hdr := dns.RR_Header{Name: owner, Rrtype: qtype, Class: dns.ClassINET, Ttl: h.ttl}
	switch qtype {
	case dns.TypeA:
		for b := found.v4; len(b) > 0; b = b[4:] {
			list = append(list, &dns.A{Hdr: hdr, A: b[:4:4]})
		}
	case dns.TypeAAAA:
		for b := found.v6; len(b) > 0; b = b[16:] {
			list = append(list, &dns.AAAA{Hdr: hdr, AAAA: b[:16:16]})
		}
	}
	return list
}

func (h *handler) lookupAddr(reverseName string) []string {
	addr, ok := reverse.Addr(reverseName)
	if !ok {
		return nil
	}
	return h.table.Load().reverse[addr]
}

func (h *handler) pointers(owner string, names []string) []dns.RR {
	list := make([]dns.RR, len(names))
	for i, n := range names {
		list[i] = &dns.PTR{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: h.ttl}, Ptr: n}
	}
	return list
}

// ServeDirect is ServeDNS for addresses. Owner names are in lower case, so a
// question that is not takes the chain.
func (h *handler) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	switch {
	case q.Type == dns.TypePTR, q.Class != dns.ClassINET:
		return plugin.Chain
	case !h.zoneScope.Has(q):
		return plugin.Next
	}
	found := h.table.Load().find(q.Name)
	switch {
	case found == nil && h.fallScope.Has(q), found != nil && h.passes(q.Type):
		return plugin.Next
	case found == nil, string(q.Question[:len(q.Name)]) != string(q.Name):
		return plugin.Chain
	}
	switch q.Type {
	case dns.TypeA:
		a.Addresses(found.v4, 4, h.ttl)
	case dns.TypeAAAA:
		a.Addresses(found.v6, 16, h.ttl)
	}
	a.Authoritative = true
	return plugin.Answered
}

// Owns tells whether name (wire form, lower case) has addresses, or is that of
// one: what the cache knows of it is out of date then.
func (h *handler) Owns(name []byte) bool {
	if bytes.HasSuffix(name, []byte("\x04arpa\x00")) {
		text, _, err := dns.UnpackDomainName(name, 0)
		return err == nil && len(h.lookupAddr(text)) > 0
	}
	return h.table.Load().find(name) != nil
}
