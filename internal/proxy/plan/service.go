package plan

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/rutter-project/rutter/internal/catalog"
)

// Planner plans services for one node.
type Planner struct {
	Node    Node
	Options Options
	// Extra are addresses that lead to services besides what these say
	// themselves: those of a DNS server on this node, which stands in for a
	// service.
	Extra map[catalog.ServiceName][]netip.AddrPort
}

// Service plans one service. A name that needs nothing has no ports.
func (pl *Planner) Service(name catalog.ServiceName, entry *catalog.Entry) Service {
	out := Service{Name: name}
	s := entry.Service
	if s == nil {
		return out // slices without a Service: nothing to capture
	}
	skip := func(what string, why Reason) { out.Skipped = append(out.Skipped, Skip{what, why}) }
	switch {
	case s.ProxyName != "":
		skip("service", ReasonOtherProxy)
		return out
	case s.Type == catalog.ExternalName:
		skip("service", ReasonExternalName)
		return out
	case s.Headless:
		skip("service", ReasonHeadless)
		return out
	case !s.HasClusterIP():
		skip("service", ReasonNoClusterIP)
		return out
	case len(s.Ports) == 0:
		skip("service", ReasonNoPorts)
	}
	var clusterIPs [2]netip.Addr
	for _, a := range s.ClusterIPs {
		a = a.Unmap()
		f := family(a)
		switch {
		case !a.IsValid() || a.IsUnspecified():
			skip("clusterIPs", ReasonInvalidAddress)
		case clusterIPs[f].IsValid():
			skip(a.String(), ReasonDuplicate)
		default:
			clusterIPs[f] = a
		}
	}
	var external [2][]External
	for f, ip := range clusterIPs {
		if ip.IsValid() {
			external[f] = pl.external(s, f == 1, ip, skip)
		}
	}
	var buf []candidate
	for i, sp := range s.Ports {
		switch sp.Protocol {
		case catalog.TCP, catalog.UDP, catalog.SCTP:
		default:
			skip("port "+portName(sp), ReasonUnsupportedProtocol)
			continue
		}
		if slices.ContainsFunc(s.Ports[:i], func(o catalog.ServicePort) bool { return o.Port == sp.Port && o.Protocol == sp.Protocol }) {
			skip("port "+portName(sp), ReasonDuplicate)
			continue
		}
		for f, ip := range clusterIPs {
			if !ip.IsValid() {
				continue
			}
			p := Port{
				Name:          sp.Name,
				Protocol:      sp.Protocol,
				ClusterIP:     netip.AddrPortFrom(ip, sp.Port),
				NodePort:      sp.NodePort,
				External:      external[f],
				InternalLocal: s.InternalLocal,
				Affinity:      s.AffinityTimeout,
			}
			for _, extra := range pl.Extra[name] {
				if a := extra.Addr(); extra.Port() == sp.Port && family(a) == f && a != ip && !contains(p.External, a) {
					p.External = append(slices.Clip(p.External), External{Addr: a})
				}
			}
			p.ExternalLocal = s.ExternalLocal && p.ExternallyAccessible()
			buf = gather(buf[:0], entry, sp.Name, sp.Protocol, f == 1, pl.Node.Name)
			pl.choose(&p, buf)
			out.LocalAddrs = addLocal(out.LocalAddrs, buf)
			out.Ports = append(out.Ports, p)
		}
	}
	if s.HealthCheckNodePort != 0 && s.Type == catalog.LoadBalancer && s.ExternalLocal {
		out.HealthCheck = pl.healthCheck(s, entry, clusterIPs)
	}
	return out
}

// choose fills the endpoint lists that the port's front ends need.
func (pl *Planner) choose(p *Port, list []candidate) {
	if !p.InternalLocal || p.ExternallyAccessible() {
		p.Cluster = clusterList(list, &pl.Node)
	}
	if p.InternalLocal || p.ExternalLocal {
		p.Local = localList(list)
	}
	for i := range list {
		if list[i].ready() || list[i].draining() {
			p.Usable = true
			break
		}
	}
	if p.Protocol != catalog.TCP {
		p.Serving = pick(list, func(c *candidate) bool { return c.ready() || c.conditions&catalog.Serving != 0 })
	}
}

// external lists the external front ends of a family.
func (pl *Planner) external(s *catalog.Service, v6 bool, clusterIP netip.Addr, skip func(string, Reason)) []External {
	var out []External
	var sources []netip.Prefix
	restricted := false
	for _, ingress := range s.LoadBalancer {
		addr := ingress.Addr.Unmap()
		if !addr.IsValid() || addr.Is6() != v6 {
			continue // a host name, or the other family's
		}
		switch {
		case ingress.Proxy:
			skip(addr.String(), ReasonIPModeProxy)
			continue
		case unusable(addr):
			skip(addr.String(), ReasonInvalidAddress)
			continue
		case addr == clusterIP || contains(out, addr):
			skip(addr.String(), ReasonDuplicate)
			continue
		}
		if !restricted {
			sources, restricted = pl.sources(s.SourceRanges, v6), true
		}
		e := External{Addr: addr, LoadBalancer: true, Sources: sources}
		// On some clouds the load balancer's address is local to the node, and
		// a node that talks to it uses it as its source.
		if ip := pl.Node.IP(v6); len(sources) > 0 && ip.IsValid() && inAny(sources, ip) && !inAny(sources, addr) {
			e.Sources = append(slices.Clip(sources), netip.PrefixFrom(addr, addr.BitLen()))
		}
		out = append(out, e)
	}
	for _, addr := range s.ExternalIPs {
		addr = addr.Unmap()
		if !addr.IsValid() || addr.Is6() != v6 {
			continue
		}
		switch {
		case pl.Options.NoExternalIPs:
			skip(addr.String(), ReasonDisabled)
		case unusable(addr):
			skip(addr.String(), ReasonInvalidAddress)
		case addr == clusterIP || contains(out, addr):
			skip(addr.String(), ReasonDuplicate)
		default:
			out = append(out, External{Addr: addr})
		}
	}
	return out
}

// sources are the ranges of a family without those that lie in others; nil
// when they admit everybody.
func (pl *Planner) sources(ranges []netip.Prefix, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		r = r.Masked()
		if r.Addr().Is6() != v6 || !r.IsValid() {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	// Sorted so, a range that contains others comes right before them.
	n := 0
	for _, r := range out {
		if n > 0 && out[n-1].Overlaps(r) {
			continue
		}
		out[n] = r
		n++
	}
	return out[:n:n]
}

// healthCheck counts as kube-proxy does: distinct addresses of ready local
// endpoints over all ports; those that terminate never count.
func (pl *Planner) healthCheck(s *catalog.Service, entry *catalog.Entry, clusterIPs [2]netip.Addr) *HealthCheck {
	h := &HealthCheck{NodePort: s.HealthCheckNodePort}
	for f, ip := range clusterIPs {
		h.Families[f] = ip.IsValid()
		if !ip.IsValid() {
			continue
		}
		seen := make(map[netip.Addr]struct{})
		for _, slice := range entry.Slices {
			if slice.IPv6 != (f == 1) || slice.Headless || !servesPort(s, slice) {
				continue
			}
			for i := range slice.Endpoints {
				if e := &slice.Endpoints[i]; e.Node == pl.Node.Name && e.Ready() && !e.Extra {
					seen[e.Addr.Unmap()] = struct{}{}
				}
			}
		}
		h.Local[f] = len(seen)
	}
	return h
}

func servesPort(s *catalog.Service, slice *catalog.EndpointSlice) bool {
	for _, p := range slice.Ports {
		if slices.ContainsFunc(s.Ports, func(sp catalog.ServicePort) bool { return sp.Name == p.Name && sp.Protocol == p.Protocol }) {
			return true
		}
	}
	return false
}

// addLocal adds the addresses of this node's endpoints that may be chosen.
func addLocal(addrs []netip.Addr, list []candidate) []netip.Addr {
	for i := range list {
		c := &list[i]
		if c.local && (c.ready() || c.draining()) && !slices.Contains(addrs, c.Addr()) {
			addrs = append(addrs, c.Addr())
		}
	}
	return addrs
}

func portName(p catalog.ServicePort) string {
	if p.Name != "" {
		return p.Name
	}
	return strconv.Itoa(int(p.Port))
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

func unusable(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

func contains(list []External, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(e External) bool { return e.Addr == a })
}

func inAny(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}
