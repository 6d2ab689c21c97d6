package forward

import (
	"math/rand/v2"
	"sync/atomic"
)

// policy puts the upstreams in the order in which they are tried for a query.
type policy interface {
	order(all []*upstream) []*upstream
}

// sequential tries them as they are written.
type sequential struct{}

func (sequential) order(all []*upstream) []*upstream { return all }

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
