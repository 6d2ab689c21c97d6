package ipvs

import (
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// need is what a virtual server must be.
type need struct {
	front
	settings
	dests []netip.AddrPort
	// serving are the endpoints whose flows may go on though the server leads
	// there no more; for UDP and SCTP.
	serving []netip.AddrPort
	// bind: the address is to be on kube-ipvs0.
	bind bool
	// elements are what the sets must hold for as long as the server exists.
	elements []element
}

// surroundings are what the needs of all services depend on.
type surroundings struct {
	rules     plan.Rules
	scheduler string
	v4, v6    bool
	local     []netip.Addr // addresses of the host's devices but kube-ipvs0, sorted
	routers   []netip.Addr // next hops of the host's routes
	keepDNS   bool         // Rules.NodeDNS is answered on this node
}

func (s *surroundings) isLocal(a netip.Addr) bool {
	_, ok := slices.BinarySearchFunc(s.local, a, netip.Addr.Compare)
	return ok
}

// nodePortAddrs are the addresses of a family that node ports are served on.
func (s *surroundings) nodePortAddrs(v6 bool) (addrs []netip.Addr) {
	for _, a := range s.local {
		// An address that belongs to a link says nothing without it.
		if a.Is6() == v6 && !a.IsLoopback() && !a.IsLinkLocalUnicast() && s.rules.NodePortOn(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// needs are the virtual servers of a service, and the elements that it needs
// besides: for hairpin traffic and its health check.
func (s *surroundings) needs(p *plan.Service) (servers []need, elements []element) {
	for i := range p.Ports {
		port := &p.Ports[i]
		if port.Is6() && !s.v6 || !port.Is6() && !s.v4 {
			continue
		}
		servers = s.port(servers, port)
		elements = s.loopBack(elements, p, port)
	}
	if h := p.HealthCheck; h != nil {
		for f, on := range []bool{s.v4, s.v6} {
			if on && h.Families[f] {
				elements = append(elements, element{set: setHealthCheckNodePort, v6: f == 1, port: h.NodePort})
			}
		}
	}
	return servers, elements
}

func (s *surroundings) port(servers []need, p *plan.Port) []need {
	v6 := p.Is6()
	set := settings{scheduler: s.scheduler}
	if p.Affinity > 0 {
		set.flags |= flagPersistent
		set.timeout = max(1, uint32(p.Affinity.Seconds()))
	}
	if s.scheduler == "mh" {
		set.flags |= flagSourcePort
	}
	server := func(a netip.Addr, port uint16, dests []netip.AddrPort) need {
		return need{front: front{a, port, p.Protocol}, settings: set, dests: dests, serving: p.Serving}
	}
	in := func(id setID, n *need) { n.elements = append(n.elements, elementOf(id, n.front)) }

	n := server(p.ClusterIP.Addr(), p.ClusterIP.Port(), p.Internal())
	n.bind = true
	in(setClusterIP, &n)
	if p.InternalLocal && p.Usable && len(n.dests) == 0 {
		in(setAwayInternal, &n)
	}
	servers = append(servers, n)

	dests, away := p.Cluster, false
	if p.ExternalLocal && (len(p.Local) > 0 || !p.Usable) {
		dests = p.Local
	} else if p.ExternalLocal {
		// Nothing here, for those outside. Pods and the node itself are led to
		// where a load balancer would lead them.
		away = true
	}
	for i := range p.External {
		e := &p.External[i]
		if s.keepDNS && slices.Contains(s.rules.NodeDNS, netip.AddrPortFrom(e.Addr, p.ClusterIP.Port())) {
			continue
		}
		n := server(e.Addr, p.ClusterIP.Port(), dests)
		// Bound, a router's address would be the host's: it would take what the
		// router sends for forged (kubernetes #75290).
		n.bind = !s.isLocal(e.Addr) && !slices.Contains(s.routers, e.Addr)
		switch {
		case e.LoadBalancer:
			in(setLoadBalancer, &n)
			if p.ExternalLocal {
				in(setLoadBalancerLocal, &n)
			}
		case p.ExternalLocal:
			in(setExternalIPLocal, &n)
		default:
			in(setExternalIP, &n)
		}
		if away {
			in(setAwayExternal, &n)
		}
		if e.Sources != nil {
			in(setLoadBalancerFW, &n)
			for _, r := range e.Sources {
				id := setLoadBalancerSourceCIDR
				if r.Addr() == e.Addr && r.IsSingleIP() {
					id = setLoadBalancerSourceIP
				}
				x := elementOf(id, n.front)
				x.with = r
				n.elements = append(n.elements, x)
			}
		}
		servers = append(servers, n)
	}

	if p.NodePort == 0 {
		return servers
	}
	all, local := nodePortSets(p.Protocol)
	for _, a := range s.nodePortAddrs(v6) {
		n := server(a, p.NodePort, dests)
		in(all, &n)
		if p.ExternalLocal {
			in(local, &n)
		}
		if away {
			in(setAwayExternal, &n)
		}
		servers = append(servers, n)
	}
	return servers
}

// nodePortSets are the sets of node ports of a protocol.
func nodePortSets(p catalog.Protocol) (all, local setID) {
	switch p {
	case catalog.UDP:
		return setNodePortUDP, setNodePortLocalUDP
	case catalog.SCTP:
		return setNodePortSCTP, setNodePortLocalSCTP
	}
	return setNodePortTCP, setNodePortLocalTCP
}

// elementOf is a front end as an element of a set.
func elementOf(id setID, f front) element {
	if sets[id].typ == bitmapPort {
		return element{set: id, v6: f.is6(), port: f.port}
	}
	return element{set: id, v6: f.is6(), addr: f.addr, port: f.port, proto: f.proto}
}

// loopBack adds the elements that have an endpoint's traffic to itself
// masqueraded.
func (s *surroundings) loopBack(elements []element, p *plan.Service, port *plan.Port) []element {
	for _, list := range [][]netip.AddrPort{port.Cluster, port.Local} {
		for _, ep := range list {
			if slices.Contains(p.LocalAddrs, ep.Addr()) {
				e := elementOf(setLoopBack, front{ep.Addr(), ep.Port(), port.Protocol})
				e.with = netip.PrefixFrom(ep.Addr(), ep.Addr().BitLen())
				if !slices.Contains(elements, e) {
					elements = append(elements, e)
				}
			}
		}
	}
	return elements
}
