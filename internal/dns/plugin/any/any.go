// Package any answers queries of type ANY with the little that RFC 8482 asks
// for.
package any

import (
	"context"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "any"

type handler struct{ next plugin.Handler }

// Setup reads: any
func Setup(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Flag(); err != nil {
			return nil, err
		}
	}
	return func(next plugin.Handler) plugin.Handler { return &handler{next} }, nil
}

func (h *handler) Name() string { return name }

// ServeDNS answers ANY with a HINFO record (RFC 8482 §4.2).
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.Question[0].Qtype != dns.TypeANY {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Answer = []dns.RR{&dns.HINFO{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: 8482},
		Cpu: "ANY obsoleted", Os: "See RFC 8482",
	}}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// ServeDirect lets other types pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if q.Type == dns.TypeANY {
		return plugin.Chain
	}
	return plugin.Next
}
