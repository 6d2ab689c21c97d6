package loadbalance

import (
	"context"
	"net/netip"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads
//
//	loadbalance [round_robin | weighted FILE { reload DURATION }] { prefer CIDR... }
//
// Of several lines the last counts.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	var h *handler
	for _, d := range lines {
		var err error
		if h, err = parse(b, d); err != nil {
			return nil, err
		}
	}
	if w := h.weights; w != nil {
		log := b.Log(name)
		b.OnStart(func(ctx context.Context) error {
			if err := w.load(); err != nil {
				if w.reload == 0 {
					return plugin.Error(name, err)
				}
				log.Warn("no weights yet", "error", err)
			}
			if w.reload > 0 {
				go w.follow(ctx, log)
			}
			return nil
		})
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func parse(b *plugin.Block, d corefile.Directive) (*handler, error) {
	h := &handler{}
	if len(d.Args) > 0 {
		switch policy := d.Args[0]; policy.Text {
		case "round_robin":
			if len(d.Args) > 1 {
				return nil, corefile.Arguments(d, "nothing after round_robin")
			}
		case "weighted":
			if len(d.Args) != 2 {
				return nil, corefile.Arguments(d, "a file after weighted")
			}
			h.weights = &weights{path: b.File(d.Args[1].Text), reload: 30 * time.Second}
		default:
			return nil, corefile.Unknown("policy of loadbalance", policy, "round_robin", "weighted")
		}
	}
	for _, p := range d.Block {
		switch {
		case p.Name.Text == "reload" && h.weights != nil:
			if len(p.Args) != 1 {
				return nil, corefile.Arguments(p, "a duration")
			}
			t, err := time.ParseDuration(p.Args[0].Text)
			if err != nil || t < 0 {
				return nil, corefile.Errorf(p.Args[0], "reload %q is not a duration such as 30s, or 0 for never", p.Args[0].Text)
			}
			h.weights.reload = t
		case p.Name.Text == "prefer":
			if len(p.Args) == 0 {
				return nil, corefile.Arguments(p, "networks in CIDR notation")
			}
			for _, a := range p.Args {
				n, err := netip.ParsePrefix(a.Text)
				if err != nil {
					return nil, corefile.Errorf(a, "prefer %q is not a network in CIDR notation", a.Text)
				}
				h.prefer = append(h.prefer, n.Masked())
			}
		case h.weights != nil:
			return nil, corefile.Unknown("property of loadbalance", p.Name, "reload", "prefer")
		default:
			return nil, corefile.Unknown("property of loadbalance", p.Name, "prefer")
		}
	}
	return h, nil
}
