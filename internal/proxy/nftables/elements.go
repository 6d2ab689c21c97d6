package nftables

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// front is the key of most sets: what a packet was sent to.
type front struct {
	addr  netip.Addr // zero address for a node port
	port  uint16
	proto catalog.Protocol
}

func zero(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// target is the value of a map element: a verdict, or a number.
type target struct {
	code   int32
	chain  string // for a goto, if it is not to spread
	spread spread
	number uint32
}

func gotoChain(name string) target { return target{code: unix.NFT_GOTO, chain: name} }

const nfDrop = 0

// element is an element of a set or map. extra tells elements of one front end
// apart: a source range.
type element struct {
	set   setID
	front front
	extra netip.Prefix
	value target
}

// service is what the kernel holds, in one family, for a service.
type service struct {
	ports []port
	local []netip.Addr // endpoint addresses on this node
}

// port is a planned port whose endpoint lists have the order of the slots.
type port struct {
	plan.Port
	sticky *sticky // nil without session affinity
}

func (p *port) key() front {
	return front{p.ClusterIP.Addr(), p.ClusterIP.Port(), p.Protocol}
}

// without is what a front end without endpoints to lead to does.
func (p *port) without(local bool) target {
	if local && p.Usable {
		return target{code: nfDrop}
	}
	return gotoChain(chainReject)
}

// elements calls yield for the elements of the port's front ends, and need for
// each chain that they go to.
func (p *port) elements(yield func(element), need func(spread)) {
	lead := func(set setID, f front, s spread) {
		need(s)
		yield(element{set: set, front: f, value: target{code: unix.NFT_GOTO, spread: s}})
	}
	key := p.key()
	stick := func(f front) {
		if p.sticky != nil {
			yield(element{set: setAffinityServices, front: f, value: target{number: p.sticky.number}})
		}
	}
	stick(key)
	if n := len(p.Internal()); n > 0 {
		lead(setServices, key, spread{clusterIPFront, p.InternalLocal, markOffCluster, n, p.Affinity})
	} else {
		yield(element{set: setNoEndpoints, front: key, value: p.without(p.InternalLocal)})
	}
	external := func(f front, kind frontKind, policyChain string) {
		stick(f)
		switch {
		case len(p.Cluster) == 0:
			yield(element{set: setNoEndpoints, front: f, value: p.without(false)})
			return
		case !p.ExternalLocal:
			lead(setServices, f, spread{kind, false, markAlways, len(p.Cluster), p.Affinity})
			return
		}
		yield(element{set: setServices, front: f, value: gotoChain(policyChain)})
		lead(setShortcuts, f, spread{kind, false, markNever, len(p.Cluster), p.Affinity})
		if len(p.Local) > 0 {
			lead(setLocals, f, spread{kind, true, markNever, len(p.Local), p.Affinity})
		} else {
			yield(element{set: setNoEndpoints, front: f, value: p.without(true)})
		}
	}
	for i := range p.External {
		e := &p.External[i]
		f := front{e.Addr, key.port, key.proto}
		external(f, externalFront, chainExternalLocal)
		if e.Sources != nil {
			yield(element{set: setFirewall, front: f})
			for _, r := range e.Sources {
				yield(element{set: setSources, front: f, extra: r})
			}
		}
	}
	if p.NodePort != 0 {
		external(p.nodePort(), nodePortFront, chainNodePortLocal)
	}
}

// nodePort is the front end of the port's node port.
func (p *port) nodePort() front { return front{zero(p.Is6()), p.NodePort, p.Protocol} }

// lists calls yield for each list of endpoints that stands under a front end,
// with the number of its first slot.
func (p *port) lists(yield func(f front, base uint32, list []netip.AddrPort)) {
	if p.InternalLocal {
		yield(p.key(), localSlots, p.Local)
	} else {
		yield(p.key(), 0, p.Cluster)
	}
	external := func(f front) {
		yield(f, 0, p.Cluster)
		if p.ExternalLocal {
			yield(f, localSlots, p.Local)
		}
	}
	for i := range p.External {
		external(front{p.External[i].Addr, p.ClusterIP.Port(), p.Protocol})
	}
	if p.NodePort != 0 {
		external(p.nodePort())
	}
}

// Encoding. Keys and data are what rules put together in registers: each field
// padded to four bytes, ports and addresses in network order, slots in the
// host's.

func appendFront(b []byte, f front) []byte {
	b = append(b, byte(f.proto), 0, 0, 0)
	b = appendAddr(b, f.addr)
	return appendPort(b, f.port)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		x := a.As4()
		return append(b, x[:]...)
	}
	x := a.As16()
	return append(b, x[:]...)
}

func appendPort(b []byte, p uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, p), 0, 0)
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	return appendPort(appendAddr(b, a.Addr()), a.Port())
}

// appendElement appends the list entry for e, with its value if add.
func (e *element) append(b []byte, add bool) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
	if e.set == setSources {
		first, last := bounds(e.extra)
		b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return appendAddr(appendFront(b, e.front), first) })
		b = appendKey(b, nftaSetElemKeyEnd, func(b []byte) []byte { return appendAddr(appendFront(b, e.front), last) })
	} else {
		b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return appendFront(b, e.front) })
	}
	switch {
	case !add:
	case isVerdictMap(e.set):
		b = appendVerdict(b, e.value)
	case e.set == setAffinityServices:
		b = appendKey(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte { return nfnetlink.Native.AppendUint32(b, e.value.number) })
	}
	nfnetlink.EndNest(b, at)
	return b
}

func appendKey(b []byte, typ uint16, put func([]byte) []byte) []byte {
	outer := len(b)
	b = nfnetlink.AppendNest(b, typ)
	inner := len(b)
	b = append(b, 0, 0, 0, 0)
	b = put(b)
	nfnetlink.Native.PutUint16(b[inner:], uint16(len(b)-inner))
	nfnetlink.Native.PutUint16(b[inner+2:], unix.NFTA_DATA_VALUE)
	nfnetlink.EndNest(b, outer)
	return b
}

func appendVerdict(b []byte, t target) []byte {
	data := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_SET_ELEM_DATA)
	verdict := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_DATA_VERDICT)
	b = nfnetlink.AppendUint32(b, unix.NFTA_VERDICT_CODE, uint32(t.code))
	switch {
	case t.chain != "":
		b = nfnetlink.AppendString(b, unix.NFTA_VERDICT_CHAIN, t.chain)
	case t.code == unix.NFT_GOTO:
		var name [96]byte
		b = nfnetlink.AppendAttr(b, unix.NFTA_VERDICT_CHAIN, append(t.spread.appendName(name[:0]), 0))
	}
	nfnetlink.EndNest(b, verdict)
	nfnetlink.EndNest(b, data)
	return b
}

// appendSlot appends the list entry of a slot, with its endpoint if add.
func appendSlot(b []byte, f front, slot uint32, ep netip.AddrPort, add bool) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
	b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return nfnetlink.Native.AppendUint32(appendFront(b, f), slot) })
	if add {
		b = appendKey(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte { return appendAddrPort(b, ep) })
	}
	nfnetlink.EndNest(b, at)
	return b
}

// appendSlotNumber appends the list entry that tells the number of the endpoint
// in a slot.
func appendSlotNumber(b []byte, f front, slot, number uint32, add bool) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
	b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return nfnetlink.Native.AppendUint32(appendFront(b, f), slot) })
	if add {
		b = appendKey(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte { return nfnetlink.Native.AppendUint32(b, number) })
	}
	nfnetlink.EndNest(b, at)
	return b
}

// appendAddrs appends the list entry of a set of one or two addresses.
func appendAddrs(b []byte, addrs ...netip.Addr) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
	b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte {
		for _, a := range addrs {
			b = appendAddr(b, a)
		}
		return b
	})
	nfnetlink.EndNest(b, at)
	return b
}

// bounds are the first and the last address of a range.
func bounds(p netip.Prefix) (first, last netip.Addr) {
	first = p.Masked().Addr()
	b := first.AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ = netip.AddrFromSlice(b)
	return first, last
}

// seats puts the endpoints of want into slots so that those which keep their
// place are as many as possible: an endpoint that stays is not moved unless
// its slot is cut off, one that comes takes the slot of one that goes.
func seats(have, want []netip.AddrPort) []netip.AddrPort {
	if len(have) == 0 || len(want) == 0 {
		return want
	}
	// want is sorted, as every planned list is.
	seated := make([]bool, len(want))
	out := make([]netip.AddrPort, max(len(have), len(want)))
	taken := 0
	for i, ep := range have {
		if j, ok := slices.BinarySearchFunc(want, ep, netip.AddrPort.Compare); ok && !seated[j] {
			seated[j], out[i] = true, ep
			taken++
		}
	}
	if taken == len(want) && len(have) == len(want) {
		return have
	}
	free := 0
	for j, ep := range want {
		if seated[j] {
			continue
		}
		for out[free].IsValid() {
			free++
		}
		out[free] = ep
	}
	// More slots than endpoints: those from the end move into the gaps.
	for last := len(out) - 1; last >= len(want); last-- {
		if !out[last].IsValid() {
			continue
		}
		for out[free].IsValid() {
			free++
		}
		out[free] = out[last]
	}
	return out[:len(want):len(want)]
}
