package hosts

import (
	"net/netip"
	"strings"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// Setup reads:
//
//	hosts [FILE [ZONES...]] {
//	    ADDRESS NAMES...
//	    ttl SECONDS
//	    no_reverse
//	    reload DURATION
//	    fallthrough [ZONES...]
//	    fallthrough_unsupported
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	d := lines[0]
	h := &handler{ttl: 3600, zones: b.Zones, source: source{
		path: "/etc/hosts", every: 5 * time.Second, reverse: true,
		log: b.Log(name), metrics: newMetrics(b.Env.Registry),
	}}
	if len(d.Args) > 0 {
		h.source.path = b.File(d.Args[0].Text)
	}
	if len(d.Args) > 1 {
		zones, err := corefile.ZoneList(d.Args[1:])
		if err != nil {
			return nil, err
		}
		h.zones = zones
	}
	var unsupported *corefile.Directive
	for i, p := range d.Block {
		if p.Name.Text == "fallthrough_unsupported" {
			unsupported = &d.Block[i]
		}
		if err := h.property(p); err != nil {
			return nil, err
		}
	}
	if unsupported != nil && len(h.fall.Zones) == 0 {
		e := corefile.Errorf(unsupported.Name, "fallthrough_unsupported without fallthrough has no effect")
		e.Expected = "a fallthrough line beside it"
		return nil, e
	}
	h.zoneScope, h.fallScope = scope.Of(h.zones...), scope.Of(h.fall.Zones...)
	h.source.zones, h.source.put = h.zones, h.table.Store
	h.table.Store(newTable())
	b.OnStart(h.source.start)
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

var properties = []string{"ttl", "no_reverse", "reload", "fallthrough", "fallthrough_unsupported"}

func (h *handler) property(p corefile.Directive) error {
	switch p.Name.Text {
	case "ttl":
		if err := p.Want(1, 1, "seconds"); err != nil {
			return err
		}
		n, err := p.Args[0].Number(1, 65535)
		h.ttl = uint32(n)
		return err
	case "no_reverse":
		h.source.reverse = false
		return p.Flag()
	case "reload":
		if err := p.Want(1, 1, "a duration, 0s for never"); err != nil {
			return err
		}
		var err error
		h.source.every, err = p.Args[0].DurationFrom(0)
		return err
	case "fallthrough":
		zones, err := corefile.ZoneList(p.Args)
		if len(zones) == 0 {
			zones = []string{"."}
		}
		h.fall.Zones = zones
		return err
	case "fallthrough_unsupported":
		h.unsupported = true
		return p.Flag()
	}
	// Anything else is a line of a hosts file, before fallthrough.
	if len(h.fall.Zones) > 0 {
		e := corefile.Unknown("property of hosts", p.Name, properties...)
		if e.Suggestion == "" {
			e.Expected = "entries before fallthrough"
		}
		return e
	}
	// CoreDNS takes any line, and forgets those that make no sense.
	if _, err := netip.ParseAddr(p.Name.Text); err != nil {
		e := corefile.Unknown("address or property of hosts", p.Name, properties...)
		h.source.log.Warn("the line is passed over: " + e.Error())
	} else if len(p.Args) == 0 {
		h.source.log.Warn("the line is passed over: " + corefile.Arguments(p, "names after the address").Error())
	}
	words := []string{p.Name.Text}
	for _, a := range p.Args {
		words = append(words, a.Text)
	}
	h.source.inline = append(h.source.inline, strings.Join(words, " ")...)
	h.source.inline = append(h.source.inline, '\n')
	return nil
}
