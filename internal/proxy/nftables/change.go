package nftables

import (
	"net/netip"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// op is one element to add to a set or delete from it, already encoded.
type op struct {
	set   setID
	add   bool
	phase phase
	// pair ties a delete to the add that follows it: the kernel has no way to
	// replace an element's data but both in one transaction.
	pair     bool
	from, to uint32 // in the arena
}

// phase orders the operations of a change that is too big for a transaction:
// endpoints must be there before a front end leads to them, and stay until none
// does.
type phase uint8

const (
	phaseEndpoints phase = iota
	phaseFronts
	phaseSurplus
)

// change is what makes the kernel hold a service as planned.
type change struct {
	name     catalog.ServiceName
	old, new *service // nil when there is none
	ops      []op
}

// builder collects operations; its buffers are used again and again.
type builder struct {
	arena []byte
	ops   []op
	need  func(spread)
	// number takes a number for a service port with session affinity.
	number func() (uint32, bool)
	// What was and what is wanted, of the service at hand.
	old, new           []element
	oldLists, newLists []listOf
}

func (w *builder) reset() { w.arena, w.ops = w.arena[:0], w.ops[:0] }

// release gives back the memory that going through everything took; changes
// need little.
func (w *builder) release() { w.arena, w.ops = nil, nil }

// put records an operation; encode appends its list entry to the arena.
func (w *builder) put(set setID, add bool, ph phase, pair bool, encode func(b []byte) []byte) {
	from := uint32(len(w.arena))
	w.arena = encode(w.arena)
	w.ops = append(w.ops, op{set, add, ph, pair, from, uint32(len(w.arena))})
}

// change compares a service as it is held with its plan. Endpoints keep the
// places that they have in what prior returns, which may be nil. The result's
// ops stay valid until the builder is reset.
func (w *builder) change(name catalog.ServiceName, old *service, want *plan.Service, v6 bool, prior func(*port) *port) change {
	c := change{name: name, old: old}
	first := len(w.ops)
	var next *service
	for i := range want.Ports {
		p := &want.Ports[i]
		if p.Is6() != v6 {
			continue
		}
		if next == nil {
			next = &service{}
		}
		next.ports = append(next.ports, port{Port: *p})
	}
	if next != nil {
		for _, a := range want.LocalAddrs {
			if a.Is6() == v6 {
				next.local = append(next.local, a)
			}
		}
	}
	c.new = next
	var was, is []port
	if old != nil {
		was = old.ports
	}
	if next != nil {
		is = next.ports
	}
	for i := range is {
		p := &is[i]
		before := prior(p)
		if before == nil {
			before = &port{}
		}
		p.Cluster = seats(before.Cluster, p.Cluster)
		p.Local = seats(before.Local, p.Local)
		p.stick(before.sticky, w.number)
	}
	w.fronts(was, is)
	w.endpoints(was, is)
	c.ops = w.ops[first:len(w.ops):len(w.ops)]
	return c
}

// port returns the port that has the same cluster IP front end, or nil.
func (s *service) port(p *port) *port {
	if s == nil {
		return nil
	}
	if i := find(s.ports, p.key()); i >= 0 {
		return &s.ports[i]
	}
	return nil
}

func find(ports []port, k front) int {
	return slices.IndexFunc(ports, func(p port) bool { return p.key() == k })
}

// fronts compares the elements of front ends.
func (w *builder) fronts(was, is []port) {
	w.old, w.new = w.old[:0], w.new[:0]
	for i := range was {
		was[i].elements(func(e element) { w.old = append(w.old, e) }, func(spread) {})
	}
	for i := range is {
		is[i].elements(func(e element) { w.new = append(w.new, e) }, w.need)
	}
	if slices.Equal(w.old, w.new) {
		return
	}
	type key struct {
		set   setID
		front front
		extra netip.Prefix
	}
	before := make(map[key]target, len(w.old))
	for i := range w.old {
		e := &w.old[i]
		before[key{e.set, e.front, e.extra}] = e.value
	}
	for i := range w.new {
		e := &w.new[i]
		k := key{e.set, e.front, e.extra}
		v, had := before[k]
		delete(before, k)
		if had && v == e.value {
			continue
		}
		if had {
			w.put(e.set, false, phaseFronts, true, func(b []byte) []byte { return e.append(b, false) })
		}
		w.put(e.set, true, phaseFronts, false, func(b []byte) []byte { return e.append(b, true) })
	}
	for i := range w.old {
		e := &w.old[i]
		if _, gone := before[key{e.set, e.front, e.extra}]; gone {
			w.put(e.set, false, phaseFronts, false, func(b []byte) []byte { return e.append(b, false) })
		}
	}
}

// listOf is a list of endpoints under a front end.
type listOf struct {
	front front
	base  uint32
	slots []netip.AddrPort
	stick *sticky // with session affinity
}

// endpoints compares the slots under each front end.
func (w *builder) endpoints(was, is []port) {
	w.oldLists, w.newLists = appendLists(w.oldLists[:0], was), appendLists(w.newLists[:0], is)
	var none listOf
	for i := range w.newLists {
		l := &w.newLists[i]
		// The lists of an unchanged service stand at the same place.
		j := i
		if j >= len(w.oldLists) || !l.same(&w.oldLists[j]) {
			j = slices.IndexFunc(w.oldLists, func(o listOf) bool { return l.same(&o) })
		}
		o := &none
		if j >= 0 {
			o = &w.oldLists[j]
		}
		w.slots(l, o.slots, l.slots)
		w.sticky(l, o, l)
	}
	for i := range w.oldLists {
		l := &w.oldLists[i]
		if !slices.ContainsFunc(w.newLists, func(n listOf) bool { return l.same(&n) }) {
			w.slots(l, l.slots, nil)
			w.sticky(l, l, &none)
		}
	}
}

func (l *listOf) same(o *listOf) bool { return l.front == o.front && l.base == o.base }

func appendLists(lists []listOf, ports []port) []listOf {
	for i := range ports {
		p := &ports[i]
		p.lists(func(f front, base uint32, slots []netip.AddrPort) {
			lists = append(lists, listOf{f, base, slots, p.sticky})
		})
	}
	return lists
}

func (w *builder) slots(l *listOf, was, is []netip.AddrPort) {
	if len(was) > 0 && len(is) == len(was) && &was[0] == &is[0] {
		return // seats found nothing to change
	}
	for k := range max(len(was), len(is)) {
		slot := l.base + uint32(k)
		switch {
		case k >= len(is):
			w.put(setEndpoints, false, phaseSurplus, false, func(b []byte) []byte { return appendSlot(b, l.front, slot, was[k], false) })
		case k >= len(was):
			w.put(setEndpoints, true, phaseEndpoints, false, func(b []byte) []byte { return appendSlot(b, l.front, slot, is[k], true) })
		case was[k] != is[k]:
			w.put(setEndpoints, false, phaseEndpoints, true, func(b []byte) []byte { return appendSlot(b, l.front, slot, was[k], false) })
			w.put(setEndpoints, true, phaseEndpoints, false, func(b []byte) []byte { return appendSlot(b, l.front, slot, is[k], true) })
		}
	}
}

// sticky compares what session affinity needs to know of a list: the number of
// the endpoint in each slot, and the endpoint of each number.
func (w *builder) sticky(l, was, is *listOf) {
	if was.stick == nil && is.stick == nil {
		return
	}
	number := func(o *listOf, k int) (uint32, bool) {
		if o.stick == nil || k >= len(o.slots) {
			return 0, false
		}
		return o.stick.number | o.stick.ids[o.slots[k]], true
	}
	before := make(map[uint32]netip.AddrPort, len(was.slots))
	for k := range max(len(was.slots), len(is.slots)) {
		slot := l.base + uint32(k)
		old, had := number(was, k)
		now, has := number(is, k)
		if had {
			before[old&endpointMask] = was.slots[k]
		}
		if had && has && old == now {
			continue
		}
		if had {
			w.put(setAffinitySlots, false, phaseOf(has), has, func(b []byte) []byte { return appendSlotNumber(b, l.front, slot, 0, false) })
		}
		if has {
			w.put(setAffinitySlots, true, phaseEndpoints, false, func(b []byte) []byte { return appendSlotNumber(b, l.front, slot, now, true) })
		}
	}
	for k := range is.slots {
		now, has := number(is, k)
		if !has {
			break
		}
		id := now & endpointMask
		ep, had := before[id]
		delete(before, id)
		if had && ep == is.slots[k] {
			continue
		}
		at := l.base | endpointNumbers | id
		if had {
			w.put(setEndpoints, false, phaseEndpoints, true, func(b []byte) []byte { return appendSlot(b, l.front, at, ep, false) })
		}
		w.put(setEndpoints, true, phaseEndpoints, false, func(b []byte) []byte { return appendSlot(b, l.front, at, is.slots[k], true) })
	}
	for id, ep := range before {
		w.put(setEndpoints, false, phaseSurplus, false, func(b []byte) []byte {
			return appendSlot(b, l.front, l.base|endpointNumbers|id, ep, false)
		})
	}
}

// phaseOf a delete: at once if an add follows, else when nothing leads there.
func phaseOf(replaced bool) phase {
	if replaced {
		return phaseEndpoints
	}
	return phaseSurplus
}
