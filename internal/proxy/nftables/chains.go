package nftables

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// toNodePortAddr matches the addresses that node ports are served on. On
// 127.0.0.0/8 that may be so for connections of the node itself; see
// localhostGuard.
func (l *rules) toNodePortAddr() []rule {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if l.v6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	localhost := !l.v6 && l.plan.LocalhostNodePorts
	switch {
	case l.plan.NodePortAddrs == nil && localhost:
		return []rule{l.isLocalType(false)}
	case l.plan.NodePortAddrs == nil:
		return []rule{join(l.isLocalType(false), l.loadDst(l.r.src), l.inPrefix(l.r.src, loopback, expr.CmpOpNeq))}
	}
	match := []rule{join(l.loadDst(l.r.src), l.lookup(setNodePortIPs, l.r.src))}
	if localhost {
		match = append(match, join(l.loadDst(l.r.src), l.inPrefix(l.r.src, loopback, expr.CmpOpEq)))
	}
	return match
}

// localhostGuard drops what other hosts send to 127.0.0.0/8. The kernel does so
// itself, but not with route_localnet, which node ports on localhost need
// (CVE-2020-8558).
func (l *rules) localhostGuard() []rule {
	if l.v6 || !l.plan.LocalhostNodePorts {
		return nil
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	known := uint32(expr.CtStateBitRELATED | expr.CtStateBitESTABLISHED)
	return []rule{join(
		l.loadDst(l.r.src), l.inPrefix(l.r.src, loopback, expr.CmpOpEq),
		l.loadSrc(l.r.src), l.inPrefix(l.r.src, loopback, expr.CmpOpNeq),
		rule{&expr.Ct{Key: expr.CtKeySTATE, Register: l.r.src}}, maskZero(l.r.src, known),
		rule{&expr.Ct{Key: expr.CtKeySTATUS, Register: l.r.src}}, maskZero(l.r.src, ctStatusDstNAT),
		drop())}
}

// chain is a chain and all of its rules.
type chain struct {
	name     string
	hook     int // -1 for one that is only jumped to
	priority int32
	typ      string
	rules    []rule
}

const (
	chainServices         = "services"
	chainExternalLocal    = "external-policy-local"
	chainNodePortLocal    = "nodeport-policy-local"
	chainReject           = "rejected"
	priorityRaw           = -300
	priorityDstNAT        = -100
	priorityBeforeDstNAT  = priorityDstNAT - 10
	priorityFilter        = 0
	prioritySrcNAT        = 100
	icmpPortUnreachable   = 3
	icmpv6PortUnreachable = 4
	ctStatusDstNAT        = 1 << 5 // IPS_DST_NAT
)

// staticChains are the chains that do not depend on the services.
func (l *rules) staticChains() []chain {
	r := &l.r
	unreachable := uint8(icmpPortUnreachable)
	if l.v6 {
		unreachable = icmpv6PortUnreachable
	}
	// A reset for TCP: clients see the same as with ICMP (connection refused),
	// but the kernel sends only some ICMP errors per second to a peer, and whom
	// it does not tell waits for a timeout.
	reject := []rule{
		join(loadProto(r.src), rule{&expr.Cmp{Op: expr.CmpOpEq, Register: r.src, Data: []byte{unix.IPPROTO_TCP}}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
		{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: unreachable}},
	}
	isNew := ctNew(r.src)
	services := []rule{join(l.front(), l.follow(setServices))}
	input := l.localhostGuard()
	for _, match := range l.toNodePortAddr() {
		services = append(services, join(match, l.nodePortFront(), l.follow(setServices)))
		input = append(input, join(isNew, match, l.nodePortFront(), l.follow(setNoEndpoints)))
	}
	// Source ranges are checked before the destination is rewritten: a front end
	// that has any drops who is in none of them.
	ranges := []rule{join(isNew, l.front(), l.lookup(setFirewall, r.proto), l.loadSrc(r.slot), l.lookupNot(setSources, r.proto), drop())}
	// What still has a front end as its destination here was not rewritten:
	// there was no endpoint for it. Rejecting is not allowed in NAT chains.
	noEndpoints := join(isNew, l.front(), l.follow(setNoEndpoints))
	clusterIPs := []rule{noEndpoints, join(isNew, l.loadDst(r.addr), l.lookup(setClusterIPs, r.addr), rule{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainReject}})}
	for _, c := range l.plan.ServiceCIDRs {
		if c.Addr().Is6() == l.v6 {
			clusterIPs = append(clusterIPs, join(isNew, l.loadDst(r.addr), l.inPrefix(r.addr, c, expr.CmpOpEq), drop()))
		}
	}
	masquerade := rule{&expr.Masq{FullyRandom: true}}
	policyLocal := func(key rule) []rule {
		var out []rule
		if l.plan.Detect.Works(l.v6) {
			out = append(out, join(l.fromPod(true), key, l.follow(setShortcuts)))
		}
		return append(out,
			join(l.isLocalType(true), l.setMark(), key, l.follow(setShortcuts)),
			join(key, l.follow(setLocals)))
	}
	const pre, in, fwd, out, post = unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN, unix.NF_INET_FORWARD, unix.NF_INET_LOCAL_OUT, unix.NF_INET_POST_ROUTING
	postrouting := []rule{
		join(rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: r.src}}, maskNotZero(r.src, l.mark), l.changeMark(^l.mark, 0), masquerade),
		join(l.rewritten(), l.loadSrc(r.src), l.loadDst(r.src+l.addrLen()/4), l.lookup(setHairpins, r.src), masquerade),
	}
	// Of what is relayed nothing is masqueraded, and the relay's own connections
	// are no clients': where an endpoint has the address of a service, that of
	// itself perhaps, they would come back.
	var own []rule
	if l.relayed {
		leave := rule{&expr.Verdict{Kind: expr.VerdictReturn}}
		postrouting = append([]rule{join(loadProto(r.src), rule{&expr.Cmp{Op: expr.CmpOpNeq, Register: r.src, Data: []byte{unix.IPPROTO_SCTP}}}, leave)}, postrouting...)
		own = []rule{join(rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: r.src}}, maskNotZero(r.src, l.mark), leave)}
	}
	if l.counters {
		// NAT chains see the first packet of a connection only.
		postrouting = append([]rule{l.count(setConnections)}, postrouting...)
	}
	chains := []chain{
		{chainReject, -1, 0, "", reject},
		{chainServices, -1, 0, "", services},
		{chainExternalLocal, -1, 0, "", policyLocal(l.front())},
		{chainNodePortLocal, -1, 0, "", policyLocal(l.nodePortFront())},
		// Masquerading comes before what makes packets need it.
		{"nat-postrouting", post, prioritySrcNAT, "nat", postrouting},
		{"filter-prerouting", pre, priorityBeforeDstNAT, "filter", ranges},
		{"filter-output-first", out, priorityBeforeDstNAT, "filter", slices.Concat(own, ranges)},
		{"filter-input", in, priorityFilter, "filter", append(input, noEndpoints)},
		{"filter-forward", fwd, priorityFilter, "filter", clusterIPs},
		{"filter-output", out, priorityFilter, "filter", slices.Concat(own, clusterIPs)},
		{"nat-prerouting", pre, priorityDstNAT, "nat", []rule{jump(chainServices)}},
		{"nat-output", out, priorityDstNAT, "nat", append(own, jump(chainServices))},
	}
	if l.bytes {
		// What this node forwards or sends, and what comes to it.
		chains = append(chains,
			chain{"traffic-postrouting", post, priorityFilter, "filter", []rule{l.count(setTraffic)}},
			chain{"traffic-input", in, priorityFilter, "filter", []rule{l.count(setTraffic)}})
	}
	if dns := l.untrackedDNS(); len(dns) > 0 {
		chains = append(chains,
			chain{"raw-prerouting", pre, priorityRaw, "filter", dns},
			chain{"raw-output", out, priorityRaw, "filter", dns})
	}
	return chains
}

// rewritten matches packets of connections that services were found for.
func (l *rules) rewritten() rule {
	return join(rule{&expr.Ct{Key: expr.CtKeySTATUS, Register: l.r.src}}, maskNotZero(l.r.src, ctStatusDstNAT))
}

// countFor is how long a counter stays after the last packet.
const countFor = 24 * time.Hour

// count adds the packet to what its front end and endpoint had.
func (l *rules) count(set setID) rule {
	r := &l.r
	a := l.addrLen() / 4
	src, dst := uint32(ctSrcIP), uint32(ctDstIP)
	if l.v6 {
		src, dst = ctSrcIP6, ctDstIP6
	}
	return join(l.rewritten(), rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r.proto},
		ctOf{dst, r.addr, ctOriginal},
		ctOf{unix.NFT_CT_PROTO_DST, r.port, ctOriginal},
		ctOf{src, r.port + 1, ctReply},
		ctOf{unix.NFT_CT_PROTO_SRC, r.port + 1 + a, ctReply},
		&expr.Dynset{SrcRegKey: r.proto, SetName: l.sets[set].name, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: countFor, Exprs: []expr.Any{&expr.Counter{}}},
	})
}

// untrackedDNS keeps queries to the DNS server of this node, and its answers,
// out of connection tracking; so they pass NAT untouched as well. It depends
// on elements that time out: when the server no longer refreshes them, queries
// take the road of all others.
func (l *rules) untrackedDNS() []rule {
	var out []rule
	seen := make(map[uint16]bool)
	for _, a := range l.plan.NodeDNS {
		if a.Addr().Is6() != l.v6 || seen[a.Port()] {
			continue
		}
		seen[a.Port()] = true
		port := &expr.Cmp{Op: expr.CmpOpEq, Register: l.r.port, Data: binary.BigEndian.AppendUint16(nil, a.Port())}
		for _, side := range []struct {
			offset uint32
			addr   func(uint32) rule
		}{{2, l.loadDst}, {0, l.loadSrc}} {
			// The comparison first: other packets pay no lookup.
			out = append(out, join(loadPort(l.r.port, side.offset), rule{port}, loadProto(l.r.proto), side.addr(l.r.addr),
				l.lookup(setNodeDNS, l.r.proto), rule{&expr.Notrack{}}))
		}
	}
	return out
}
