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
	// What was and what is wanted, of the service at hand.
	old, new           []element
	oldLists, newLists []listOf
}

func (w *builder) reset() { w.arena, w.ops = w.arena[:0], w.ops[:0] }

// put records an operation; encode appends its list entry to the arena.
func (w *builder) put(set setID, add bool, ph phase, pair bool, encode func(b []byte) []byte) {
	from := uint32(len(w.arena))
	w.arena = encode(w.arena)
	w.ops = append(w.ops, op{set, add, ph, pair, from, uint32(len(w.arena))})
}

// change compares a service as it is held with its plan. The result's ops stay
// valid until the builder is reset.
func (w *builder) change(name catalog.ServiceName, old *service, want *plan.Service, v6 bool) change {
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
		next.ports = append(next.ports, port{*p})
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
		if j := find(was, is[i].key()); j >= 0 {
			is[i].Cluster = seats(was[j].Cluster, is[i].Cluster)
			is[i].Local = seats(was[j].Local, is[i].Local)
		}
	}
	w.fronts(was, is)
	w.endpoints(was, is)
	c.ops = w.ops[first:len(w.ops):len(w.ops)]
	return c
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
}

// endpoints compares the slots under each front end.
func (w *builder) endpoints(was, is []port) {
	w.oldLists, w.newLists = appendLists(w.oldLists[:0], was), appendLists(w.newLists[:0], is)
	for i := range w.newLists {
		l := &w.newLists[i]
		// The lists of an unchanged service stand at the same place.
		j := i
		if j >= len(w.oldLists) || !l.same(&w.oldLists[j]) {
			j = slices.IndexFunc(w.oldLists, func(o listOf) bool { return l.same(&o) })
		}
		if j < 0 {
			w.slots(l, nil, l.slots)
			continue
		}
		w.slots(l, w.oldLists[j].slots, l.slots)
	}
	for i := range w.oldLists {
		l := &w.oldLists[i]
		if !slices.ContainsFunc(w.newLists, func(n listOf) bool { return l.same(&n) }) {
			w.slots(l, l.slots, nil)
		}
	}
}

func (l *listOf) same(o *listOf) bool { return l.front == o.front && l.base == o.base }

func appendLists(lists []listOf, ports []port) []listOf {
	for i := range ports {
		ports[i].lists(func(f front, base uint32, slots []netip.AddrPort) {
			lists = append(lists, listOf{f, base, slots})
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
