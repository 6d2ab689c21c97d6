// Package autopath walks a client's search path for it: the reply to the first
// name of a search is the reply to whichever name of it exists.
package autopath

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "autopath"

type handler struct {
	next    plugin.Handler
	zones   plugin.Zones
	scope   scope.Scope
	search  []string // of a file; the last is empty: the name by itself
	client  Searcher // whom to ask instead
	success *prometheus.CounterVec
}

// Searcher is a plugin that knows the search path of clients: zones that are
// fully qualified, the last one empty; none for a client it does not know.
type Searcher interface {
	AutoPath(q *plugin.Request) []string
}

// Setup reads: autopath [ZONES...] RESOLV-CONF|@PLUGIN
//
// Of several lines the last one counts.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{success: plugin.Register(b.Env.Registry, prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "coredns", Subsystem: "autopath", Name: "success_total",
		Help: "Queries that were answered with another name of the search path.",
	}, []string{"server"}))}
	var asked *corefile.Token
	for _, d := range lines {
		if err := d.Want(1, -1, "[ZONES...] and a file like /etc/resolv.conf, or @kubernetes"); err != nil {
			return nil, err
		}
		if err := d.NoBlock(); err != nil {
			return nil, err
		}
		last := d.Args[len(d.Args)-1]
		zones, err := corefile.ZoneList(d.Args[:len(d.Args)-1])
		if err != nil {
			return nil, err
		}
		if h.zones = zones; len(zones) == 0 {
			h.zones = b.Zones
		}
		asked, h.search = nil, nil
		if strings.HasPrefix(last.Text, "@") {
			asked = &last
			continue
		}
		conf, err := dns.ClientConfigFromFile(last.Text)
		if err != nil {
			return nil, corefile.Errorf(last, "search path: %w", err)
		}
		for _, s := range conf.Search {
			if zone, ok := plugin.NormalizeZone(s); ok {
				h.search = append(h.search, zone)
			}
		}
		h.search = append(h.search, "")
	}
	h.scope = scope.Of(h.zones...)
	b.OnStart(func(context.Context) error {
		if asked == nil {
			return nil
		}
		other := b.Handler(asked.Text[1:])
		if other == nil {
			return nil // as CoreDNS: a plugin that is not there knows no client
		}
		var ok bool
		if h.client, ok = other.(Searcher); !ok {
			return corefile.Errorf(*asked, "plugin %s does not know the search paths of clients", asked.Text[1:])
		}
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) Name() string { return name }

// ServeDNS tries base.element for each element of the search path if the name
// ends in the first one. The first reply that is not NXDOMAIN is returned, with
// an alias from the name asked for.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if h.zones.Matches(q.Name()) == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	search := h.search
	if h.client != nil {
		search = h.client.AutoPath(q)
	}
	if len(search) == 0 || !plugin.InZone(q.Name(), search[0]) || search[0] == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	asked := q.QName()
	base, ok := strings.CutSuffix(asked[:len(asked)-len(search[0])], ".")
	if !ok {
		return dns.RcodeServerFailure, fmt.Errorf("plugin/autopath: %s is the search element itself", asked)
	}
	defer func() { r.Question[0].Name = asked }()
	var first *dns.Msg
	firstCode := 0
	for i, element := range search {
		r.Question[0].Name = base + "." + element
		c := &plugin.Capture{ResponseWriter: w}
		rcode, err := plugin.NextOrFailure(name, h.next, ctx, c, r)
		if err != nil {
			return rcode, err
		}
		if i == 0 {
			first, firstCode = c.Msg, rcode
		}
		if !plugin.ClientWrite(rcode) || c.Msg == nil || c.Msg.Rcode == dns.RcodeNameError {
			continue
		}
		if i > 0 {
			alias(c.Msg, asked)
		}
		c.Msg.Question[0].Name = asked
		h.success.WithLabelValues(plugin.OriginOf(ctx).Server).Inc()
		return rcode, w.WriteMsg(c.Msg)
	}
	if first == nil {
		return firstCode, nil
	}
	first.Question[0].Name = asked
	return firstCode, w.WriteMsg(first)
}

// alias puts a CNAME from the name asked for in front of the answer.
func alias(m *dns.Msg, asked string) {
	for _, rr := range m.Answer {
		if h := rr.Header(); !strings.EqualFold(h.Name, asked) {
			c := &dns.CNAME{Hdr: dns.RR_Header{Name: asked, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: h.Ttl}, Target: h.Name}
			m.Answer = append([]dns.RR{c}, m.Answer...)
			return
		}
	}
}

// ServeDirect lets names outside the zones pass.
func (h *handler) ServeDirect(q *wire.Query, _ *wire.Answer) plugin.Outcome {
	if h.scope.Has(q) {
		return plugin.Chain
	}
	return plugin.Next
}
