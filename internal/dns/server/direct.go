package server

import (
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// direct answers q into buf, on the goroutine that read it, when every plugin
// of its block that matters can. It returns nil when the chain must be asked.
func (r *routes) direct(q *wire.Query, a *wire.Answer, buf []byte) []byte {
	if q.Type == dns.TypeDS {
		return nil
	}
	var t *target
	for i := 0; i <= q.Labels(); i++ {
		if z := r.lookup(q.Suffix(i)); z != nil {
			if len(z.targets) > 1 || z.targets[0].block.Filter != nil {
				return nil // a view decides, and it looks at a message
			}
			t = z.targets[0]
			break
		}
	}
	if t == nil || len(t.block.direct) == 0 || !a.Begin(q, buf) {
		return nil
	}
	for i := range t.block.direct {
		s := &t.block.direct[i]
		switch s.handler.ServeDirect(q, a) {
		case plugin.Chain:
			return nil
		case plugin.Answered:
			reply := a.Finish()
			for _, o := range t.block.observers {
				o.ObserveDirect(t.origin, s.name, q, a)
			}
			return reply
		}
	}
	return nil
}
