package external

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/reverse"
)

// find returns what is at the name asked for, of any family: SERVICE.NAMESPACE,
// ENDPOINT.SERVICE.NAMESPACE or _PORT._PROTOCOL.SERVICE.NAMESPACE.
func (a *answer) find() (found []place, rcode int) {
	if a.q.QType() == dns.TypePTR {
		if addr, ok := reverse.Addr(a.q.Name()); ok {
			for _, n := range a.index.lookup(addr) {
				if a.cluster.Exposed(n.Namespace) {
					found = append(found, place{name: n.Name + "." + n.Namespace})
				}
			}
			if len(found) == 0 {
				return nil, dns.RcodeNameError
			}
			return found, dns.RcodeSuccess
		}
	}
	labels := dns.SplitDomainName(strings.TrimSuffix(a.q.Name(), a.zone))
	n := len(labels)
	if n == 0 || n > 4 || !a.cluster.Exposed(labels[n-1]) {
		return nil, dns.RcodeNameError
	}
	if n == 1 {
		return nil, dns.RcodeSuccess // a namespace
	}
	var endpoint, port, protocol string
	switch n {
	case 3:
		endpoint = strings.TrimPrefix(labels[0], "_")
	case 4:
		port, protocol = strings.TrimPrefix(labels[0], "_"), strings.TrimPrefix(labels[1], "_")
	}
	svc, sl := a.cluster.Visible(catalog.ServiceName{Namespace: labels[n-1], Name: labels[n-2]})
	if svc == nil {
		return nil, dns.RcodeNameError
	}
	outside := entrances(svc)
	if a.headless && len(outside) == 0 && (svc.Headless || endpoint != "") {
		found = a.endpoints(svc, sl, endpoint, port, protocol)
	} else {
		for _, p := range outside {
			for _, sp := range svc.Ports {
				if fits(port, sp.Name, protocol, sp.Protocol) {
					p.port, p.name = sp.Port, svc.Name.Name+"."+svc.Name.Namespace+"."+a.zone
					found = append(found, p)
				}
			}
		}
	}
	switch {
	case len(found) == 0:
		return nil, dns.RcodeNameError
	case a.q.QType() == dns.TypePTR:
		return nil, dns.RcodeSuccess // not a reverse name, but it exists
	}
	return found, dns.RcodeSuccess
}

func (a *answer) endpoints(svc *catalog.Service, list []*catalog.EndpointSlice, endpoint, port, protocol string) (found []place) {
	for _, sl := range list {
		for i := range sl.Endpoints {
			ep := &sl.Endpoints[i]
			label := a.cluster.EndpointLabel(ep)
			if !ep.Ready() || endpoint != "" && !strings.EqualFold(endpoint, label) {
				continue
			}
			for _, p := range sl.Ports {
				if fits(port, p.Name, protocol, p.Protocol) {
					found = append(found, place{addr: ep.Addr, port: p.Port, name: label + "." + svc.Name.Name + "." + svc.Name.Namespace + "." + a.zone})
				}
			}
		}
	}
	return found
}

func fits(port, name, protocol string, p catalog.Protocol) bool {
	return (port == "" || port == "*" || strings.EqualFold(port, name)) &&
		(protocol == "" || protocol == "*" || strings.EqualFold(protocol, p.String()))
}

// write puts the records of the type asked for into the answer.
func (a *answer) write(found []place) {
	switch t := a.q.QType(); t {
	case dns.TypeA, dns.TypeAAAA:
		a.addresses(found, t)
	case dns.TypeSRV:
		a.srv(found)
	case dns.TypePTR:
		for _, p := range found {
			a.m.Answer = append(a.m.Answer, &dns.PTR{Hdr: a.header(a.q.QName(), t), Ptr: join(p.name, a.zones[0])})
		}
	}
}

func (a *answer) addresses(found []place, qtype uint16) {
	var seen []netip.Addr
	var hosts []string
	for _, p := range found {
		switch {
		case p.host != "":
			if slices.Contains(hosts, p.host) {
				continue
			}
			hosts = append(hosts, p.host)
			a.m.Answer = append(a.m.Answer, &dns.CNAME{Hdr: a.header(a.q.QName(), dns.TypeCNAME), Target: dns.Fqdn(p.host)})
			if up, err := plugin.Lookup(a.ctx, a.q.W, a.q.Req, p.host, qtype); err == nil {
				a.m.Answer = append(a.m.Answer, up.Answer...)
				a.m.Truncated = a.m.Truncated || up.Truncated
			}
		case p.addr.Is4() == (qtype == dns.TypeA) && !slices.Contains(seen, p.addr):
			seen = append(seen, p.addr)
			a.m.Answer = append(a.m.Answer, a.address(a.q.QName(), p.addr))
		}
	}
}

func (a *answer) address(owner string, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: a.header(owner, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: a.header(owner, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

// srv answers with each target and port once; weights share a hundred among
// all that was found, repeats included.
func (a *answer) srv(found []place) {
	type record struct {
		target string
		port   uint16
	}
	type extra struct {
		target string
		addr   netip.Addr
	}
	var records []record
	var extras []extra
	weight := uint16(1)
	if len(found) > 0 {
		weight = uint16(max(100/len(found), 1))
	}
	for _, p := range found {
		target := p.name
		if p.host != "" {
			target = dns.Fqdn(p.host)
		}
		if r := (record{target, p.port}); !slices.Contains(records, r) {
			records = append(records, r)
			a.m.Answer = append(a.m.Answer, &dns.SRV{Hdr: a.header(a.q.QName(), dns.TypeSRV), Weight: weight, Port: p.port, Target: target})
		}
		e := extra{target, p.addr}
		if slices.Contains(extras, e) {
			continue
		}
		extras = append(extras, e)
		if p.host == "" {
			a.m.Extra = append(a.m.Extra, a.address(target, p.addr))
			continue
		}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if up, err := plugin.Lookup(a.ctx, a.q.W, a.q.Req, target, t); err == nil {
				a.m.Extra = append(a.m.Extra, up.Answer...)
			}
		}
	}
}

// index finds services by the addresses they have from outside. Such
// questions are rare, so the index is made when one comes, at most once a
// second.
type index struct {
	cluster *kubernetes.Kubernetes

	mu    sync.Mutex
	made  time.Time
	names map[netip.Addr][]catalog.ServiceName
}

const indexAge = time.Second

func (r *index) lookup(addr netip.Addr) []catalog.ServiceName {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.made) >= indexAge {
		r.names = make(map[netip.Addr][]catalog.ServiceName)
		r.cluster.Store().All(func(n catalog.ServiceName, e catalog.Entry) bool {
			if e.Service != nil {
				for _, p := range entrances(e.Service) {
					if p.addr.IsValid() {
						r.names[p.addr] = append(r.names[p.addr], n)
					}
				}
			}
			return true
		})
		r.made = time.Now()
	}
	list := slices.Clone(r.names[addr])
	slices.SortFunc(list, func(a, b catalog.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	return list
}
