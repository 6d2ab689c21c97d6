package proxy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// claims decides which service has a front end that several ask for. The API
// server keeps cluster IPs and node ports apart, but nothing keeps an external
// IP from being a cluster IP, or two services from naming the same one.
//
// The rule: a cluster IP goes before a load balancer's address, that before an
// external IP; among equals who has it keeps it.
type claims struct {
	owners  map[frontEnd]owner
	held    map[catalog.ServiceName][]frontEnd
	waiting map[frontEnd]map[catalog.ServiceName]struct{}
}

type frontEnd struct {
	addr  netip.Addr // the zero address of the family for a node port
	port  uint16
	proto catalog.Protocol
}

type owner struct {
	name catalog.ServiceName
	rank rank
}

type rank uint8

const (
	rankExternalIP rank = iota
	rankLoadBalancer
	rankNodePort
	rankClusterIP
)

func newClaims() *claims {
	return &claims{
		owners:  make(map[frontEnd]owner),
		held:    make(map[catalog.ServiceName][]frontEnd),
		waiting: make(map[frontEnd]map[catalog.ServiceName]struct{}),
	}
}

// settle gives s the front ends that it may have, takes the others out of the
// plan and releases what s had before. It returns the services that must be
// planned again: those that lost a front end to s, and those that waited for
// one that s released.
func (c *claims) settle(s *plan.Service) (losers, heirs []catalog.ServiceName) {
	before := c.held[s.Name]
	var have []frontEnd
	prune(s, func(f frontEnd, r rank) bool {
		if o, taken := c.owners[f]; taken && o.name != s.Name {
			if o.rank >= r {
				c.wait(f, s.Name)
				return false
			}
			losers = append(losers, o.name)
			c.held[o.name] = slices.DeleteFunc(c.held[o.name], func(h frontEnd) bool { return h == f })
		}
		c.owners[f] = owner{s.Name, r}
		have = append(have, f)
		return true
	})
	for _, f := range before {
		if slices.Contains(have, f) || c.owners[f].name != s.Name {
			continue
		}
		delete(c.owners, f)
		heirs = slices.AppendSeq(heirs, maps.Keys(c.waiting[f]))
		delete(c.waiting, f)
	}
	slices.SortFunc(heirs, compareNames) // the first of them gets it
	if len(have) == 0 {
		delete(c.held, s.Name)
	} else {
		c.held[s.Name] = have
	}
	return losers, heirs
}

// gone returns the services that hold front ends and are not in the catalogue.
func (c *claims) gone(cat *catalog.Catalog) (names []catalog.ServiceName) {
	for name := range c.held {
		if e, ok := cat.Service(name); !ok || e.Service == nil {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	return names
}

// asHeld takes out of the plan what another service has.
func (c *claims) asHeld(s *plan.Service) {
	prune(s, func(f frontEnd, _ rank) bool { return c.owners[f].name == s.Name })
}

// prune takes the front ends out of the plan that may refuses, and notes them
// as skipped.
func prune(s *plan.Service, may func(frontEnd, rank) bool) {
	lost := func(what string) { s.Skipped = append(s.Skipped, plan.Skip{What: what, Reason: plan.ReasonConflict}) }
	kept := s.Ports[:0]
	for _, p := range s.Ports {
		if !may(frontEnd{p.ClusterIP.Addr(), p.ClusterIP.Port(), p.Protocol}, rankClusterIP) {
			lost(p.ClusterIP.String())
			continue
		}
		refused := func(e plan.External) bool {
			r := rankExternalIP
			if e.LoadBalancer {
				r = rankLoadBalancer
			}
			ok := may(frontEnd{e.Addr, p.ClusterIP.Port(), p.Protocol}, r)
			if !ok {
				lost(netip.AddrPortFrom(e.Addr, p.ClusterIP.Port()).String())
			}
			return !ok
		}
		// The ports of a service share the list: it is not to be written to.
		if i := slices.IndexFunc(p.External, refused); i >= 0 {
			p.External = append(slices.Clone(p.External[:i]), slices.DeleteFunc(slices.Clone(p.External[i+1:]), refused)...)
		}
		if p.NodePort != 0 && !may(frontEnd{unspecified(p.Is6()), p.NodePort, p.Protocol}, rankNodePort) {
			lost("node port")
			p.NodePort = 0
		}
		p.ExternalLocal = p.ExternalLocal && p.ExternallyAccessible()
		kept = append(kept, p)
	}
	s.Ports = kept
}

// owner tells whose front end an address and port is; of a node's address, whose
// node port.
func (c *claims) owner(to netip.AddrPort, proto catalog.Protocol) (catalog.ServiceName, bool) {
	o, ok := c.owners[frontEnd{to.Addr(), to.Port(), proto}]
	if !ok {
		o, ok = c.owners[frontEnd{unspecified(to.Addr().Is6()), to.Port(), proto}]
	}
	return o.name, ok
}

func (c *claims) wait(f frontEnd, name catalog.ServiceName) {
	if c.waiting[f] == nil {
		c.waiting[f] = make(map[catalog.ServiceName]struct{})
	}
	c.waiting[f][name] = struct{}{}
}

func unspecified(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
