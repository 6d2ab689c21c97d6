// Package file answers from zone files.
package file

import (
	"context"
	"errors"
	"log/slog"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/file/zone"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "file"

type handler struct {
	next      plugin.Handler
	log       *slog.Logger
	zones     plugin.Zones
	files     map[string]*File // by zone
	fall      plugin.Fall
	fallScope scope.Scope
	byWire    map[string]*File // by zone in wire form
}

func (h *handler) Name() string { return name }

// ServeDNS answers for the most specific of the zones.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	origin := h.zones.Matches(q.Name())
	if origin == "" {
		if h.next == nil {
			return dns.RcodeRefused, nil // it is authoritative for nothing else
		}
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	z := h.files[origin].Zone()
	if z == nil {
		return dns.RcodeServerFailure, nil // not there yet
	}
	if r.Opcode == dns.OpcodeNotify {
		return dns.RcodeSuccess, nil // for secondaries only: dropped, as if written
	}
	return Answer(ctx, q, z, h.fall, h.next, name)
}

// Answer answers q from a zone that its name is in, for the plugin of that
// name.
func Answer(ctx context.Context, q *plugin.Request, z *zone.Zone, fall plugin.Fall, next plugin.Handler, name string) (int, error) {
	if t := q.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR {
		return dns.RcodeRefused, nil // that is for the transfer plugin
	}
	res := z.Lookup(zone.Query{Name: q.Name(), Type: q.QType(), DO: q.Do(), Outside: func(name string, qtype uint16) (*dns.Msg, error) {
		if t := plugin.TraceOf(ctx); t != nil && t.Depth >= maxDepth {
			return nil, errLoop
		}
		return plugin.Lookup(ctx, q.W, q.Req, name, qtype)
	}})
	if len(res.Answer) == 0 && (res.Kind == zone.NameError || res.Kind == zone.NoNode) && fall.Through(q.Name()) {
		return plugin.NextOrFailure(name, next, ctx, q.W, q.Req)
	}
	if res.Wildcard != "" {
		metadata.Set(ctx, "zone/wildcard", func() string { return res.Wildcard })
	}
	m := new(dns.Msg)
	m.SetReply(q.Req)
	m.Answer, m.Ns, m.Extra = res.Answer, res.Ns, res.Extra
	m.Authoritative = res.Kind != zone.Delegation || len(res.Answer) > 0
	switch res.Kind {
	case zone.NameError:
		m.Rcode = dns.RcodeNameError
	case zone.Failure:
		if len(m.Answer) == 0 {
			return dns.RcodeServerFailure, nil
		}
		m.Rcode = dns.RcodeServerFailure // of the alias's target (RFC 6604 §3)
	}
	return dns.RcodeSuccess, q.W.WriteMsg(m)
}

// maxDepth is how often an alias may lead back into a zone (CoreDNS's number).
const maxDepth = 8

var errLoop = errors.New("aliases go in a circle")

// find returns the file of the most specific zone that a name (wire form) is
// in.
func (h *handler) find(wireName []byte) *File {
	for {
		if f := h.byWire[string(wireName)]; f != nil {
			return f
		}
		if len(wireName) <= 1 {
			return nil
		}
		wireName = wireName[1+int(wireName[0]):]
	}
}

// ServeDirect answers what zones can answer from wire form.
func (h *handler) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	f := h.find(q.Name)
	if f == nil {
		if h.next == nil {
			return plugin.Chain
		}
		return plugin.Next
	}
	z := f.Zone()
	switch {
	case z == nil, q.Type == dns.TypeAXFR, q.Type == dns.TypeIXFR:
		return plugin.Chain
	case !z.Has(q.Name) && h.fallScope.Has(q):
		return plugin.Chain
	}
	kind, ok := z.Direct(q, a)
	if !ok || kind == zone.NoNode && h.fallScope.Has(q) {
		return plugin.Chain
	}
	return plugin.Answered
}

// Owns tells whether name (wire form, lower case) exists in a zone: what the
// cache knows of it is out of date then.
func (h *handler) Owns(name []byte) bool {
	f := h.find(name)
	if f == nil {
		return false
	}
	z := f.Zone()
	return z != nil && z.Has(name)
}
