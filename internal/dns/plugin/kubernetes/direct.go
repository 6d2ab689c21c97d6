package kubernetes

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// schemaVersion is what dns-version.ZONE says (DNS specification, §2.1).
const schemaVersion = "1.1.0"

// lookup is one query on its way through the name's grammar.
type lookup struct {
	k *Kubernetes
	q *wire.Query
	a *wire.Answer
	n int // labels left of the zone
}

// answer finds and writes the answer to q. Chain means that it takes more than
// the published objects, or more room.
func (k *Kubernetes) answer(q *wire.Query, a *wire.Answer) plugin.Outcome {
	for i := range k.zones {
		if n := q.Under(k.zones[i].wire); n >= 0 {
			l := lookup{k: k, q: q, a: a, n: n}
			return l.answer()
		}
	}
	return plugin.Next
}

// answer decides by the number of labels left of the zone what the name can
// be.
func (l *lookup) answer() plugin.Outcome {
	q, n := l.q, l.n
	switch q.Type {
	case dns.TypeAXFR, dns.TypeIXFR:
		return plugin.Chain
	case dns.TypePTR:
		if addr, ok := reverseAddr(q); ok {
			return l.reverse(addr)
		}
	case dns.TypeSOA:
		if n > 0 {
			return l.noData() // whether the name exists or not, as CoreDNS
		}
		return l.soa()
	case dns.TypeNS:
		if n == 0 {
			return plugin.Chain
		}
	}
	if n == 0 {
		return l.withoutRecords()
	}
	switch kind := string(q.Label(n - 1)); {
	case kind == "svc":
		return l.underSvc()
	case kind == "pod":
		return l.underPod()
	case kind == "dns-version" && n == 1 && q.Type == dns.TypeTXT:
		return l.version()
	case kind == "dns" && n == 2 && string(q.Label(0)) == "ns" && q.Type != dns.TypeTXT && q.Type != dns.TypePTR:
		return plugin.Chain
	}
	return l.nameError()
}

// withoutRecords answers for a name that exists without any record. TXT is a
// name error there, as in CoreDNS.
func (l *lookup) withoutRecords() plugin.Outcome {
	if l.q.Type == dns.TypeTXT {
		return l.nameError()
	}
	return l.noData()
}

// underSvc is [[[PORT.PROTO.|EP.]SVC.]NS.]svc.
func (l *lookup) underSvc() plugin.Outcome {
	q, n := l.q, l.n
	var endpoint, port, proto []byte
	switch n {
	case 1:
		return l.withoutRecords()
	case 2:
		if l.k.view.exposed(q.Label(0)) {
			return l.withoutRecords()
		}
		return l.nameError()
	case 3:
	case 4:
		endpoint = q.Label(0)
	case 5:
		port, proto = trimUnderscore(q.Label(0)), trimUnderscore(q.Label(1))
	default:
		if l.k.zonal && string(q.Label(n-4)) == "_zone" {
			return plugin.Chain
		}
		return l.nameError()
	}
	at := q.Offset(n - 3)
	s := l.k.view.service(q.Name[at:q.Offset(n-1)], q.Label(n-3), q.Label(n-2))
	if s == nil || !s.ns.exposed.Load() {
		return l.nameError()
	}
	svc := s.now.Load()
	switch {
	case svc.obj == nil:
		return l.nameError()
	case svc.obj.Type == catalog.ExternalName:
		return l.external(svc.obj, len(endpoint)+len(port)+len(proto) > 0)
	case l.k.ignoreEmpty && !svc.obj.Headless && svc.ready == 0:
		return l.nameError()
	case endpoint != nil || svc.obj.Headless:
		return l.endpoints(s, svc, endpoint, port, proto)
	}
	return l.clusterIP(s, svc, port, proto)
}

func (l *lookup) clusterIP(s *slot, svc *service, port, proto []byte) plugin.Outcome {
	matching := 0
	for i := range svc.obj.Ports {
		if matches(&svc.obj.Ports[i], port, proto) {
			matching++
		}
	}
	if matching == 0 {
		return l.nameError()
	}
	switch l.q.Type {
	case dns.TypeA:
		return l.addresses(svc.v4, 4)
	case dns.TypeAAAA:
		return l.addresses(svc.v6, 16)
	case dns.TypeSRV:
		return l.clusterSRV(s, svc, port, proto, matching)
	}
	return l.noData()
}

// endpoints answers for a headless service, one of its ports, or one endpoint
// of any service.
func (l *lookup) endpoints(s *slot, svc *service, endpoint, port, proto []byte) plugin.Outcome {
	if l.k.noEndpoints {
		return l.nameError()
	}
	whole := endpoint == nil && len(port) == 0 && len(proto) == 0
	if whole && svc.ready == 0 {
		return l.nameError()
	}
	if whole && l.q.Type != dns.TypeSRV {
		switch l.q.Type {
		case dns.TypeA:
			return l.addresses(svc.v4, 4)
		case dns.TypeAAAA:
			return l.addresses(svc.v6, 16)
		}
		return l.noData()
	}
	if l.q.Type == dns.TypeSRV {
		return l.endpointSRV(s, svc, endpoint, port, proto)
	}
	found := false
	for _, sl := range svc.slices {
		if !l.hasPort(sl, port, proto) {
			continue
		}
		for i := range sl.Endpoints {
			ep := &sl.Endpoints[i]
			if !ep.Ready() || endpoint != nil && !l.k.named(ep, endpoint) {
				continue
			}
			found = true
			switch {
			case l.q.Type == dns.TypeA && ep.Addr.Is4():
				b := ep.Addr.As4()
				l.a.AddressOnce(b[:], l.k.ttl)
			case l.q.Type == dns.TypeAAAA && ep.Addr.Is6():
				b := ep.Addr.As16()
				l.a.AddressOnce(b[:], l.k.ttl)
			}
		}
	}
	switch {
	case !found:
		return l.nameError()
	case l.a.Overflow():
		return plugin.Chain
	case l.a.Count(wire.AnswerSection) == 0:
		return l.noData()
	}
	l.a.Authoritative = true
	return plugin.Answered
}

// hasPort tells whether a slice has a matching port. One without ports matches
// when none is asked for.
func (l *lookup) hasPort(sl *catalog.EndpointSlice, port, proto []byte) bool {
	if len(port) == 0 && len(proto) == 0 {
		return true
	}
	for i := range sl.Ports {
		if matchesEndpoint(&sl.Ports[i], port, proto) {
			return true
		}
	}
	return false
}

// external answers for a service that is an alias. Records of the target come
// from elsewhere, so of those only the refusals are given here.
func (l *lookup) external(obj *catalog.Service, below bool) plugin.Outcome {
	if below {
		return l.nameError()
	}
	if _, err := netip.ParseAddr(obj.ExternalName); err == nil {
		return l.nameError()
	}
	switch l.q.Type {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
		return plugin.Chain
	}
	return l.noData()
}

// underPod is [[ignored.][ignored.]A-B-C-D.]NS.pod.
func (l *lookup) underPod() plugin.Outcome {
	q, n := l.q, l.n
	switch {
	case n == 1:
		return l.withoutRecords()
	case n > 5 || l.k.pods == podsDisabled || !l.k.view.exposed(q.Label(n-2)):
		return l.nameError()
	case n == 2:
		return l.withoutRecords()
	}
	addr, ok := dashedAddr(q.Label(n - 3))
	if !ok || l.k.pods == podsVerified && !l.k.view.podIn(addr, q.Label(n-2)) {
		return l.nameError()
	}
	switch {
	case q.Type == dns.TypeSRV:
		return plugin.Chain
	case q.Type == dns.TypeA && addr.Is4():
		b := addr.As4()
		return l.addresses(b[:], 4)
	case q.Type == dns.TypeAAAA && addr.Is6():
		b := addr.As16()
		return l.addresses(b[:], 16)
	}
	return l.noData()
}

// reverse answers a PTR query: the service that has the cluster IP, or else
// every service that has the endpoint.
func (l *lookup) reverse(addr netip.Addr) plugin.Outcome {
	v := l.k.view
	h := v.hash.addr(addr)
	first := v.addrs.find(h)
	for n := first; n != nil; n = n.next {
		if n.hash != h || n.value.addr != addr || !l.reverseShows(n.value.slot) {
			continue
		}
		if svc := n.value.slot.now.Load(); svc.obj != nil && hasClusterIP(svc.obj, addr) {
			return l.pointer(n.value.slot, nil)
		}
	}
	if !l.k.noEndpoints {
		l.endpointPointers(first, h, addr)
	}
	if l.a.Count(wire.AnswerSection) == 0 && !l.a.Overflow() {
		return l.nameError()
	}
	return l.answered()
}

// endpointPointers adds a PTR record per name that a service has for the
// endpoint (slices may differ in it): in the order of the services' names,
// those that know it by a host name first, so that who takes the first gets the
// same one each time.
func (l *lookup) endpointPointers(first *node[addrOf], h uint64, addr netip.Addr) {
	type found struct {
		slot *slot
		ep   *catalog.Endpoint
	}
	var room [8]found
	list := room[:0]
	for n := first; n != nil; n = n.next {
		if n.hash != h || n.value.addr != addr || !l.reverseShows(n.value.slot) {
			continue
		}
		for _, sl := range n.value.slot.now.Load().slices {
			for i := range sl.Endpoints {
				ep := &sl.Endpoints[i]
				if ep.Addr == addr && ep.Ready() && !slices.ContainsFunc(list, func(f found) bool {
					return f.slot == n.value.slot && f.ep.Hostname == ep.Hostname && f.ep.Pod == ep.Pod
				}) {
					list = append(list, found{n.value.slot, ep})
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b found) int {
		if named := a.ep.Hostname != ""; named != (b.ep.Hostname != "") {
			if named {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.slot.name.Namespace, b.slot.name.Namespace), cmp.Compare(a.slot.name.Name, b.slot.name.Name),
			cmp.Compare(a.ep.Hostname, b.ep.Hostname))
	})
	for _, f := range list {
		l.pointer(f.slot, f.ep)
	}
}

// reverseShows tells whether PTR records name the service: the namespaces
// option is honoured, the selection of namespaces by label is not (as CoreDNS).
func (l *lookup) reverseShows(s *slot) bool {
	return l.k.view.sel.namespaces == nil || s.ns.exposed.Load()
}

func hasClusterIP(obj *catalog.Service, addr netip.Addr) bool {
	for _, ip := range obj.ClusterIPs {
		if ip == addr {
			return true
		}
	}
	return false
}

func readyEndpoint(sl *catalog.EndpointSlice, addr netip.Addr) *catalog.Endpoint {
	for i := range sl.Endpoints {
		if ep := &sl.Endpoints[i]; ep.Addr == addr && ep.Ready() {
			return ep
		}
	}
	return nil
}

// matches compares a port with labels of a query; an empty label is any.
func matches(p *catalog.ServicePort, port, proto []byte) bool {
	return (len(port) == 0 || string(port) == p.Name) && (len(proto) == 0 || isProtocol(p.Protocol, proto))
}

func matchesEndpoint(p *catalog.EndpointPort, port, proto []byte) bool {
	return (len(port) == 0 || string(port) == p.Name) && (len(proto) == 0 || isProtocol(p.Protocol, proto))
}

func isProtocol(p catalog.Protocol, label []byte) bool {
	switch string(label) {
	case "tcp":
		return p == catalog.TCP
	case "udp":
		return p == catalog.UDP
	case "sctp":
		return p == catalog.SCTP
	}
	return false
}

func trimUnderscore(label []byte) []byte {
	if label[0] == '_' {
		return label[1:]
	}
	return label
}
