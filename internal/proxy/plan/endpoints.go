package plan

import (
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
)

// candidate is an endpoint of one service port, before a choice was made.
type candidate struct {
	netip.AddrPort
	conditions catalog.Condition
	local      bool
	hints      *catalog.Hints
}

func (c *candidate) ready() bool { return c.conditions&catalog.Ready != 0 }

// draining: an endpoint that still answers but is going away. It is the last
// resort (KEP-1669).
func (c *candidate) draining() bool {
	const want = catalog.Serving | catalog.Terminating
	return c.conditions&want == want
}

// gather appends to buf the endpoints of the port, sorted, each address and
// port once.
func gather(buf []candidate, entry *catalog.Entry, name string, proto catalog.Protocol, v6 bool, node string) []candidate {
	for _, s := range entry.Slices {
		if s.IPv6 != v6 || s.Headless {
			continue
		}
		for _, port := range s.Ports {
			if port.Name != name || port.Protocol != proto || port.Port == 0 {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				// The API admits IPv4-mapped addresses in IPv4 slices.
				addr := e.Addr.Unmap()
				if !addr.IsValid() || addr.Is6() != v6 || e.Extra {
					continue
				}
				buf = append(buf, candidate{
					AddrPort:   netip.AddrPortFrom(addr, port.Port),
					conditions: e.Conditions,
					local:      node != "" && e.Node == node,
					hints:      e.Hints,
				})
			}
		}
	}
	if len(buf) < 2 {
		return buf
	}
	slices.SortStableFunc(buf, func(a, b candidate) int { return a.Compare(b.AddrPort) })
	// An address may be in two slices while it moves between them, or when a
	// pod's address was given to another pod: a later one replaces the earlier
	// unless the later is terminating.
	n := 0
	for i := 1; i < len(buf); i++ {
		if buf[i].AddrPort != buf[n].AddrPort {
			n++
			buf[n] = buf[i]
		} else if buf[i].conditions&catalog.Terminating == 0 {
			buf[n] = buf[i]
		}
	}
	return buf[:n+1]
}

// topology is how hints restrict the choice.
type topology uint8

const (
	anywhere topology = iota
	sameNode          // PreferSameNode, KEP-3015
	sameZone          // PreferSameZone, KEP-2433
)

// topologyOf decides by the ready endpoints: one without hints turns a mode
// off for all, because hints are only balanced as a whole.
func topologyOf(list []candidate, node *Node) topology {
	allNode, allZone := true, node.Zone != ""
	forNode, forZone := false, false
	for i := range list {
		c := &list[i]
		if !c.ready() {
			continue
		}
		if c.hints == nil {
			return anywhere
		}
		allNode = allNode && len(c.hints.Nodes) > 0
		allZone = allZone && len(c.hints.Zones) > 0
		forNode = forNode || slices.Contains(c.hints.Nodes, node.Name)
		forZone = forZone || slices.Contains(c.hints.Zones, node.Zone)
	}
	switch {
	case allNode && forNode:
		return sameNode
	case allZone && forZone:
		return sameZone
	}
	return anywhere
}

func (t topology) allows(c *candidate, node *Node) bool {
	switch t {
	case sameNode:
		return slices.Contains(c.hints.Nodes, node.Name)
	case sameZone:
		return slices.Contains(c.hints.Zones, node.Zone)
	}
	return true
}

// clusterList: ready endpoints that topology allows; without any, those that
// are draining.
func clusterList(list []candidate, node *Node) []netip.AddrPort {
	t := topologyOf(list, node)
	chosen := pick(list, func(c *candidate) bool { return c.ready() && t.allows(c, node) })
	if len(chosen) == 0 {
		chosen = pick(list, (*candidate).draining)
	}
	return chosen
}

// localList: the ready endpoints of this node; without any, its draining ones.
func localList(list []candidate) []netip.AddrPort {
	chosen := pick(list, func(c *candidate) bool { return c.local && c.ready() })
	if len(chosen) == 0 {
		chosen = pick(list, func(c *candidate) bool { return c.local && c.draining() })
	}
	return chosen
}

func pick(list []candidate, want func(*candidate) bool) []netip.AddrPort {
	n := 0
	for i := range list {
		if want(&list[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	chosen := make([]netip.AddrPort, 0, n)
	for i := range list {
		if want(&list[i]) {
			chosen = append(chosen, list[i].AddrPort)
		}
	}
	return chosen
}
