package server

import (
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// direct answers q into buf, on the goroutine that read it, when every plugin
// of its block that matters can. Without a reply, by is the handler that passes
// the query on, or nil when the chain must be asked.
func (r *routes) direct(q *wire.Query, a *wire.Answer, buf []byte) (reply []byte, to *target, by *step) {
	if q.Type == dns.TypeDS {
		return nil, nil, nil
	}
	var t *target
	for i := 0; i <= q.Labels(); i++ {
		if z := r.lookup(q.Suffix(i)); z != nil {
			if len(z.targets) > 1 || z.targets[0].block.Filter != nil {
				return nil, nil, nil // a view decides, and it looks at a message
			}
			t = z.targets[0]
			break
		}
	}
	if t == nil || len(t.block.direct) == 0 || !a.Begin(q, buf) {
		return nil, nil, nil
	}
	for i := range t.block.direct {
		s := &t.block.direct[i]
		switch s.handler.ServeDirect(q, a) {
		case plugin.Chain:
			return nil, nil, nil
		case plugin.Pass:
			return nil, t, s
		case plugin.Answered:
			reply := a.Finish()
			for _, o := range t.block.observers {
				o.ObserveDirect(t.origin, s.name, q, a)
			}
			return reply, t, s
		}
	}
	return nil, nil, nil
}
