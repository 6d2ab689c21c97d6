// Package chaos answers questions of class CH about the server itself:
// version.bind, hostname.bind and the like (RFC 4892).
package chaos

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "chaos"

type handler struct {
	next    plugin.Handler
	version string
	authors []string
	host    string
}

// Setup reads: chaos [VERSION] [AUTHORS...]
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	d := lines[0]
	if err := d.NoBlock(); err != nil {
		return nil, err
	}
	h := &handler{version: "Rutter-" + b.Env.Version, authors: []string{"The Rutter authors"}, host: "localhost"}
	if len(d.Args) > 0 {
		h.version = d.Args[0].Text
	}
	if len(d.Args) > 1 {
		h.authors = nil
		for _, a := range d.Args[1:] {
			h.authors = append(h.authors, cut(a.Text))
		}
		slices.Sort(h.authors)
		h.authors = slices.Compact(h.authors)
	}
	h.version = cut(h.version)
	if host, err := os.Hostname(); err == nil {
		h.host = cut(host)
	}
	b.AnyClass = true
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

// cut makes s fit a character string (RFC 1035 §3.3).
func cut(s string) string { return s[:min(len(s), 255)] }

func (h *handler) Name() string { return name }

// ServeDNS answers TXT questions of class CH for the names it knows.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if q.QClass() != dns.ClassCHAOS || q.QType() != dns.TypeTXT {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	var texts []string
	switch q.Name() {
	case "version.bind.", "version.server.":
		texts = []string{h.version}
	case "hostname.bind.", "id.server.":
		texts = []string{h.host}
	case "authors.bind.":
		for _, i := range rand.Perm(len(h.authors)) {
			texts = append(texts, h.authors[i])
		}
	default:
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	for _, t := range texts {
		m.Answer = append(m.Answer, &dns.TXT{
			Hdr: dns.RR_Header{Name: q.QName(), Rrtype: dns.TypeTXT, Class: dns.ClassCHAOS},
			Txt: []string{t},
		})
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// ServeDirect lets queries of the Internet's class pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if q.Class != dns.ClassINET {
		return plugin.Chain
	}
	return plugin.Next
}
