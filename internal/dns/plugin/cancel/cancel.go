// Package cancel gives each query a deadline.
package cancel

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "cancel"

type handler struct {
	next    plugin.Handler
	timeout time.Duration
}

// Setup reads: cancel [TIMEOUT]
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{timeout: 5001 * time.Millisecond}
	for _, d := range lines {
		if err := d.Want(0, 1, "nothing, or a duration"); err != nil {
			return nil, err
		}
		if len(d.Args) == 1 {
			var err error
			if h.timeout, err = d.Args[0].DurationFrom(time.Nanosecond); err != nil {
				return nil, err
			}
		}
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) Name() string { return name }

// ServeDNS ends what the next plugins wait for after the timeout.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}
