package ipvs

import (
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// server is a virtual server: as the kernel holds it, and as it must be.
//
//	        claim            release             no established connection
//	(none) ──────▶ owned ────────────▶ draining ─────────────────────────▶ (none)
//	                 ▲                    │
//	                 └────────────────────┘ claim
type server struct {
	front
	owned bool // by a service; else it drains
	owner catalog.ServiceName

	// What the kernel holds.
	made  bool
	have  settings
	dests []dest // sorted by address

	// What it must hold. Draining, no destination takes new connections.
	want    settings
	targets []netip.AddrPort // sorted
	serving []netip.AddrPort

	// What it keeps in place for as long as it exists.
	bound    bool
	elements []element
}

// dest is a destination in the kernel. With weight 0 it gets no new connections
// and goes when it has none left.
type dest struct {
	addr   netip.AddrPort
	weight uint32
}

func (s *server) dest(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(s.dests, a, func(d dest, a netip.AddrPort) int { return d.addr.Compare(a) })
}

// drains tells whether the server holds something that must be looked at until
// it is gone.
func (s *server) drains() bool {
	return !s.owned || slices.ContainsFunc(s.dests, func(d dest) bool { return d.weight == 0 })
}

// graceful tells whether connections are let finish. A datagram flow has no
// end that IPVS could see.
func (s *server) graceful() bool { return s.proto == catalog.TCP }

// service is a service as it was last asked for.
type service struct {
	plan     plan.Service
	fronts   []front
	elements []element
}

// count is how many need an element or an address, and whether the kernel has
// it.
type count struct {
	refs int
	made bool
}

// state is everything that this dataplane holds or should.
type state struct {
	services map[catalog.ServiceName]*service
	servers  map[front]*server
	elements map[element]count
	addrs    map[netip.Addr]count // on kube-ipvs0

	draining map[*server]struct{}
	// found are virtual servers that the kernel has and nobody claimed yet,
	// while taking over.
	found map[front]*server

	// What the next commit must look at.
	touched         []*server
	touchedElements []element
	touchedAddrs    []netip.Addr
}

func newState() *state {
	return &state{
		services: make(map[catalog.ServiceName]*service), servers: make(map[front]*server),
		elements: make(map[element]count), addrs: make(map[netip.Addr]count), draining: make(map[*server]struct{}),
	}
}

func (st *state) refElement(e element, by int) {
	c := st.elements[e]
	c.refs += by
	st.elements[e] = c
	if (c.refs > 0) != c.made {
		st.touchedElements = append(st.touchedElements, e)
	}
}

func (st *state) refAddr(a netip.Addr, by int) {
	c := st.addrs[a]
	c.refs += by
	st.addrs[a] = c
	if (c.refs > 0) != c.made {
		st.touchedAddrs = append(st.touchedAddrs, a)
	}
	if by > 0 && c.refs == 1 || by < 0 && c.refs == 0 { // the first came or the last went
		st.refElement(element{set: setIPVSIPs, v6: a.Is6(), addr: a}, by)
	}
}

// drop takes a service's virtual servers from it.
func (st *state) drop(name catalog.ServiceName) {
	old := st.services[name]
	if old == nil {
		return
	}
	for _, f := range old.fronts {
		if s := st.servers[f]; s != nil && s.owned && s.owner == name {
			s.owned, s.targets, s.serving = false, nil, nil
			st.touched = append(st.touched, s)
		}
	}
	for _, e := range old.elements {
		st.refElement(e, -1)
	}
	delete(st.services, name)
}

// set gives a service what it needs. What it had was dropped before.
func (st *state) set(p *plan.Service, needs []need, elements []element) {
	if len(needs) == 0 && len(elements) == 0 {
		return
	}
	n := &service{plan: *p, elements: elements, fronts: make([]front, 0, len(needs))}
	for i := range needs {
		n.fronts = append(n.fronts, needs[i].front)
		st.claim(p.Name, &needs[i])
	}
	for _, e := range elements {
		st.refElement(e, 1)
	}
	st.services[p.Name] = n
}

func (st *state) claim(name catalog.ServiceName, n *need) {
	s := st.servers[n.front]
	if s == nil {
		if s = st.found[n.front]; s == nil {
			s = &server{front: n.front}
		}
		delete(st.found, n.front)
		st.servers[n.front] = s
	}
	s.owned, s.owner = true, name
	s.want, s.targets, s.serving = n.settings, n.dests, n.serving
	st.hold(s, n.bind, n.elements)
	st.touched = append(st.touched, s)
}

// hold makes the server keep other elements and its address in place.
func (st *state) hold(s *server, bind bool, elements []element) {
	if !slices.Equal(s.elements, elements) {
		for _, e := range elements {
			st.refElement(e, 1)
		}
		for _, e := range s.elements {
			st.refElement(e, -1)
		}
		s.elements = elements
	}
	switch {
	case bind && !s.bound:
		st.refAddr(s.addr, 1)
	case !bind && s.bound:
		st.refAddr(s.addr, -1)
	}
	s.bound = bind
}

// forget lets go of a server that the kernel has no more.
func (st *state) forget(s *server) {
	st.hold(s, false, nil)
	delete(st.servers, s.front)
	delete(st.draining, s)
}
