package log

import (
	"strings"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// Setup reads, any number of times:
//
//	log [NAMES...] [FORMAT] {
//	    class CLASS...
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{log: b.Env.Log}
	for _, d := range lines {
		rules, err := rulesOf(d)
		if err != nil {
			return nil, err
		}
		h.rules = append(h.rules, rules...)
		for _, r := range rules {
			h.scope = append(h.scope, scope.Of(r.zone)...)
		}
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

// rulesOf turns one line into a rule per name. A single argument is always a
// name; of several, the last one is the format if it has a placeholder.
func rulesOf(d corefile.Directive) ([]rule, error) {
	names, format := d.Args, common
	if n := len(names); n > 1 && strings.Contains(names[n-1].Text, "{") {
		format = names[n-1].Text
		names = names[:n-1]
	}
	zones, err := corefile.ZoneList(names)
	if err != nil {
		return nil, err
	}
	if len(zones) == 0 {
		zones = []string{"."}
	}
	var c classes
	for _, p := range d.Block {
		if p.Name.Text != "class" {
			return nil, corefile.Unknown("property of log", p.Name, "class")
		}
		if err := p.Want(1, -1, "success, denial, error or all"); err != nil {
			return nil, err
		}
		for _, a := range p.Args {
			if err := a.OneOf("class of replies", "success", "denial", "error", "all"); err != nil {
				return nil, err
			}
			c |= classNames[a.Text]
		}
	}
	if c == 0 {
		c = allClasses
	}
	pieces := compile(format)
	rules := make([]rule, len(zones))
	for i, z := range zones {
		rules[i] = rule{zone: z, classes: c, format: pieces}
	}
	return rules, nil
}

// classes is a set of reply classes.
type classes uint8

const allClasses = classes(1<<reply.Success | 1<<reply.Denial | 1<<reply.Error)

var classNames = map[string]classes{
	"success": 1 << reply.Success,
	"denial":  1 << reply.Denial,
	"error":   1 << reply.Error,
	"all":     allClasses,
}

func (c classes) has(k reply.Class) bool { return c&(1<<k) != 0 }
