package forward

import (
	"math/rand/v2"
	"sync/atomic"
)

// policy puts the upstreams in the order in which they are tried for a query.
type policy interface {
	order(all []*upstream) []*upstream
	// first is the place of the first of n upstreams for a query.
	first(n int) int
	// after is the order in which a query goes on whose first was all[first].
	after(all []*upstream, first int) []*upstream
}

// sequential tries them as they are written.
type sequential struct{}

func (sequential) order(all []*upstream) []*upstream { return all }

func (sequential) first(int) int { return 0 }

func (sequential) after(all []*upstream, first int) []*upstream { return from(all, first) }

// random tries them in any order.
type random struct{}

func (random) order(all []*upstream) []*upstream {
	if len(all) == 1 {
		return all
	}
	list := make([]*upstream, len(all))
	for i, j := range rand.Perm(len(all)) {
		list[i] = all[j]
	}
	return list
}

func (random) first(n int) int {
	if n == 1 {
		return 0
	}
	return rand.IntN(n)
}

func (random) after(all []*upstream, first int) []*upstream {
	list := from(all, first)
	rest := list[1:]
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return list
}

// roundRobin begins with the next one for each query.
type roundRobin struct{ queries atomic.Uint32 }

func (p *roundRobin) order(all []*upstream) []*upstream {
	if len(all) == 1 {
		return all
	}
	first := int(p.queries.Add(1)-1) % len(all)
	list := make([]*upstream, 0, len(all))
	list = append(list, all[first:]...)
	return append(list, all[:first]...)
}

func (p *roundRobin) first(n int) int { return int(p.queries.Add(1)-1) % n }

func (p *roundRobin) after(all []*upstream, first int) []*upstream { return from(all, first) }

// from returns all upstreams in their order, beginning with first.
func from(all []*upstream, first int) []*upstream {
	return append(append(make([]*upstream, 0, len(all)), all[first:]...), all[:first]...)
}
