package acl

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// Setup reads, any number of times:
//
//	acl [ZONES...] {
//	    allow|block|filter|drop [type TYPES...] [net NETWORKS...]
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{metrics: newMetrics(b.Env.Registry)}
	for _, d := range lines {
		zones, err := corefile.ZoneList(d.Args)
		if err != nil {
			return nil, err
		}
		r := rule{zones: zones}
		if len(zones) == 0 {
			r.zones = b.Zones
		}
		r.scope = scope.Of(r.zones...)
		for _, p := range d.Block {
			pol, err := parse(p)
			if err != nil {
				return nil, err
			}
			r.policies = append(r.policies, pol)
		}
		h.rules = append(h.rules, r)
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func parse(d corefile.Directive) (policy, error) {
	p := policy{action: actions[strings.ToLower(d.Name.Text)]}
	if p.action == none {
		return p, corefile.Unknown("action of acl", d.Name, "allow", "block", "filter", "drop")
	}
	var all bool // types
	var types, nets []corefile.Token
	var section *[]corefile.Token
	hasTypes, hasNets := false, false
	for i, t := range d.Args {
		switch strings.ToLower(t.Text) {
		case "type":
			section, hasTypes = &types, true
		case "net":
			section, hasNets = &nets, true
		default:
			if section == nil {
				return p, corefile.Unknown("word in acl", t, "type", "net")
			}
			*section = append(*section, t)
			continue
		}
		if i+1 == len(d.Args) || isSection(d.Args[i+1]) {
			e := corefile.Errorf(t, "%q has nothing after it", t.Text)
			e.Expected = "types such as A, or networks such as 10.0.0.0/8"
			return p, e
		}
	}
	for _, t := range types {
		if t.Text == "*" {
			all = true
			continue
		}
		qtype, ok := dns.StringToType[t.Text]
		if !ok {
			e := corefile.Errorf(t, "%q is no record type", t.Text)
			e.Expected = "a type such as A or MX, in capitals, or *"
			return p, e
		}
		p.types = append(p.types, qtype)
	}
	if all || !hasTypes {
		p.types = nil
	}
	p.anyone = !hasNets
	for _, t := range nets {
		if t.Text == "*" {
			p.anyone = true
			continue
		}
		n, err := network(t.Text)
		if err != nil {
			e := corefile.Errorf(t, "%q is no network", t.Text)
			e.Expected = "an address or a network such as 10.0.0.0/8"
			return p, e
		}
		p.nets = append(p.nets, n)
	}
	return p, nil
}

func isSection(t corefile.Token) bool {
	return strings.EqualFold(t.Text, "type") || strings.EqualFold(t.Text, "net")
}

// network reads a prefix, or an address as the prefix that is only it.
func network(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}
