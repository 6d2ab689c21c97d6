// Package nsid tells clients that ask which server answered them (RFC 5001).
package nsid

import (
	"context"
	"encoding/hex"
	"os"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "nsid"

type handler struct {
	next plugin.Handler
	id   string // in hexadecimal
}

// Setup reads: nsid [WORDS...]
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	id, err := os.Hostname()
	if err != nil {
		id = "localhost"
	}
	if args := lines[0].Args; len(args) > 0 {
		words := make([]string, len(args))
		for i, a := range args {
			words[i] = a.Text
		}
		id = strings.Join(words, " ")
	}
	h := &handler{id: hex.EncodeToString([]byte(id))}
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) Name() string { return name }

// ServeDNS adds the identifier to the reply if the query has the option.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if o := r.IsEdns0(); o != nil {
		for _, opt := range o.Option {
			if opt.Option() == dns.EDNS0NSID {
				w = &writer{ResponseWriter: w, query: o, id: h.id}
				break
			}
		}
	}
	return plugin.NextOrFailure(name, h.next, ctx, w, r)
}

type writer struct {
	dns.ResponseWriter
	query *dns.OPT
	id    string
}

// WriteMsg puts the identifier into m's OPT record and writes m.
func (w *writer) WriteMsg(m *dns.Msg) error {
	o := m.IsEdns0()
	if o == nil {
		m.SetEdns0(w.query.UDPSize(), true)
		o = m.IsEdns0()
	}
	found := false
	for _, opt := range o.Option {
		if n, ok := opt.(*dns.EDNS0_NSID); ok {
			n.Nsid, found = w.id, true
		}
	}
	if !found {
		o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: w.id})
	}
	return w.ResponseWriter.WriteMsg(m)
}

// ServeDirect lets queries without options pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if len(q.Options) > 0 {
		return plugin.Chain
	}
	return plugin.Next
}
