package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// The layout, the same in `table ip rutter` and `table ip6 rutter`:
//
//	prerouting, output ─▶ services ─┬─▶ cluster-ip-N   ─▶ dnat
//	                                ├─▶ external-N     ─▶ dnat
//	                                ├─▶ nodeport-N     ─▶ dnat
//	                                └─▶ *-policy-local ─▶ …
//
// A front end is `protocol . address . port` (a node port's address is zero).
// The map services leads from it to the chain for its kind and number of
// endpoints; that chain draws a slot number and finds the endpoint in the map
// endpoints under `front end . slot`. Two hash lookups, however many services
// there are; and the elements of a service are all that a change of it touches.
//
// A lookup's key never contains what another lookup found, although the kernel
// would allow it: nft (1.0.6 at least) aborts when it lists such a rule, and
// with it whatever the administrator's tools do. So the endpoints stand under
// each front end of a service.

// layoutVersion is raised when a table of the older layout cannot be adopted.
const layoutVersion = "rutter layout 1"

const tableName = "rutter"

type setID uint8

const (
	setServices         setID = iota // front end : verdict
	setEndpoints                     // front end . slot : address . port
	setShortcuts                     // front end : verdict, for sources that policy Local does not bind
	setLocals                        // front end : verdict, for sources that it does
	setNoEndpoints                   // front end : drop, or goto reject
	setFirewall                      // front ends with source ranges
	setSources                       // front end . source range
	setClusterIPs                    // address
	setNodePortIPs                   // address
	setHairpins                      // endpoint . endpoint
	setNodeDNS                       // front end, with timeout
	setAffinityServices              // front end : number of the service port
	setAffinitySlots                 // front end . slot : number of the endpoint
	setAffinity                      // source . service port : endpoint, with timeout; written by packets
	setConnections                   // front end . endpoint . port, with timeout and counter; written by packets
	setTraffic                       // the same
	setCount
)

// Type numbers of the nft program, so that it can print our sets.
const (
	typeIPv4    = 7
	typeIPv6    = 8
	typeProto   = 12
	typePort    = 13
	typeMark    = 19
	typeVerdict = unix.NFT_DATA_VERDICT
)

// What x/sys lacks of linux/netfilter/nf_tables.h.
const (
	nftSetConcat      = 0x80 // NFT_SET_CONCAT
	nftaSetDescConcat = 2    // NFTA_SET_DESC_CONCAT
	nftaSetFieldLen   = 1    // NFTA_SET_FIELD_LEN
	nftaSetElemKeyEnd = 10   // NFTA_SET_ELEM_KEY_END
	nftaTableUserdata = 6    // NFTA_TABLE_USERDATA
	nftaGenProcPID    = 2    // NFTA_GEN_PROC_PID
	nftaGenProcName   = 3    // NFTA_GEN_PROC_NAME
)

type setSpec struct {
	name  string
	flags uint32
	key   []field
	data  []field
	size  uint32
}

type field struct {
	typ uint32
	len uint32
}

// affinityLimit bounds the clients remembered per family. The kernel sizes the
// hash by it, 16 bytes each, so the map is made when the first service needs it.
const affinityLimit = 1 << 18

// counterLimit bounds the pairs of front end and endpoint that are counted.
const counterLimit = 1 << 16

// made tells whether a set is made with the table. Of those that packets write
// the kernel takes memory for all that may come: they are made when needed.
func (l *rules) made(id setID) bool {
	switch id {
	case setAffinity:
		return false
	case setConnections:
		return l.counters
	case setTraffic:
		return l.bytes
	}
	return true
}

// planned tells whether a set's elements follow from the plan.
func planned(id setID) bool {
	return id < setNodeDNS || id == setAffinityServices || id == setAffinitySlots
}

func setSpecs(v6 bool) [setCount]setSpec {
	addr := field{typeIPv4, 4}
	if v6 {
		addr = field{typeIPv6, 16}
	}
	proto, port, slot := field{typeProto, 1}, field{typePort, 2}, field{typeMark, 4}
	verdict := []field{{typeVerdict, 0}}
	front := []field{proto, addr, port}
	with := func(a []field, b ...field) []field { return append(append([]field(nil), a...), b...) }
	return [setCount]setSpec{
		setServices:    {name: "services", key: front, data: verdict},
		setEndpoints:   {name: "endpoints", key: with(front, slot), data: []field{addr, port}},
		setShortcuts:   {name: "shortcuts", key: front, data: verdict},
		setLocals:      {name: "locals", key: front, data: verdict},
		setNoEndpoints: {name: "no-endpoints", key: front, data: verdict},
		setFirewall:    {name: "firewall", key: front},
		setSources:     {name: "firewall-sources", key: with(front, addr), flags: unix.NFT_SET_INTERVAL},
		setClusterIPs:  {name: "cluster-ips", key: []field{addr}},
		setNodePortIPs: {name: "nodeport-ips", key: []field{addr}},
		setHairpins:    {name: "hairpins", key: []field{addr, addr}},
		setNodeDNS:     {name: "node-dns", key: front, flags: unix.NFT_SET_TIMEOUT},

		setAffinityServices: {name: "affinity-services", key: front, data: []field{slot}},
		setAffinitySlots:    {name: "affinity-slots", key: with(front, slot), data: []field{slot}},
		setConnections:      {name: "connections", key: with(front, addr, port), flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: counterLimit},
		setTraffic:          {name: "traffic", key: with(front, addr, port), flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: counterLimit},
		setAffinity: {name: "affinity", key: []field{addr, slot}, data: []field{slot},
			flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: affinityLimit},
	}
}

func isVerdictMap(s setID) bool {
	return s == setServices || s == setShortcuts || s == setLocals || s == setNoEndpoints
}

// concat is the number by which the nft program knows a concatenation, and the
// bytes it takes in registers.
func concat(fields []field) (typ, length uint32) {
	for _, f := range fields {
		typ = typ<<6 | f.typ
		length += (f.len + 3) &^ 3
	}
	if len(fields) == 1 {
		length = fields[0].len
	}
	return typ, length
}

func (b *batch) addSet(id uint32, s *setSpec) {
	flags := s.flags
	keyType, keyLen := concat(s.key)
	if s.data != nil {
		flags |= unix.NFT_SET_MAP
	}
	if len(s.key) > 1 {
		flags |= 0x80 // NFT_SET_CONCAT, not in x/sys
	}
	b.start(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.String(unix.NFTA_SET_TABLE, tableName)
	b.String(unix.NFTA_SET_NAME, s.name)
	b.Uint32(unix.NFTA_SET_ID, id)
	b.Uint32(unix.NFTA_SET_FLAGS, flags)
	b.Uint32(unix.NFTA_SET_KEY_TYPE, keyType)
	b.Uint32(unix.NFTA_SET_KEY_LEN, keyLen)
	switch {
	case len(s.data) == 1 && s.data[0].typ == typeVerdict:
		b.Uint32(unix.NFTA_SET_DATA_TYPE, typeVerdict)
		b.Uint32(unix.NFTA_SET_DATA_LEN, 0)
	case s.data != nil:
		t, l := concat(s.data)
		b.Uint32(unix.NFTA_SET_DATA_TYPE, t)
		b.Uint32(unix.NFTA_SET_DATA_LEN, l)
	}
	if len(s.key) > 1 || s.size > 0 {
		desc := b.Nest(unix.NFTA_SET_DESC)
		if s.size > 0 {
			b.Uint32(unix.NFTA_SET_DESC_SIZE, s.size)
		}
		if len(s.key) > 1 {
			fields := b.Nest(nftaSetDescConcat)
			for _, f := range s.key {
				elem := b.Nest(unix.NFTA_LIST_ELEM)
				b.Uint32(nftaSetFieldLen, f.len)
				b.EndNest(elem)
			}
			b.EndNest(fields)
		}
		b.EndNest(desc)
	}
	b.End()
}

// registers: where rules keep what they compute, the same in all of them.
type registers struct {
	src, proto, addr, port, slot, endpoint, endpointPort uint32
}

func registersOf(v6 bool) registers {
	a := uint32(1)
	if v6 {
		a = 4
	}
	const first = unix.NFT_REG32_00
	return registers{first, first + a, first + a + 1, first + 2*a + 1, first + 2*a + 2, first + 2*a + 3, first + 3*a + 3}
}

// rules builds rules of one family.
type rules struct {
	v6   bool
	r    registers
	sets [setCount]setSpec
	plan plan.Rules
	mark uint32
	// counters counts connections, bytes the bytes of each packet.
	counters, bytes bool
}

// rule is the expressions of a rule: expr.Any, or ctOf.
type rule []any

// ctOf loads a key of the connection in one direction. (expr.Ct writes the
// direction in four bytes, of which the kernel reads the first.)
type ctOf struct {
	key, register uint32
	direction     byte
}

// Directions of a connection, and keys that x/sys lacks: addresses whose length
// is known, without which nft could not print a key that contains them.
const (
	ctOriginal = 0
	ctReply    = 1
	ctSrcIP    = 19 // NFT_CT_SRC_IP
	ctDstIP    = 20
	ctSrcIP6   = 21
	ctDstIP6   = 22
)

func (e ctOf) append(b []byte) []byte {
	b = nfnetlink.AppendString(b, unix.NFTA_EXPR_NAME, "ct")
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_EXPR_DATA)
	b = nfnetlink.AppendUint32(b, unix.NFTA_CT_DREG, e.register)
	b = nfnetlink.AppendUint32(b, unix.NFTA_CT_KEY, e.key)
	b = nfnetlink.AppendAttr(b, unix.NFTA_CT_DIRECTION, []byte{e.direction})
	nfnetlink.EndNest(b, at)
	return b
}

func join(parts ...rule) rule {
	var out rule
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (l *rules) nfproto() byte {
	if l.v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func (l *rules) addrLen() uint32 {
	if l.v6 {
		return 16
	}
	return 4
}

func (l *rules) loadSrc(reg uint32) rule {
	off := uint32(12)
	if l.v6 {
		off = 8
	}
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: l.addrLen()}}
}

func (l *rules) loadDst(reg uint32) rule {
	off := uint32(16)
	if l.v6 {
		off = 24
	}
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: l.addrLen()}}
}

func loadProto(reg uint32) rule { return rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}} }

// loadPort loads the source (offset 0) or destination (2) port.
func loadPort(reg, offset uint32) rule {
	return rule{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}}
}

// front loads the front end that the packet was sent to.
func (l *rules) front() rule { return l.frontAt(l.r.proto, false) }

// nodePortFront loads the front end of a node port.
func (l *rules) nodePortFront() rule { return l.frontAt(l.r.proto, true) }

// frontAt loads a front end into the registers from reg on.
func (l *rules) frontAt(reg uint32, nodePort bool) rule {
	addr := l.loadDst(reg + 1)
	if nodePort {
		// The zero address. A constant would do, but nft has no words for one
		// in the middle of a key.
		none := make([]byte, l.addrLen())
		addr = append(addr, &expr.Bitwise{SourceRegister: reg + 1, DestRegister: reg + 1, Len: l.addrLen(), Mask: none, Xor: none})
	}
	return join(loadProto(reg), addr, loadPort(reg+1+l.addrLen()/4, 2))
}

func (l *rules) lookup(s setID, reg uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, SetName: l.sets[s].name}}
}

func (l *rules) lookupNot(s setID, reg uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, SetName: l.sets[s].name, Invert: true}}
}

// find looks up reg in a map and leaves what it finds at dst.
func (l *rules) find(s setID, reg, dst uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg, DestRegister: dst, IsDestRegSet: true, SetName: l.sets[s].name}}
}

// follow looks up the front end in a verdict map and does what it says.
func (l *rules) follow(s setID) rule { return l.find(s, l.r.proto, unix.NFT_REG_VERDICT) }

func jump(chain string) rule {
	return rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func drop() rule { return rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

func ctNew(reg uint32) rule {
	return join(rule{&expr.Ct{Key: expr.CtKeySTATE, Register: reg}}, maskNotZero(reg, expr.CtStateBitNEW))
}

func maskNotZero(reg, bits uint32) rule { return maskCompare(reg, bits, expr.CmpOpNeq) }

func maskZero(reg, bits uint32) rule { return maskCompare(reg, bits, expr.CmpOpEq) }

// maskCompare compares some bits of a register with zero.
func maskCompare(reg, bits uint32, op expr.CmpOp) rule {
	mask := nfnetlink.Native.AppendUint32(nil, bits)
	zero := make([]byte, 4)
	return rule{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: zero},
		&expr.Cmp{Op: op, Register: reg, Data: zero},
	}
}

// setMark marks the packet for masquerading in postrouting.
func (l *rules) setMark() rule { return l.changeMark(^l.mark, l.mark) }

func (l *rules) changeMark(mask, xor uint32) rule {
	reg := l.r.src
	return rule{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: nfnetlink.Native.AppendUint32(nil, mask), Xor: nfnetlink.Native.AppendUint32(nil, xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}
}

func (l *rules) isLocalType(source bool) rule {
	return rule{
		&expr.Fib{Register: l.r.src, ResultADDRTYPE: true, FlagSADDR: source, FlagDADDR: !source},
		&expr.Cmp{Op: expr.CmpOpEq, Register: l.r.src, Data: nfnetlink.Native.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

func (l *rules) inPrefix(reg uint32, p netip.Prefix, op expr.CmpOp) rule {
	n := l.addrLen()
	mask := make([]byte, n)
	for i := 0; i < p.Bits(); i++ {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return rule{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()},
	}
}

// fromPod matches sources that are, or are not, local pods.
func (l *rules) fromPod(yes bool) rule {
	op := expr.CmpOpNeq
	if yes {
		op = expr.CmpOpEq
	}
	d := &l.plan.Detect
	switch d.Mode {
	case plan.DetectCIDR:
		return join(l.loadSrc(l.r.src), l.inPrefix(l.r.src, d.CIDR(l.v6), op))
	case plan.DetectInterface:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, d.Interface)
		return rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: l.r.src}, &expr.Cmp{Op: op, Register: l.r.src, Data: name}}
	default:
		return rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: l.r.src}, &expr.Cmp{Op: op, Register: l.r.src, Data: []byte(d.Interface)}}
	}
}

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
		{"filter-output-first", out, priorityBeforeDstNAT, "filter", ranges},
		{"filter-input", in, priorityFilter, "filter", append(input, noEndpoints)},
		{"filter-forward", fwd, priorityFilter, "filter", clusterIPs},
		{"filter-output", out, priorityFilter, "filter", clusterIPs},
		{"nat-prerouting", pre, priorityDstNAT, "nat", []rule{jump(chainServices)}},
		{"nat-output", out, priorityDstNAT, "nat", []rule{jump(chainServices)}},
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

// batch is a transaction of one family.
type batch struct {
	nfnetlink.Batch
	family byte
}

const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8

func (b *batch) start(typ, flags uint16) { b.Start(subsystem|typ, flags) }

func (b *batch) addTable() {
	b.start(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	b.String(unix.NFTA_TABLE_NAME, tableName)
	b.Attr(nftaTableUserdata, tableComment())
	b.End()
}

func (b *batch) deleteTable() {
	b.start(unix.NFT_MSG_DELTABLE, 0)
	b.String(unix.NFTA_TABLE_NAME, tableName)
	b.End()
}

// tableComment is the comment in libnftnl's encoding, so that nft prints it.
func tableComment() []byte {
	const udataTableComment = 0
	return append([]byte{udataTableComment, byte(len(layoutVersion) + 1)}, layoutVersion+"\x00"...)
}

func (b *batch) addChain(c *chain) {
	b.start(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.String(unix.NFTA_CHAIN_TABLE, tableName)
	b.String(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook >= 0 {
		hook := b.Nest(unix.NFTA_CHAIN_HOOK)
		b.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook))
		b.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		b.EndNest(hook)
		b.String(unix.NFTA_CHAIN_TYPE, c.typ)
	}
	b.End()
}

// setRules replaces the chain's rules.
func (b *batch) setRules(c *chain) error {
	b.start(unix.NFT_MSG_DELRULE, 0)
	b.String(unix.NFTA_RULE_TABLE, tableName)
	b.String(unix.NFTA_RULE_CHAIN, c.name)
	b.End()
	for _, r := range c.rules {
		b.start(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
		b.String(unix.NFTA_RULE_TABLE, tableName)
		b.String(unix.NFTA_RULE_CHAIN, c.name)
		list := b.Nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r {
			var data []byte
			switch e := e.(type) {
			case ctOf:
				data = e.append(nil)
			case expr.Any:
				var err error
				if data, err = expr.Marshal(b.family, e); err != nil {
					return fmt.Errorf("encode a rule of chain %s: %w", c.name, err)
				}
			}
			b.Attr(unix.NFTA_LIST_ELEM|nfnetlink.Nested, data)
		}
		b.EndNest(list)
		b.End()
	}
	return nil
}

func (b *batch) deleteChain(name string) {
	b.start(unix.NFT_MSG_DELCHAIN, 0)
	b.String(unix.NFTA_CHAIN_TABLE, tableName)
	b.String(unix.NFTA_CHAIN_NAME, name)
	b.End()
}
