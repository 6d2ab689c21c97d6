// Package view makes a server block answer only the queries that its
// expressions are true for.
package view

import (
	"context"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/expression"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
)

const name = "view"

// handler filters, and names its view in metadata; it changes nothing on a
// query's way.
type handler struct {
	next      plugin.Handler
	view      string
	programs  []*expression.Program
	collector metadata.Collector // of the block; nil without the metadata plugin
}

// Setup reads:
//
//	view NAME {
//	    expr EXPRESSION
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	d := lines[0]
	if err := d.Want(1, 1, "a name"); err != nil {
		return nil, err
	}
	h := &handler{view: d.Args[0].Text}
	for _, p := range d.Block {
		if p.Name.Text != "expr" {
			return nil, corefile.Unknown("property of view", p.Name, "expr")
		}
		if err := p.Want(1, -1, "an expression"); err != nil {
			return nil, err
		}
		words := make([]string, len(p.Args))
		for i, a := range p.Args {
			words[i] = a.Text
		}
		program, err := expression.Compile(p.Args[0], strings.Join(words, " "), expression.Of(context.Background(), nil))
		if err != nil {
			return nil, err
		}
		h.programs = append(h.programs, program)
	}
	b.View, b.Filter = h.view, h.filter
	b.OnStart(func(context.Context) error {
		for _, other := range b.Handlers() {
			if c, ok := other.(metadata.Collector); ok {
				h.collector = c
			}
		}
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

// filter tells whether every expression is true for r.
func (h *handler) filter(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) bool {
	if h.collector != nil {
		ctx = h.collector.Collect(ctx, w, r)
	}
	env := expression.Of(ctx, &plugin.Request{W: w, Req: r})
	for _, p := range h.programs {
		if !p.True(env) {
			return false
		}
	}
	return true
}

func (h *handler) Name() string { return name }

// ServeDNS passes the query on.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

// Metadata names the view as view/name.
func (h *handler) Metadata(ctx context.Context, _ *plugin.Request) {
	metadata.Set(ctx, "view/name", func() string { return h.view })
}
