package server

import (
	"context"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// routes leads the queries of one listener to server blocks.
type routes struct {
	gen      *generation
	server   *Server
	key      listenerKey
	zones    map[string]*zone // by name in wire form
	lengths  [4]uint64        // bit set: lengths of the names in zones
	anyClass bool
	drops    plugin.DropObserver
	timeouts plugin.Timeouts
	sockets  int
}

// zone is a configured zone and the blocks for it: several only with views, in
// the order of the file.
type zone struct {
	name    string
	targets []*target
}

type target struct {
	block  *block
	origin *plugin.Origin
}

func (r *routes) lookup(suffix []byte) *zone {
	n := len(suffix)
	if r.lengths[n>>6]&(1<<(n&63)) == 0 {
		return nil
	}
	return r.zones[string(suffix)]
}

// find returns the block for a name (lower case wire form): that of the longest
// zone whose view, if it has one, takes the query. DS records live in the
// parent zone, so for them the shortest zone wins; the root block only when
// there is no other (as CoreDNS).
func (r *routes) find(name []byte, qtype uint16, accept func(*block) bool) *target {
	var found *target
	for i := 0; ; i += 1 + int(name[i]) {
		root := name[i] == 0
		if root && found != nil {
			return found
		}
		if z := r.lookup(name[i:]); z != nil {
			for _, t := range z.targets {
				if t.block.Filter == nil || accept(t.block) {
					found = t
					break
				}
			}
		}
		if root || found != nil && qtype != dns.TypeDS {
			return found
		}
	}
}

// serve is the door of the chain path: the server's own refusals, routing, the
// block's plugins, and the answer to what they left unanswered.
func (r *routes) serve(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) == 0 {
		r.refuse(ctx, w, req, dns.RcodeServerFailure)
		return
	}
	q := req.Question[0]
	if q.Qclass != dns.ClassINET && !r.anyClass {
		r.refuse(ctx, w, req, dns.RcodeRefused)
		return
	}
	if o := req.IsEdns0(); o != nil && o.Version() != 0 {
		writeBadVersion(w, req)
		return
	}
	var buf [256]byte
	n, err := dns.PackDomainName(q.Name, buf[:], 0, nil, false)
	if err != nil {
		r.refuse(ctx, w, req, dns.RcodeServerFailure)
		return
	}
	name := buf[:n]
	lower(name)
	t := r.find(name, q.Qtype, func(b *block) bool { return b.Filter(ctx, w, req) })
	if t == nil || t.block.first == nil {
		r.refuse(ctx, w, req, dns.RcodeRefused)
		return
	}
	trace := plugin.TraceOf(ctx)
	if trace == nil {
		trace = &plugin.Trace{}
		ctx = plugin.WithTrace(ctx, trace)
	}
	trace.Origin = t.origin
	rcode, _ := plugin.NextOrFailure("server", t.block.first, ctx, w, req)
	if !plugin.ClientWrite(rcode) {
		writeError(w, req, rcode)
	}
}

// refuse answers a query that no block takes.
func (r *routes) refuse(_ context.Context, w dns.ResponseWriter, req *dns.Msg, rcode int) {
	if r.drops != nil {
		r.drops.ObserveDrop(&plugin.Origin{Server: r.key.String(), Zone: "dropped"}, w, req, rcode)
	}
	writeError(w, req, rcode)
}

func lower(b []byte) {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' { // label lengths end at 63, before 'A'
			b[i] = c + 'a' - 'A'
		}
	}
}
