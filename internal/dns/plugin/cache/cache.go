// Package cache keeps what other servers answered.
//
// Answers of plugins that hold their own data (order list: local) are not
// kept: they are always that data's present state. An entry whose name
// appears in such data is passed over.
package cache

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const name = "cache"

type handler struct {
	options
	next    plugin.Handler
	block   *plugin.Block
	scope   scope.Scope // zones
	metrics *metrics
	now     func() time.Time
	stores  *stores
	owners  []Owner

	ctx       context.Context // from start to stop: refreshes live in it
	cancel    context.CancelFunc
	tasks     sync.WaitGroup
	refreshes atomic.Int32
}

// Owner is implemented by handlers after the cache that can tell cheaply
// whether they have data of their own for a name now. The name is in wire form
// and lower case. It is called on the direct path.
type Owner interface {
	Owns(name []byte) bool
}

// stores are the two caches of a block. They outlive it.
type stores struct {
	success, denial *store
	zones           string // what may be in them, as text
}

func (s *stores) both() [2]*store { return [2]*store{s.success, s.denial} }

func newStores(o *options) *stores {
	return &stores{success: newStore(o.success.capacity), denial: newStore(o.denial.capacity), zones: o.content()}
}

// content describes what the options let into the stores.
func (o *options) content() string {
	text := ""
	for _, list := range []plugin.Zones{o.zones, o.success.disabled, o.denial.disabled} {
		for _, z := range list {
			text += z + " "
		}
		text += "/"
	}
	return text
}

// Source is implemented by handlers that answer with what others say. Their
// answers are forgotten when Source, a text for whom they ask, is another one
// after a reload.
type Source interface {
	Source() string
}

// keptKey names a block over reloads by what it serves, and by how many like it
// stand before it.
type keptKey struct {
	keys, view string
	nth        int32
}

type kept struct {
	mu      sync.Mutex
	sources string
	*stores
}

// start takes over what the block's predecessor has cached.
func (h *handler) start(ctx context.Context) error {
	behind := false // the cache in the order
	sources := ""
	for _, other := range h.block.Handlers() {
		if o, ok := other.(Owner); ok && behind {
			h.owners = append(h.owners, o)
		}
		if s, ok := other.(Source); ok {
			sources += other.Name() + " " + s.Source() + "\n"
		}
		behind = behind || other == plugin.Handler(h)
	}
	h.takeOver(h.key(), sources)
	h.ctx, h.cancel = context.WithCancel(ctx)
	return nil
}

func (h *handler) key() keptKey {
	k := keptKey{view: h.block.View}
	for _, key := range h.block.Keys {
		k.keys += key.String() + " "
	}
	k.keys += strings.Join(h.block.Bind, " ")
	k.nth = h.block.Shared(k, func() any { return new(atomic.Int32) }).(*atomic.Int32).Add(1)
	return k
}

// takeOver makes the stores kept under k the handler's, if they hold what it
// would have put there.
func (h *handler) takeOver(k keptKey, sources string) {
	old := h.block.Env.Kept(k, func() any { return &kept{stores: h.stores, sources: sources} }).(*kept)
	old.mu.Lock()
	defer old.mu.Unlock()
	same := old.stores
	switch {
	case old.sources != sources:
		old.sources, old.stores = sources, h.stores
	case same.zones == h.stores.zones && same.success.capacity() == h.stores.success.capacity() && same.denial.capacity() == h.stores.denial.capacity():
		h.stores = same
	default:
		h.stores.success.take(same.success, func(e *entry) bool { return h.keeps(e, h.success.disabled) })
		h.stores.denial.take(same.denial, func(e *entry) bool { return h.keeps(e, h.denial.disabled) })
		old.stores = h.stores
	}
}

func (h *handler) stop() error {
	if h.cancel != nil {
		h.cancel()
		h.tasks.Wait()
	}
	return nil
}

// keeps tells whether the options let an entry of a predecessor in.
func (h *handler) keeps(e *entry, disabled plugin.Zones) bool {
	qname, _, err := dns.UnpackDomainName([]byte(e.name), 0)
	return err == nil && h.zones.Matches(qname) != "" && disabled.Matches(qname) == ""
}

func (h *handler) Name() string { return name }

// found is the result of a lookup.
type found struct {
	*entry
	kind  int // of the store: 0 success, 1 denial
	stale bool
}

// lookup returns the entry to answer with: the denial comes first, but a
// failure does not hide an answer that is still there.
func (h *handler) lookup(qname []byte, qtype, qclass uint16, do, cd bool, now time.Time) found {
	usable := func(s *store) (e *entry, stale bool) {
		if e = s.get(qname, qtype, qclass, do, cd); e == nil {
			return nil, false
		}
		return e, h.expired(e, now)
	}
	gone := func(e *entry) bool {
		return e == nil || -e.remaining(now) >= int(h.staleFor/time.Second) && e.remaining(now) <= 0
	}

	positive, positiveStale := usable(h.stores.success)
	if gone(positive) {
		positive = nil
	}
	if h.preferPositive && h.staleFor > 0 && positive != nil {
		best := positive
		if !best.answers {
			best = best.lastGood
		}
		if !gone(best) {
			return found{best, 0, h.expired(best, now)}
		}
	}
	denial, denialStale := usable(h.stores.denial)
	if gone(denial) {
		denial = nil
	}
	switch {
	case denial != nil && (denial.rcode != dns.RcodeServerFailure || positive == nil):
		return found{denial, 1, denialStale}
	case positive != nil:
		return found{positive, 0, positiveStale}
	}
	return found{}
}

func (h *handler) expired(e *entry, now time.Time) bool { return e.remaining(now) <= 0 }

// owned tells whether the name is in data of this server's own.
func (h *handler) owned(qname []byte) bool {
	for _, o := range h.owners {
		if o.Owns(qname) {
			return true
		}
	}
	return false
}

// ServeDirect answers from entries that are neither stale nor due for a
// refresh; those take the chain.
func (h *handler) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	if !h.scope.Has(q) {
		return plugin.Next
	}
	now := q.Received
	if now.IsZero() {
		now = h.now()
	}
	f := h.lookup(q.Name, q.Type, q.Class, q.DO, q.CD, now)
	switch {
	case f.entry == nil:
		a.Keeper = h
		return plugin.Next
	case h.owned(q.Name):
		a.Keeper = owned{h}
		return plugin.Next
	case f.stale:
		return plugin.Chain
	case h.prefetch > 0 && f.hit(now, h.prefetchGap) >= h.prefetch && h.due(f.entry, now) && !f.refreshing.Load():
		return plugin.Chain
	case !f.append(a, h.ttl(f.entry, now)):
		return plugin.Chain
	}
	a.AuthenticData = f.ad && (q.DO || q.AD)
	return plugin.Answered
}

// ObserveDirect counts the hits of ServeDirect.
func (h *handler) ObserveDirect(o *plugin.Origin, answeredBy string, _ *wire.Query, a *wire.Answer) {
	if answeredBy != name {
		return
	}
	c := h.metrics.of(o)
	c.requests.Inc()
	kind := 1
	if a.Rcode == dns.RcodeSuccess && a.Count(wire.AnswerSection) > 0 {
		kind = 0
	}
	c.hits[kind].Inc()
}

// ttl is what the reply says is left.
func (h *handler) ttl(e *entry, now time.Time) uint32 {
	if h.keepTTL {
		return e.ttl
	}
	return uint32(max(e.remaining(now), 0))
}

// due tells whether so little is left of the TTL that a prefetch is in order.
func (h *handler) due(e *entry, now time.Time) bool {
	return e.remaining(now)*100 <= int(e.ttl)*h.prefetchAt+99 // rounded up
}

// ServeDNS answers from the cache, or asks the next plugin and keeps the reply.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if h.zones.Matches(q.Name()) == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	var buf [256]byte
	n, err := dns.PackDomainName(q.Name(), buf[:], 0, nil, false)
	if err != nil {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	qname := buf[:n]
	c := h.metrics.of(plugin.OriginOf(ctx))
	c.requests.Inc()
	now := h.now()
	f := h.lookup(qname, q.QType(), q.QClass(), q.Do(), r.CheckingDisabled, now)
	if f.entry != nil && h.owned(qname) {
		c.fresh.Inc()
		f = found{}
	}
	if f.entry == nil {
		c.misses.Inc()
		return h.ask(ctx, &keeper{ResponseWriter: w, handler: h, ctx: ctx, req: r, asked: questionOf(q, qname), ad: r.AuthenticatedData}, r)
	}
	c.hits[f.kind].Inc()
	if f.stale {
		if h.verify && (h.recheck == 0 || f.beginRefresh(now)) {
			if done, rcode, err := h.verified(ctx, w, r, f); done {
				return rcode, err
			}
		} else if !h.verify {
			h.refresh(ctx, r, f)
		}
		c.stale.Inc()
		ttl := h.staleTTL
		if h.keepTTL && ttl == 0 {
			ttl = f.ttl
		}
		return h.answer(w, r, f.entry, ttl)
	}
	if h.prefetch > 0 && f.hit(now, h.prefetchGap) >= h.prefetch && h.due(f.entry, now) {
		h.refresh(ctx, r, f)
	}
	return h.answer(w, r, f.entry, h.ttl(f.entry, now))
}

func questionOf(q *plugin.Request, qname []byte) question {
	return question{name: string(qname), qtype: q.QType(), qclass: q.QClass(), do: q.Do(), cd: q.Req.CheckingDisabled}
}

func (h *handler) answer(w dns.ResponseWriter, r *dns.Msg, e *entry, ttl uint32) (int, error) {
	m, err := e.message(r, ttl)
	if err != nil {
		return dns.RcodeServerFailure, plugin.Error(name, err)
	}
	o := r.IsEdns0()
	m.AuthenticatedData = e.ad && (r.AuthenticatedData || o != nil && o.Do())
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// ask sends the query on. It asks for authenticated data, since the reply is
// for later askers too (RFC 6840 §5.7).
func (h *handler) ask(ctx context.Context, k dns.ResponseWriter, r *dns.Msg) (int, error) {
	ad := r.AuthenticatedData
	r.AuthenticatedData = true
	defer func() { r.AuthenticatedData = ad }()
	return plugin.NextOrFailure(name, h.next, ctx, k, r)
}
