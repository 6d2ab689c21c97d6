// Package minimal leaves the authority and additional sections out of replies
// that have an answer.
package minimal

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
)

const name = "minimal"

type handler struct{ next plugin.Handler }

// Setup reads: minimal
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Flag(); err != nil {
			return nil, err
		}
	}
	return func(next plugin.Handler) plugin.Handler { return &handler{next} }, nil
}

func (h *handler) Name() string { return name }

// ServeDNS cuts what the next plugins reply.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure(name, h.next, ctx, &writer{w}, r)
}

type writer struct{ dns.ResponseWriter }

// WriteMsg writes m, without what is not needed if it is positive.
func (w *writer) WriteMsg(m *dns.Msg) error {
	if reply.KindOf(m, time.Now()) == reply.Positive {
		m.Ns, m.Extra = nil, nil
	}
	return w.ResponseWriter.WriteMsg(m)
}
