// Package bufsize lowers the size of UDP replies that clients ask for, so that
// they need no fragments.
package bufsize

import (
	"context"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "bufsize"

type handler struct {
	next plugin.Handler
	size uint16
}

// Setup reads: bufsize [SIZE]
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{size: 1232} // DNS Flag Day 2020
	for _, d := range lines {
		if err := d.Want(0, 1, "nothing, or a size in bytes"); err != nil {
			return nil, err
		}
		if len(d.Args) == 1 {
			n, err := d.Args[0].Number(512, 4096)
			if err != nil {
				return nil, err
			}
			h.size = uint16(n)
		}
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) Name() string { return name }

// ServeDNS lowers the query's size: for the answer here and for upstreams.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if o := r.IsEdns0(); o != nil && o.UDPSize() > h.size {
		size := o.UDPSize()
		o.SetUDPSize(h.size)
		defer o.SetUDPSize(size)
	}
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

// ServeDirect lets queries pass that ask for no more.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if q.EDNS && q.Size > h.size {
		return plugin.Chain
	}
	return plugin.Next
}
