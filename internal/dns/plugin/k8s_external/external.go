// Package external answers for the addresses under which a cluster's services
// are reached from outside: SERVICE.NAMESPACE.ZONE.
package external

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "k8s_external"

type handler struct {
	next     plugin.Handler
	zones    plugin.Zones
	scope    scope.Scope
	fall     plugin.Fall
	apex     string // label of the zone's own names
	ttl      uint32
	headless bool
	cluster  *kubernetes.Kubernetes // of the same server block
	index    index
}

// Setup reads:
//
//	k8s_external [ZONES...] {
//	    apex LABEL
//	    ttl SECONDS
//	    headless
//	    fallthrough [ZONES...]
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{apex: "dns", ttl: 5}
	for _, d := range lines {
		zones, err := corefile.ZoneList(d.Args)
		if err != nil {
			return nil, err
		}
		if h.zones = zones; len(zones) == 0 {
			h.zones = b.Zones
		}
		for _, p := range d.Block {
			if err := h.property(p); err != nil {
				return nil, err
			}
		}
	}
	h.scope = scope.Of(h.zones...)
	b.OnStart(func(context.Context) error {
		var ok bool
		if h.cluster, ok = b.Handler("kubernetes").(*kubernetes.Kubernetes); !ok {
			e := corefile.Errorf(lines[0].Name, "k8s_external needs the kubernetes plugin in the same server block")
			e.Expected = "a kubernetes line beside it"
			return e
		}
		h.index.cluster = h.cluster
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) property(p corefile.Directive) error {
	switch p.Name.Text {
	case "apex":
		if err := p.Want(1, 1, "a label"); err != nil {
			return err
		}
		h.apex = strings.ToLower(strings.TrimSuffix(p.Args[0].Text, "."))
		return nil
	case "ttl":
		if err := p.Want(1, 1, "seconds"); err != nil {
			return err
		}
		n, err := p.Args[0].Number(0, 3600)
		h.ttl = uint32(n)
		return err
	case "headless":
		h.headless = true
		return p.Flag()
	case "fallthrough":
		zones, err := corefile.ZoneList(p.Args)
		if len(zones) == 0 {
			zones = []string{"."}
		}
		h.fall.Zones = zones
		return err
	}
	return corefile.Unknown("property of k8s_external", p.Name, "apex", "ttl", "headless", "fallthrough")
}

func (h *handler) Name() string { return name }

// ServeDirect lets names outside the zones pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if h.scope.Has(q) {
		return plugin.Chain
	}
	return plugin.Next
}

// ServeDNS answers for names in the zones.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	zone := h.zones.Matches(q.Name())
	if zone == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative = true
	a := &answer{handler: h, ctx: ctx, q: q, zone: zone, m: m}
	if !a.own() {
		found, rcode := a.find()
		if len(found) == 0 && rcode == dns.RcodeNameError && h.fall.Through(q.Name()) {
			return plugin.NextOrFailure(name, h.next, ctx, w, r)
		}
		m.Rcode = rcode
		a.write(found)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{a.soa()}
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// answer is one in the making.
type answer struct {
	*handler
	ctx  context.Context
	q    *plugin.Request
	zone string
	m    *dns.Msg
}

// place is an address, or the name of one, with a port.
type place struct {
	addr netip.Addr
	host string // of a load balancer that has no address
	port uint16
	name string // of what has it: the target of SRV and PTR records
}

func join(labels, zone string) string { return labels + "." + strings.TrimPrefix(zone, ".") }

func (a *answer) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: a.ttl}
}

// soa has no serial: nobody can follow the zone by transfers, and CoreDNS too
// begins with 0.
func (a *answer) soa() dns.RR {
	return &dns.SOA{
		Hdr: a.header(a.zone, dns.TypeSOA), Ns: join("ns1."+a.apex, a.zone), Mbox: join("hostmaster."+a.apex, a.zone),
		Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: a.ttl,
	}
}

// own answers for the zone itself, and for the name of its name server; false
// for other names.
func (a *answer) own() bool {
	qname := a.q.Name()
	top := join(a.apex, a.zone)
	switch {
	case qname == a.zone:
		switch a.q.QType() {
		case dns.TypeSOA:
			a.m.Answer = []dns.RR{a.soa()}
		case dns.TypeNS:
			server := join("ns1."+a.apex, a.zone)
			a.m.Answer = []dns.RR{&dns.NS{Hdr: a.header(a.zone, dns.TypeNS), Ns: server}}
			for _, addr := range a.servers() {
				a.m.Extra = append(a.m.Extra, a.address(server, addr))
			}
		}
	case qname == top:
	case qname == "ns1."+top:
		for _, addr := range a.servers() {
			if rr := a.address(a.q.QName(), addr); rr.Header().Rrtype == a.q.QType() {
				a.m.Answer = append(a.m.Answer, rr)
			}
		}
	case plugin.InZone(qname, top):
		a.m.Rcode = dns.RcodeNameError
	default:
		return false
	}
	return true
}

// servers are the addresses of this server from outside: those of the services
// that it is an endpoint of, or its own if there is no such service.
func (a *answer) servers() []netip.Addr {
	services, addrs := a.cluster.Own()
	var outside []netip.Addr
	for _, s := range services {
		for _, p := range entrances(s) {
			if p.addr.IsValid() && !slices.Contains(outside, p.addr) {
				outside = append(outside, p.addr)
			}
		}
	}
	if len(services) == 0 {
		return addrs
	}
	return outside
}

// entrances are the addresses of a service from outside: external IPs, and what
// its load balancers have.
func entrances(s *catalog.Service) []place {
	var list []place
	for _, addr := range s.ExternalIPs {
		list = append(list, place{addr: addr})
	}
	for _, in := range s.LoadBalancer {
		if in.Addr.IsValid() {
			list = append(list, place{addr: in.Addr})
		} else if in.Hostname != "" {
			list = append(list, place{host: in.Hostname})
		}
	}
	return list
}
