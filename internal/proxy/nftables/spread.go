package nftables

import (
	"strconv"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// frontKind is the kind of front end that a chain serves.
type frontKind uint8

const (
	clusterIPFront frontKind = iota
	externalFront            // an external IP or a load balancer's
	nodePortFront
)

// marking is whether a chain marks packets for masquerading.
type marking uint8

const (
	markNever      marking = iota
	markOffCluster         // as masqueradeAll and the local detector say
	markAlways
)

// spread names a chain that spreads connections over n endpoints. It serves
// every service with as many endpoints and the same needs.
type spread struct {
	front   frontKind
	local   bool // the local list
	marking marking
	n       int
	// affinity is how long a client stays with its endpoint; 0 for none.
	affinity time.Duration
}

// localSlots is where the slots of the local list begin.
const localSlots = 1 << 31

func (s spread) name() string { return string(s.appendName(nil)) }

func (s spread) appendName(b []byte) []byte {
	b = append(b, [...]string{"cluster-ip", "external", "nodeport"}[s.front]...)
	if s.local {
		b = append(b, "-local"...)
	}
	if s.front != clusterIPFront && !s.local && s.marking == markNever {
		b = append(b, "-shortcut"...)
	}
	b = append(b, '-')
	b = strconv.AppendInt(b, int64(s.n), 10)
	if s.affinity != 0 {
		b = append(b, "-affinity-"...)
		b = strconv.AppendInt(b, int64(s.affinity/time.Second), 10)
	}
	return b
}

func (l *rules) spreadChain(s spread) chain {
	r := &l.r
	c := chain{name: s.name(), hook: -1}
	switch s.marking {
	case markAlways:
		c.rules = append(c.rules, l.setMark())
	case markOffCluster:
		if l.plan.MasqueradeAll {
			c.rules = append(c.rules, l.setMark())
		} else if l.plan.Detect.Works(l.v6) {
			c.rules = append(c.rules, join(l.fromPod(false), l.setMark()))
		}
	}
	nodePort := s.front == nodePortFront
	first := uint32(0)
	if s.local {
		first = localSlots
	}
	slot := rule{&expr.Numgen{Register: r.slot, Modulus: uint32(s.n), Type: unix.NFT_NG_RANDOM, Offset: first}}
	dnat := rule{&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(l.nfproto()), RegAddrMin: r.endpoint, RegProtoMin: r.endpointPort, Specified: true}}
	if s.affinity != 0 {
		c.rules = append(c.rules, l.affinity(s, nodePort, first, dnat)...)
	}
	c.rules = append(c.rules, join(l.frontAt(r.proto, nodePort), slot, l.find(setEndpoints, r.proto, r.endpoint), dnat))
	return c
}
