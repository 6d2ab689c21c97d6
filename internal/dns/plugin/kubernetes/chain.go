package kubernetes

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// maxAliases is the longest chain of external names inside the zone (CoreDNS).
const maxAliases = 11

// ServeDNS answers as ServeDirect does, and what it leaves to the chain.
func (k *Kubernetes) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := plugin.Request{W: w, Req: r}
	m := new(dns.Msg)
	m.SetReply(r)
	d := drafts.Get().(*draft)
	defer drafts.Put(d)
	if err := d.ask(state.QName(), state.QType()); err != nil {
		return dns.RcodeServerFailure, plugin.Error(name, err)
	}
	switch outcome, err := k.find(d, m); {
	case err != nil:
		return dns.RcodeServerFailure, plugin.Error(name, err)
	case outcome == plugin.Next:
		return plugin.NextOrFailure(name, k.next, ctx, w, r)
	case outcome == plugin.Chain:
		if qt := state.QType(); qt == dns.TypeAXFR || qt == dns.TypeIXFR {
			return dns.RcodeRefused, nil
		}
		l := lookup{k: k, q: &d.q}
		l.place()
		if !k.rare(ctx, w, r, &l, m) {
			return plugin.NextOrFailure(name, k.next, ctx, w, r)
		}
	}
	_ = w.WriteMsg(m) // the client is gone or will ask again
	return dns.RcodeSuccess, nil
}

// draft is a query that did not come in as bytes, with room for its answer.
type draft struct {
	q      wire.Query
	a      *wire.Answer
	raw    [12 + 256 + 4]byte
	answer [2048]byte
}

var drafts = sync.Pool{New: func() any { return &draft{a: wire.NewAnswer(0)} }}

// ask makes a query of a name and type as if it had come over TCP, with no
// EDNS: the room for its answer is the largest.
func (d *draft) ask(qname string, qtype uint16) error {
	n, err := dns.PackDomainName(qname, d.raw[:], 12, nil, false)
	if err != nil {
		return err
	}
	d.raw[5] = 1
	d.q.TCP = true
	d.q.Parse(append(d.raw[:n], byte(qtype>>8), byte(qtype), 0, dns.ClassINET))
	return nil
}

// find puts the direct answer to d into m.
func (k *Kubernetes) find(d *draft, m *dns.Msg) (plugin.Outcome, error) {
	room := d.answer[:]
	for {
		d.a.Begin(&d.q, room)
		outcome := k.answer(&d.q, d.a)
		switch {
		case d.a.Overflow() && len(room) < whole:
			room = make([]byte, whole)
			continue
		case outcome != plugin.Answered:
			return outcome, nil
		}
		raw := d.a.Finish()
		if addressesOnly(&d.q, d.a, raw, m) {
			return outcome, nil
		}
		var got dns.Msg
		if err := got.Unpack(raw); err != nil {
			return outcome, err
		}
		m.Rcode, m.Authoritative, m.Truncated = got.Rcode, got.Authoritative, got.Truncated
		m.Answer, m.Ns, m.Extra = got.Answer, got.Ns, got.Extra
		return outcome, nil
	}
}

// addressesOnly unpacks the commonest answer, addresses of the asked name,
// with few allocations; false for any other.
func addressesOnly(q *wire.Query, a *wire.Answer, raw []byte, m *dns.Msg) bool {
	n := a.Count(wire.AnswerSection)
	if n == 0 || a.Count(wire.AuthoritySection)+a.Count(wire.AdditionalSection) > 0 || len(m.Question) == 0 {
		return false
	}
	at := 12 + len(q.Question)
	h := dns.RR_Header{Name: m.Question[0].Name, Rrtype: q.Type, Class: dns.ClassINET, Ttl: binary.BigEndian.Uint32(raw[at+6:])}
	switch q.Type {
	case dns.TypeA:
		records, ips := make([]dns.A, n), make([]byte, 4*n)
		m.Answer = make([]dns.RR, n)
		for i := range records {
			copy(ips[4*i:], raw[at+16*i+12:at+16*i+16])
			records[i] = dns.A{Hdr: h, A: ips[4*i : 4*i+4 : 4*i+4]}
			m.Answer[i] = &records[i]
		}
	case dns.TypeAAAA:
		records, ips := make([]dns.AAAA, n), make([]byte, 16*n)
		m.Answer = make([]dns.RR, n)
		for i := range records {
			copy(ips[16*i:], raw[at+28*i+12:at+28*i+28])
			records[i] = dns.AAAA{Hdr: h, AAAA: ips[16*i : 16*i+16 : 16*i+16]}
			m.Answer[i] = &records[i]
		}
	default:
		return false
	}
	m.Authoritative, m.Truncated = a.Authoritative, raw[2]&0x02 != 0
	return true
}

// place finds the zone of the query's name.
func (l *lookup) place() {
	for i := range l.k.zones {
		if n := l.q.Under(l.k.zones[i].wire); n >= 0 {
			l.n = n
			return
		}
	}
}

// zoneText is the zone in the asker's spelling.
func (l *lookup) zoneText() string {
	text, _, _ := dns.UnpackDomainName(l.zoneLabels(), 0)
	return text
}

// rare writes into m the answers that ServeDirect has no form for. It returns
// false when the query is the next plugin's.
func (k *Kubernetes) rare(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, l *lookup, m *dns.Msg) bool {
	state := plugin.Request{W: w, Req: r}
	m.Authoritative = true
	q := l.q
	switch {
	case l.n == 0:
		k.nameServers(l, m)
	case l.n == 2 && string(q.Label(1)) == "dns":
		if addrs := k.nsAddresses(l); q.Type == dns.TypeA || q.Type == dns.TypeAAAA {
			m.Answer = addressRecords(state.QName(), q.Type, k.ttl, addrs)
		}
	case string(q.Label(l.n-1)) == "pod":
		addr, _ := dashedAddr(q.Label(l.n - 3))
		// The port is 0: a quirk of CoreDNS's.
		target := string(q.Label(l.n-3)) + "." + string(q.Label(l.n-2)) + ".pod." + l.zoneText()
		m.Answer = []dns.RR{&dns.SRV{Hdr: k.header(state.QName(), dns.TypeSRV), Weight: 100, Target: target}}
		m.Extra = addressRecords(target, addrType(addr), k.ttl, []netip.Addr{addr})
	case l.n > 5:
		if !k.zonalAnswer(l, state.QName(), m) {
			return k.negative(l, m, dns.RcodeNameError)
		}
	default:
		k.alias(ctx, w, r, l, m)
	}
	if len(m.Answer) == 0 && m.Rcode == dns.RcodeSuccess {
		k.negative(l, m, dns.RcodeSuccess)
	}
	return true
}

// negative makes m a negative answer with the zone's SOA; false when the name
// falls through.
func (k *Kubernetes) negative(l *lookup, m *dns.Msg, rcode int) bool {
	if rcode == dns.RcodeNameError {
		for _, z := range k.fallthroughs {
			if l.q.Under(z) >= 0 {
				return false
			}
		}
		if !k.store.Synced() {
			rcode = dns.RcodeServerFailure
		}
	}
	m.Rcode = rcode
	zone := l.zoneText()
	m.Ns = []dns.RR{&dns.SOA{
		Hdr:     dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: min(k.ttl, 300)},
		Ns:      join("ns.dns", zone),
		Mbox:    join("hostmaster", zone),
		Serial:  k.serial(),
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: k.ttl,
	}}
	return true
}

func join(labels, zone string) string {
	if zone == "." {
		return labels + "."
	}
	return labels + "." + zone
}

func (k *Kubernetes) header(owner string, qtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: qtype, Class: dns.ClassINET, Ttl: k.ttl}
}

func addrType(a netip.Addr) uint16 {
	if a.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// addressRecords makes records of those addresses that are of the type.
func addressRecords(owner string, qtype uint16, ttl uint32, addrs []netip.Addr) []dns.RR {
	var list []dns.RR
	for _, a := range addrs {
		h := dns.RR_Header{Name: owner, Rrtype: qtype, Class: dns.ClassINET, Ttl: ttl}
		switch {
		case qtype == dns.TypeA && a.Is4():
			list = append(list, &dns.A{Hdr: h, A: a.AsSlice()})
		case qtype == dns.TypeAAAA && a.Is6():
			list = append(list, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return list
}

// alias answers for an external name: the CNAME, then what the target has. A
// target in this zone is followed here, and a chain that leads nowhere is no
// data; other targets are looked up, and one that is not there leaves the bare
// CNAME.
func (k *Kubernetes) alias(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, l *lookup, m *dns.Msg) {
	state := plugin.Request{W: w, Req: r}
	owner, q := state.QName(), l.q
	zone := string(k.zoneOf(l))
	var chain []dns.RR
	seen := make(map[string]bool)
	for {
		obj := k.externalAt(q, l.n)
		if obj == nil {
			break
		}
		target := dns.Fqdn(obj.ExternalName)
		chain = append(chain, &dns.CNAME{Hdr: k.header(owner, dns.TypeCNAME), Target: target})
		if l.q.Type == dns.TypeCNAME {
			m.Answer = chain
			return
		}
		lowerTarget := strings.ToLower(target)
		next := &draft{a: wire.NewAnswer(0)}
		if err := next.ask(target, l.q.Type); err != nil {
			m.Answer = chain
			return
		}
		n := next.q.Under([]byte(zone))
		if n < 0 {
			m.Answer = chain
			if found, err := plugin.Lookup(ctx, w, r, target, l.q.Type); err == nil {
				m.Answer = append(m.Answer, found.Answer...)
				m.Truncated = found.Truncated
			}
			return
		}
		if seen[lowerTarget] || strings.EqualFold(owner, target) || len(chain) > maxAliases {
			return
		}
		seen[lowerTarget] = true
		found := new(dns.Msg)
		found.SetQuestion(target, l.q.Type)
		outcome, err := k.find(next, found)
		if err != nil || outcome == plugin.Next {
			return
		}
		if outcome == plugin.Answered {
			if len(found.Answer) > 0 {
				m.Answer = append(chain, found.Answer...)
			}
			return
		}
		owner, q, l = target, &next.q, &lookup{k: k, q: &next.q, n: n}
	}
}

// zoneOf is the plugin's zone that the query is in, in wire form.
func (k *Kubernetes) zoneOf(l *lookup) []byte { return l.q.Suffix(l.n) }

// externalAt returns the external name service that the query names, or nil.
func (k *Kubernetes) externalAt(q *wire.Query, n int) *catalog.Service {
	if n < 3 || n > 5 {
		return nil
	}
	s := k.view.service(q.Name[q.Offset(n-3):q.Offset(n-1)], q.Label(n-3), q.Label(n-2))
	if s == nil {
		return nil
	}
	if svc := s.now.Load(); svc.obj != nil && svc.obj.Type == catalog.ExternalName {
		return svc.obj
	}
	return nil
}

// ownServices are the services that this host is an endpoint of, each with
// the endpoint.
func (k *Kubernetes) ownServices(yield func(*slot, *service, *catalog.Endpoint)) {
	v := k.view
	for _, addr := range k.own {
		h := v.hash.addr(addr)
		for n := v.addrs.find(h); n != nil; n = n.next {
			if n.hash != h || n.value.addr != addr {
				continue
			}
			svc := n.value.slot.now.Load()
			if svc.obj == nil {
				continue
			}
			for _, sl := range svc.slices {
				if ep := readyEndpoint(sl, addr); ep != nil {
					yield(n.value.slot, svc, ep)
					break
				}
			}
		}
	}
}

// nameServers answers NS at the zone: the services through which this server
// is reached; if there are none, ns.dns.ZONE with the host's addresses.
func (k *Kubernetes) nameServers(l *lookup, m *dns.Msg) {
	zone := l.zoneText()
	seen := make(map[string]bool)
	add := func(target string, addrs []netip.Addr) {
		if seen[target] {
			return
		}
		seen[target] = true
		h := k.header(zone, dns.TypeNS)
		m.Answer = append(m.Answer, &dns.NS{Hdr: h, Ns: target})
		m.Extra = append(m.Extra, addressRecords(target, dns.TypeA, k.ttl, addrs)...)
		m.Extra = append(m.Extra, addressRecords(target, dns.TypeAAAA, k.ttl, addrs)...)
	}
	k.ownServices(func(s *slot, svc *service, ep *catalog.Endpoint) {
		if svc.obj.Headless {
			labels := append(k.appendEndpoint(nil, s, ep), 0)
			text, _, _ := dns.UnpackDomainName(labels, 0)
			add(join(strings.TrimSuffix(text, "."), zone), []netip.Addr{ep.Addr})
			return
		}
		add(join(s.name.Name+"."+s.name.Namespace+".svc", zone), svc.obj.ClusterIPs)
	})
	if len(seen) == 0 && len(k.own) > 0 {
		add(join("ns.dns", zone), k.own)
	}
}

// nsAddresses are the addresses that NS answers lead to.
func (k *Kubernetes) nsAddresses(*lookup) []netip.Addr {
	var addrs []netip.Addr
	seen := make(map[netip.Addr]bool)
	add := func(list ...netip.Addr) {
		for _, a := range list {
			if !seen[a] {
				seen[a] = true
				addrs = append(addrs, a)
			}
		}
	}
	k.ownServices(func(_ *slot, svc *service, ep *catalog.Endpoint) {
		if svc.obj.Headless {
			add(ep.Addr)
		} else {
			add(svc.obj.ClusterIPs...)
		}
	})
	if len(addrs) == 0 {
		add(k.own...)
	}
	return addrs
}

// zonalAnswer answers ZONE.pin._zone.SVC.NS.svc: the ready endpoints of a
// headless service in a topology zone; with prefer instead of pin all of them
// when that zone has none. Zone names may contain dots. It is false when there
// is no such name; a zone without endpoints is one.
func (k *Kubernetes) zonalAnswer(l *lookup, owner string, m *dns.Msg) bool {
	q, n := l.q, l.n
	policy := string(q.Label(n - 5))
	if policy != "pin" && policy != "prefer" {
		return false
	}
	s := k.view.service(q.Name[q.Offset(n-3):q.Offset(n-1)], q.Label(n-3), q.Label(n-2))
	if s == nil || !s.ns.exposed.Load() {
		return false
	}
	svc := s.now.Load()
	if svc.obj == nil || !svc.obj.Headless {
		return false
	}
	var labels []string
	for i := range n - 5 {
		labels = append(labels, string(q.Label(i)))
	}
	zone := strings.Join(labels, ".")
	type endpoint struct {
		*catalog.Endpoint
		ports []catalog.EndpointPort
	}
	var all, in []endpoint
	for _, sl := range svc.slices {
		for i := range sl.Endpoints {
			ep := endpoint{&sl.Endpoints[i], sl.Ports}
			if !ep.Ready() {
				continue
			}
			all = append(all, ep)
			if strings.EqualFold(ep.Zone, zone) {
				in = append(in, ep)
			}
		}
	}
	if len(in) == 0 && policy == "prefer" {
		in = all
	}
	records := 0 // before equal ones are dropped: the weights share 100
	for _, ep := range in {
		records += max(1, len(ep.ports))
	}
	seen := make(map[string]bool)
	add := func(section *[]dns.RR, list ...dns.RR) {
		for _, rr := range list {
			if key := rr.String(); !seen[key] {
				seen[key] = true
				*section = append(*section, rr)
			}
		}
	}
	for _, ep := range in {
		addr := []netip.Addr{ep.Addr}
		if q.Type != dns.TypeSRV {
			add(&m.Answer, addressRecords(owner, q.Type, k.ttl, addr)...)
			continue
		}
		text, _, _ := dns.UnpackDomainName(append(k.appendEndpoint(nil, s, ep.Endpoint), 0), 0)
		target := join(strings.TrimSuffix(text, "."), l.zoneText())
		for _, p := range ep.ports {
			add(&m.Answer, &dns.SRV{Hdr: k.header(owner, dns.TypeSRV), Weight: uint16(max(1, 100/records)), Port: p.Port, Target: target})
			add(&m.Extra, addressRecords(target, addrType(ep.Addr), k.ttl, addr)...)
		}
	}
	return true
}
