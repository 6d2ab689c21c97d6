package plan

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// DetectMode is how local pods are told from other sources
// (detectLocalMode).
type DetectMode uint8

// The modes. DetectNone is the mode without the value it needs: nobody is
// known to be a local pod, and nobody known not to be one.
const (
	DetectNone DetectMode = iota
	DetectCIDR            // ClusterCIDR and NodeCIDR
	DetectInterface
	DetectInterfacePrefix
)

// Detector tells local pods from other sources.
type Detector struct {
	Mode      DetectMode
	CIDRs     []netip.Prefix // at most one per family
	Interface string         // the bridge's name, or the prefix
}

// CIDR returns the CIDR of a family; it is invalid if there is none.
func (d *Detector) CIDR(v6 bool) netip.Prefix {
	for _, c := range d.CIDRs {
		if c.Addr().Is6() == v6 {
			return c
		}
	}
	return netip.Prefix{}
}

// Works tells whether the detector says anything about a family.
func (d *Detector) Works(v6 bool) bool {
	return d.Mode >= DetectInterface || d.Mode == DetectCIDR && d.CIDR(v6).IsValid()
}

// IsLocal tells whether the packet comes from a local pod, as far as the
// detector can see. in is empty for packets of the node itself.
func (d *Detector) IsLocal(src netip.Addr, in string) bool {
	switch d.Mode {
	case DetectCIDR:
		c := d.CIDR(src.Is6())
		return c.IsValid() && c.Contains(src)
	case DetectInterface:
		return in != "" && in == d.Interface
	case DetectInterfacePrefix:
		return in != "" && strings.HasPrefix(in, d.Interface)
	}
	return false
}

// Rules is what holds for all services of a node.
type Rules struct {
	MasqueradeAll bool
	Detect        Detector
	// NodePortAddrs are the addresses that node ports are served on. Nil means
	// every address of the node but loopback.
	NodePortAddrs []netip.Addr
	// LocalhostNodePorts serves them on 127.0.0.0/8 too.
	LocalhostNodePorts bool
	// ServiceCIDRs are the ranges that cluster IPs are taken from: what is in
	// them and no service's is dropped.
	ServiceCIDRs []netip.Prefix
	// NodeDNS are addresses at which a DNS server of this node answers itself,
	// over UDP and TCP.
	NodeDNS []netip.AddrPort
}

// NodePortOn tells whether node ports are served on one of the node's
// addresses.
func (r *Rules) NodePortOn(a netip.Addr) bool {
	if a.IsLoopback() {
		return a.Is4() && r.LocalhostNodePorts
	}
	if r.NodePortAddrs == nil {
		return true
	}
	return slices.Contains(r.NodePortAddrs, a)
}

// Packet is the first packet of a connection.
type Packet struct {
	Src      netip.Addr
	Dst      netip.AddrPort
	Protocol catalog.Protocol
	// In is the interface it came in by, empty when this node sent it.
	In string
}

// Result is what happens to a packet.
type Result struct {
	Verdict   Verdict
	Service   catalog.ServiceName // zero for Pass
	Port      *Port               // nil unless a port was found
	Endpoints []netip.AddrPort    // candidates, for Forward
	// Masquerade tells that the endpoint sees an address of this node. Hairpin
	// lists the candidates for which that holds even if Masquerade is false:
	// the source itself.
	Masquerade bool
	Hairpin    []netip.AddrPort
	Affinity   time.Duration
	Reasons    []Reason
}

type frontKey struct {
	addr  netip.Addr // invalid for node ports
	port  uint16
	proto catalog.Protocol
	v6    bool // for node ports, which have no address to tell
}

type front struct {
	service  *Service
	port     *Port
	external *External // nil for cluster IPs and node ports
}

// Table is the plan of all services: the slow and obvious model of a dataplane.
type Table struct {
	Rules     Rules
	NodeAddrs []netip.Addr // every address that is local to the node
	fronts    map[frontKey]front
	cluster   map[netip.Addr]catalog.ServiceName
	local     map[netip.Addr]bool // addresses of endpoints on this node
}

// NewTable joins services to a table. Where two claim a front end the first
// has it.
func NewTable(rules Rules, nodeAddrs []netip.Addr, services []Service) *Table {
	t := &Table{
		Rules: rules, NodeAddrs: nodeAddrs,
		fronts: make(map[frontKey]front), cluster: make(map[netip.Addr]catalog.ServiceName), local: make(map[netip.Addr]bool),
	}
	add := func(k frontKey, f front) {
		if _, taken := t.fronts[k]; !taken {
			t.fronts[k] = f
		}
	}
	for i := range services {
		s := &services[i]
		for _, a := range s.LocalAddrs {
			t.local[a] = true
		}
		for j := range s.Ports {
			p := &s.Ports[j]
			v6 := p.Is6()
			t.cluster[p.ClusterIP.Addr()] = s.Name
			add(frontKey{p.ClusterIP.Addr(), p.ClusterIP.Port(), p.Protocol, v6}, front{s, p, nil})
			for k := range p.External {
				e := &p.External[k]
				add(frontKey{e.Addr, p.ClusterIP.Port(), p.Protocol, v6}, front{s, p, e})
			}
			if p.NodePort != 0 {
				add(frontKey{netip.Addr{}, p.NodePort, p.Protocol, v6}, front{s, p, nil})
			}
		}
	}
	return t
}

// Walk tells what happens to the packet.
func (t *Table) Walk(pkt Packet) Result {
	dst := pkt.Dst.Addr()
	v6 := dst.Is6()
	if pkt.Protocol != catalog.SCTP && slices.Contains(t.Rules.NodeDNS, pkt.Dst) {
		return Result{Verdict: Local, Reasons: []Reason{ReasonNodeDNS}}
	}
	if f, ok := t.fronts[frontKey{dst, pkt.Dst.Port(), pkt.Protocol, v6}]; ok {
		if f.external == nil {
			return t.internal(pkt, f)
		}
		why := ReasonExternalIP
		if f.external.LoadBalancer {
			why = ReasonLoadBalancer
		}
		if f.external.Sources != nil && !inAny(f.external.Sources, pkt.Src) {
			return Result{Verdict: Drop, Service: f.service.Name, Port: f.port, Reasons: []Reason{why, ReasonSourceRange}}
		}
		return t.externally(pkt, f, why)
	}
	if (dst.IsLoopback() || slices.Contains(t.NodeAddrs, dst)) && t.Rules.NodePortOn(dst) {
		if f, ok := t.fronts[frontKey{netip.Addr{}, pkt.Dst.Port(), pkt.Protocol, v6}]; ok {
			return t.externally(pkt, f, ReasonNodePort)
		}
	}
	if name, ok := t.cluster[dst]; ok {
		return Result{Verdict: Reject, Service: name, Reasons: []Reason{ReasonClusterIP, ReasonUnknownPort}}
	}
	if inAny(t.Rules.ServiceCIDRs, dst) {
		return Result{Verdict: Drop, Reasons: []Reason{ReasonUnallocated}}
	}
	return Result{Verdict: Pass, Reasons: []Reason{ReasonNotAService}}
}

func (t *Table) internal(pkt Packet, f front) Result {
	r := Result{Service: f.service.Name, Port: f.port, Reasons: []Reason{ReasonClusterIP}}
	if f.port.InternalLocal {
		r.Reasons = append(r.Reasons, ReasonLocalPolicy)
	}
	switch {
	case t.Rules.MasqueradeAll:
		r.Masquerade = true
		r.Reasons = append(r.Reasons, ReasonMasqueradeAll)
	case t.Rules.Detect.Works(pkt.Src.Is6()) && !t.Rules.Detect.IsLocal(pkt.Src, pkt.In):
		r.Masquerade = true
		r.Reasons = append(r.Reasons, ReasonMasqueradeOff)
	}
	return t.spread(r, pkt, f.port.Internal(), f.port.InternalLocal)
}

func (t *Table) externally(pkt Packet, f front, why Reason) Result {
	r := Result{Service: f.service.Name, Port: f.port, Reasons: []Reason{why}}
	if !f.port.ExternalLocal {
		r.Masquerade = true
		r.Reasons = append(r.Reasons, ReasonMasqueradeExternal)
		return t.spread(r, pkt, f.port.Cluster, false)
	}
	r.Reasons = append(r.Reasons, ReasonLocalPolicy)
	// Pods and the node itself get what the load balancer would give them: an
	// endpoint anywhere.
	switch {
	case t.Rules.Detect.IsLocal(pkt.Src, pkt.In):
		r.Reasons = append(r.Reasons, ReasonShortCircuit)
	case pkt.Src.IsLoopback() || slices.Contains(t.NodeAddrs, pkt.Src):
		r.Masquerade = true
		r.Reasons = append(r.Reasons, ReasonShortCircuit, ReasonMasqueradeNode)
	default:
		return t.spread(r, pkt, f.port.Local, true)
	}
	return t.spread(r, pkt, f.port.Cluster, true)
}

func (t *Table) spread(r Result, pkt Packet, list []netip.AddrPort, local bool) Result {
	if len(list) == 0 {
		r.Masquerade = false
		switch {
		case local && r.Port.Usable:
			r.Verdict = Drop
			r.Reasons = append(r.Reasons, ReasonNoLocalEndpoints)
		default:
			r.Verdict = Reject
			r.Reasons = append(r.Reasons, ReasonNoEndpoints)
		}
		return r
	}
	r.Verdict, r.Endpoints = Forward, list
	if r.Affinity = r.Port.Affinity; r.Affinity != 0 {
		r.Reasons = append(r.Reasons, ReasonAffinity)
	}
	if t.local[pkt.Src] {
		for _, ep := range list {
			if ep.Addr() == pkt.Src {
				r.Hairpin = append(r.Hairpin, ep)
			}
		}
		if len(r.Hairpin) > 0 && !r.Masquerade {
			r.Reasons = append(r.Reasons, ReasonHairpin)
		}
	}
	return r
}
