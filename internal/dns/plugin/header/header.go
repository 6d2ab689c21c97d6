// Package header sets and clears header flags of queries and replies.
package header

import (
	"context"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "header"

type handler struct {
	next            plugin.Handler
	query, response []rule
}

// rule gives a flag a value.
type rule struct {
	flag
	to bool
}

// flag is a header flag, in a message and on the wire.
type flag struct {
	of  func(*dns.MsgHdr) *bool
	bit uint16
}

var flags = map[string]flag{
	"aa": {func(h *dns.MsgHdr) *bool { return &h.Authoritative }, 0x0400},
	"ra": {func(h *dns.MsgHdr) *bool { return &h.RecursionAvailable }, 0x0080},
	"rd": {func(h *dns.MsgHdr) *bool { return &h.RecursionDesired }, 0x0100},
}

// Setup reads:
//
//	header {
//	    query|response set|clear FLAGS...
//	}
//
// Of several lines the first that has rules counts.
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{}
	for _, d := range lines {
		if err := d.Want(0, 0, "no argument"); err != nil {
			return nil, err
		}
		for _, p := range d.Block {
			if err := h.parse(p); err != nil {
				return nil, err
			}
		}
		if len(h.query)+len(h.response) > 0 {
			break
		}
	}
	if len(h.query)+len(h.response) == 0 {
		e := corefile.Errorf(lines[0].Name, "header has no rule")
		e.Expected = "a block with lines such as: response set ra"
		return nil, e
	}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) parse(p corefile.Directive) error {
	if err := p.Want(2, -1, "set or clear, and flags"); err != nil {
		return err
	}
	action := p.Args[0]
	action.Text = strings.ToLower(action.Text)
	if err := action.OneOf("action of header", "set", "clear"); err != nil {
		return err
	}
	var rules []rule
	for _, t := range p.Args[1:] {
		f, ok := flags[strings.ToLower(t.Text)]
		if !ok {
			return corefile.Unknown("flag", t, "aa", "ra", "rd")
		}
		rules = append(rules, rule{f, action.Text == "set"})
	}
	switch strings.ToLower(p.Name.Text) {
	case "query":
		h.query = append(h.query, rules...)
	case "response":
		h.response = append(h.response, rules...)
	default:
		return corefile.Unknown("property of header", p.Name, "query", "response")
	}
	return nil
}

func (h *handler) Name() string { return name }

// ServeDNS changes the query for the next plugins and what they reply.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	hdr := r.MsgHdr
	apply(&r.MsgHdr, h.query)
	defer func() { r.MsgHdr = hdr }()
	return plugin.NextOrFailure(name, h.next, ctx, &writer{w, h.response}, r)
}

// ServeDirect leaves word of what to do to the reply's flags. What it does to
// queries, the next plugins would have to see.
func (h *handler) ServeDirect(_ *wire.Query, a *wire.Answer) plugin.Outcome {
	if len(h.query) > 0 {
		return plugin.Chain
	}
	for _, r := range h.response {
		if r.to {
			a.SetFlags, a.ClearFlags = a.SetFlags|r.bit, a.ClearFlags&^r.bit
		} else {
			a.SetFlags, a.ClearFlags = a.SetFlags&^r.bit, a.ClearFlags|r.bit
		}
	}
	return plugin.Next
}

func apply(h *dns.MsgHdr, rules []rule) {
	for _, r := range rules {
		*r.of(h) = r.to
	}
}

type writer struct {
	dns.ResponseWriter
	rules []rule
}

// WriteMsg changes m's flags and writes it.
func (w *writer) WriteMsg(m *dns.Msg) error {
	apply(&m.MsgHdr, w.rules)
	return w.ResponseWriter.WriteMsg(m)
}
