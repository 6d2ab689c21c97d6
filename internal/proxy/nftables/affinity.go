package nftables

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Session affinity. Whom a client is with stands in the map affinity, by client
// and service port, so that it is the same through every front end. Service
// ports and their endpoints have numbers there, which they keep while they
// exist. Under its number, as under its slot, an endpoint stands in the map
// endpoints: when it goes so does that element, at once and without a look at
// the clients, whose next connection then draws again.
//
// A number found by one lookup is a part of the next lookup's key. Registers
// would carry it, but nft could not print that (see layout.go); the packet's
// priority does, which forwarding sets anew anyhow. It is left at 0, for the
// first packet of such connections only.
//
//	priority: 0 | service port, 17 bits | endpoint, 14 bits
const (
	endpointBits    = 14
	endpointMask    = 1<<endpointBits - 1
	maxNumber       = 1 << 17
	endpointNumbers = 1 << 30 // where endpoints' numbers begin in map endpoints; below are slots
	servicePortMask = (maxNumber - 1) << endpointBits
	dynsetDelete    = 2 // NFT_DYNSET_OP_DELETE, not in x/sys
)

// sticky is what a port with session affinity is known by in the kernel.
type sticky struct {
	number uint32 // in place: shifted by endpointBits
	ids    map[netip.AddrPort]uint32
}

// affinity is the rules of a spread chain that come before the plain draw; that
// stays as the last resort, for when the map is full.
func (l *rules) affinity(s spread, nodePort bool, first uint32, dnat rule) []rule {
	r := &l.r
	client, number := r.src, r.src+l.addrLen()/4 // the key of map affinity
	value := number + 1
	bits := func(reg, mask, xor uint32) rule {
		return rule{&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: nfnetlink.Native.AppendUint32(nil, mask), Xor: nfnetlink.Native.AppendUint32(nil, xor)}}
	}
	priority := func(reg uint32) rule { return rule{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg}} }
	setPriority := func(reg uint32) rule {
		return rule{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg, SourceRegister: true}}
	}
	key := join(l.loadSrc(client), priority(number), bits(number, servicePortMask, 0))
	remember := func(op uint32) rule {
		d := &expr.Dynset{SrcRegKey: client, SrcRegData: value, SetName: l.sets[setAffinity].name, Operation: op}
		if op != dynsetDelete {
			d.Timeout = s.affinity
		}
		return rule{d}
	}
	front := l.frontAt(r.proto, nodePort)
	visit := join(front, priority(r.slot), bits(r.slot, endpointMask, 0), bits(r.slot, ^(endpointNumbers|first), endpointNumbers|first),
		l.find(setEndpoints, r.proto, r.endpoint),
		rule{&expr.Immediate{Register: r.src, Data: make([]byte, 4)}}, setPriority(r.src), dnat)
	return []rule{
		join(front, l.find(setAffinityServices, r.proto, r.slot), setPriority(r.slot)),
		// Was the client here before? Then the time starts anew, and if its
		// endpoint is still one of this list it is taken.
		join(key, l.find(setAffinity, client, value), setPriority(value),
			key, priority(value), remember(unix.NFT_DYNSET_OP_UPDATE), visit),
		// Else draw one and remember it. An update would leave the data of an
		// element that exists as it is, so that is removed first.
		join(front, rule{&expr.Numgen{Register: r.slot, Modulus: uint32(s.n), Type: unix.NFT_NG_RANDOM, Offset: first}},
			l.find(setAffinitySlots, r.proto, r.endpoint), setPriority(r.endpoint),
			key, priority(value), remember(dynsetDelete), remember(unix.NFT_DYNSET_OP_ADD), visit),
	}
}

// stick gives the port its number and its endpoints theirs: those they had
// before, the lowest free ones to what is new. Clients of an endpoint that is
// gone may so find another under its number, which is as good as a draw. It
// tells false if there are no numbers left; then the port is without affinity.
func (p *port) stick(before *sticky, number func() (uint32, bool)) bool {
	if p.Affinity == 0 {
		return true
	}
	p.sticky = &sticky{ids: make(map[netip.AddrPort]uint32, len(p.Cluster))}
	used := make(map[uint32]bool)
	if before != nil {
		p.sticky.number = before.number
		for _, list := range [][]netip.AddrPort{p.Cluster, p.Local} {
			for _, ep := range list {
				if id, ok := before.ids[ep]; ok && !used[id] {
					p.sticky.ids[ep], used[id] = id, true
				}
			}
		}
	} else {
		n, ok := number()
		if !ok {
			p.sticky, p.Affinity = nil, 0
			return false
		}
		p.sticky.number = n << endpointBits
	}
	free := uint32(0)
	for _, list := range [][]netip.AddrPort{p.Cluster, p.Local} {
		for _, ep := range list {
			if _, ok := p.sticky.ids[ep]; ok {
				continue
			}
			for used[free] {
				free++
			}
			p.sticky.ids[ep] = free & endpointMask
			used[free] = true
		}
	}
	return true
}
