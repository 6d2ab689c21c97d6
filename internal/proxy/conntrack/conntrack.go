// Package conntrack removes tracked flows that lead to where their service no
// longer leads.
//
// The kernel rewrites a flow as its first packet was. A UDP or SCTP client that
// goes on sending so keeps reaching an endpoint that is gone, or an address
// that became a service after it started: for hours, if it never pauses. TCP
// is left alone: its connections outlive what was decided for new ones, as
// Kubernetes promises.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// Front is what flows were sent to: an address and port of a service. The
// unspecified address of a family stands for node ports.
type Front struct {
	Addr     netip.Addr
	Port     uint16
	Protocol catalog.Protocol
}

// Wanted tells where the flows of front ends may lead: to these endpoints.
// Flows of a front end in it that lead elsewhere are removed, those of others
// are not touched.
type Wanted map[Front][]netip.AddrPort

// Node is what tells flows to this node from others.
type Node struct {
	// Addrs are the addresses that are local: a node port counts only there.
	Addrs []netip.Addr
	// Orphans are ranges of cluster IPs: flows that were rewritten there and
	// whose front end is not in Wanted are removed too. For use when Wanted
	// holds all front ends there are.
	Orphans []netip.Prefix
	// Relays tells whether an address is that of a socket of this node which
	// relays to the endpoints: flows that lead there are wanted while there is
	// an endpoint. Nil if there are none such.
	Relays func(netip.AddrPort) bool
}

// Cleaner removes flows in the network namespace it was opened in. It is used
// by one goroutine at a time.
type Cleaner struct{ conn *nfnetlink.Conn }

// Open connects to the kernel.
func Open() (*Cleaner, error) {
	c, err := nfnetlink.Dial()
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return &Cleaner{c}, nil
}

// Close ends the connection to the kernel.
func (c *Cleaner) Close() error { return c.conn.Close() }

// flow is an entry of the table.
type flow struct {
	proto catalog.Protocol
	dst   netip.AddrPort // as the client sent it
	from  netip.AddrPort // where replies come from: the endpoint
	// What names the entry to the kernel.
	orig, zone, id []byte
}

// Clean removes the flows that w does not want and returns how many those
// were.
func (c *Cleaner) Clean(w Wanted, node Node) (int, error) {
	var removed int
	for _, v6 := range []bool{false, true} {
		for _, proto := range []catalog.Protocol{catalog.UDP, catalog.SCTP} {
			if !w.has(v6, proto) && len(node.Orphans) == 0 {
				continue
			}
			n, err := c.clean(w, node, v6, proto)
			removed += n
			if err != nil {
				return removed, fmt.Errorf("conntrack: remove stale %v flows: %w", proto, err)
			}
		}
	}
	return removed, nil
}

func (w Wanted) has(v6 bool, proto catalog.Protocol) bool {
	for f := range w {
		if f.Protocol == proto && f.Addr.Is6() == v6 {
			return true
		}
	}
	return false
}

// stale tells whether the flow leads where it should not.
func (w Wanted) stale(f *flow, node *Node) bool {
	front := Front{f.dst.Addr(), f.dst.Port(), f.proto}
	endpoints, ok := w[front]
	if !ok && slices.Contains(node.Addrs, front.Addr) {
		front.Addr = netip.IPv4Unspecified()
		if f.dst.Addr().Is6() {
			front.Addr = netip.IPv6Unspecified()
		}
		endpoints, ok = w[front]
	}
	if !ok {
		return f.from != f.dst && slices.ContainsFunc(node.Orphans, func(p netip.Prefix) bool { return p.Contains(f.dst.Addr()) })
	}
	if slices.Contains(endpoints, f.from) {
		return false
	}
	return node.Relays == nil || len(endpoints) == 0 || !node.Relays(f.from)
}

func (c *Cleaner) clean(w Wanted, node Node, v6 bool, proto catalog.Protocol) (int, error) {
	family := byte(unix.NFPROTO_IPV4)
	if v6 {
		family = unix.NFPROTO_IPV6
	}
	var stale []flow
	list := func(filter []byte) error {
		stale = stale[:0]
		return c.conn.Dump(family, msgGet, filter, func() { stale = stale[:0] }, func(b []byte) {
			if f, ok := parseFlow(b); ok && f.proto == proto && w.stale(&f, &node) {
				f.orig, f.zone, f.id = slices.Clone(f.orig), slices.Clone(f.zone), slices.Clone(f.id)
				stale = append(stale, f)
			}
		})
	}
	// The kernel sorts out the other protocols before it copies anything;
	// before 5.8 it can't.
	err := list(protocolFilter(proto))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = list(nil)
	}
	if err != nil {
		return 0, fmt.Errorf("list: %w", err)
	}
	n := 0
	for i := range stale {
		attrs := nfnetlink.AppendAttr(nil, ctaTupleOrig|nfnetlink.Nested, stale[i].orig)
		if stale[i].zone != nil {
			attrs = nfnetlink.AppendAttr(attrs, ctaZone, stale[i].zone)
		}
		if stale[i].id != nil {
			attrs = nfnetlink.AppendAttr(attrs, ctaID, stale[i].id)
		}
		switch err := c.conn.Request(family, msgDelete, 0, attrs); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT): // ended by itself
			return n, fmt.Errorf("delete: %w", err)
		}
	}
	return n, nil
}

// From linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrigFlags = 1
	filterProtoNum     = 1 << 3
)

func protocolFilter(proto catalog.Protocol) []byte {
	var b []byte
	outer := len(b)
	b = nfnetlink.AppendNest(b, ctaTupleOrig)
	inner := len(b)
	b = nfnetlink.AppendNest(b, ctaTupleProto)
	b = nfnetlink.AppendAttr(b, ctaProtoNum, []byte{byte(proto)})
	nfnetlink.EndNest(b, inner)
	nfnetlink.EndNest(b, outer)
	outer = len(b)
	b = nfnetlink.AppendNest(b, ctaFilter)
	b = nfnetlink.AppendAttr(b, ctaFilterOrigFlags, nfnetlink.Native.AppendUint32(nil, filterProtoNum))
	nfnetlink.EndNest(b, outer)
	return b
}

func parseFlow(b []byte) (f flow, ok bool) {
	nfnetlink.Attributes(b, func(typ uint16, v []byte) {
		switch typ {
		case ctaTupleOrig:
			f.orig = v
			_, f.dst, f.proto = parseTuple(v)
		case ctaTupleReply:
			f.from, _, _ = parseTuple(v)
		case ctaZone:
			f.zone = v
		case ctaID:
			f.id = v
		}
	})
	return f, f.dst.IsValid() && f.from.IsValid()
}

func parseTuple(b []byte) (src, dst netip.AddrPort, proto catalog.Protocol) {
	var s, d netip.Addr
	var sport, dport uint16
	nfnetlink.Attributes(b, func(typ uint16, v []byte) {
		switch typ {
		case ctaTupleIP:
			nfnetlink.Attributes(v, func(typ uint16, v []byte) {
				switch typ {
				case ctaIPv4Src, ctaIPv6Src:
					s, _ = netip.AddrFromSlice(v)
				case ctaIPv4Dst, ctaIPv6Dst:
					d, _ = netip.AddrFromSlice(v)
				}
			})
		case ctaTupleProto:
			nfnetlink.Attributes(v, func(typ uint16, v []byte) {
				switch {
				case typ == ctaProtoNum && len(v) == 1:
					proto = catalog.Protocol(v[0])
				case typ == ctaProtoSrcPort && len(v) == 2:
					sport = binary.BigEndian.Uint16(v)
				case typ == ctaProtoDstPort && len(v) == 2:
					dport = binary.BigEndian.Uint16(v)
				}
			})
		}
	})
	return netip.AddrPortFrom(s, sport), netip.AddrPortFrom(d, dport), proto
}
