package cache

import (
	"context"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/reply"
)

// maxRefreshes bounds the refreshes that go on at a time. What is not
// refreshed in the background is asked for when it has expired.
const maxRefreshes = 512

// refresh asks for an entry again in the background, unless that goes on or
// failed a moment ago.
func (h *handler) refresh(ctx context.Context, r *dns.Msg, f found) {
	if !f.beginRefresh(h.now()) {
		return
	}
	recheck := time.Duration(0)
	if f.stale {
		recheck = h.recheck
	}
	h.metrics.of(plugin.OriginOf(ctx)).prefetches.Inc()
	k := h.refresher(ctx, nobody{}, r.Copy(), f)
	if !h.inBackground(func() {
		_, _ = h.ask(k.ctx, k, k.req)
		f.endRefresh(h.now(), recheck, k.ok || !f.stale)
		// The new entry is as popular as the old one.
		if e := h.stores.success.get([]byte(f.name), f.qtype, f.qclass, f.do, f.cd); e != nil && e != f.entry {
			e.hits.Store(f.hits.Load())
		}
	}) {
		f.endRefresh(h.now(), recheck, false)
	}
}

// inBackground runs f unless too much runs already or the configuration has
// ended.
func (h *handler) inBackground(f func()) bool {
	if h.ctx == nil || h.ctx.Err() != nil || h.refreshes.Add(1) > maxRefreshes {
		h.refreshes.Add(-1)
		return false
	}
	h.tasks.Go(func() {
		defer h.refreshes.Add(-1)
		f()
	})
	return true
}

// refresher is a keeper without a client. It keeps only what is better than a
// stale entry.
type refresher struct {
	*keeper
	stale    bool
	ok       bool
	response *dns.Msg
}

func (h *handler) refresher(ctx context.Context, client nobody, r *dns.Msg, f found) *refresher {
	trace := &plugin.Trace{Origin: plugin.OriginOf(ctx)}
	if t := plugin.TraceOf(ctx); t != nil {
		trace.Depth = t.Depth
	}
	return &refresher{stale: f.stale, keeper: &keeper{
		ResponseWriter: client, handler: h, req: r, asked: f.question, ad: true, refresh: true,
		ctx: plugin.WithTrace(h.ctx, trace),
	}}
}

// WriteMsg keeps m and remembers it.
func (k *refresher) WriteMsg(m *dns.Msg) error {
	k.ok = false
	if k.local() {
		k.ok, k.response = true, m
		return nil
	}
	accepted := !k.stale || k.acceptable(m)
	if !accepted && (!k.handler.preferPositive || m.Truncated || !matches(m, k.req)) {
		return nil
	}
	err := k.keeper.WriteMsg(m)
	if accepted {
		k.ok, k.response = true, m
	}
	return err
}

// acceptable tells whether m may take the place of a stale entry (RFC 8767 §4).
func (k *refresher) acceptable(m *dns.Msg) bool {
	if m.Truncated || !matches(m, k.req) {
		return false
	}
	now := k.handler.now()
	if k.handler.preferPositive {
		return kindOf(m, now) == reply.Positive && answersQuestion(m)
	}
	switch reply.KindOf(m, now) {
	case reply.OtherError, reply.Meta, reply.Update:
		return false
	}
	return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError
}

// verified asks for a stale entry again before it is served. With recheck
// the caller has begun the refresh. It returns false when the stale entry must do: the reply
// is no better, or does not come in time and goes on in the background.
func (h *handler) verified(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, f found) (done bool, rcode int, err error) {
	client := nobody{}
	if h.verifyTimeout == 0 {
		client = nobody{local: w.LocalAddr(), remote: w.RemoteAddr()}
	}
	k := h.refresher(ctx, client, r.Copy(), f)
	finished := make(chan struct{})
	work := func() {
		defer close(finished)
		_, _ = h.ask(k.ctx, k, k.req)
		f.endRefresh(h.now(), h.recheck, k.ok)
	}
	if h.verifyTimeout == 0 {
		work()
	} else {
		if !h.inBackground(work) {
			f.endRefresh(h.now(), h.recheck, false)
			return false, 0, nil
		}
		timer := time.NewTimer(h.verifyTimeout)
		defer timer.Stop()
		select {
		case <-finished:
		case <-timer.C:
			return false, 0, nil
		}
	}
	if !k.ok {
		return false, 0, nil
	}
	m := k.response
	m.Id = r.Id
	m.Question = r.Question
	m.RecursionDesired = r.RecursionDesired
	if o := r.IsEdns0(); !r.AuthenticatedData && (o == nil || !o.Do()) {
		m.AuthenticatedData = false
	}
	return true, dns.RcodeSuccess, w.WriteMsg(m)
}

// nobody is the client of a refresh. Without an address it is one that takes
// replies of any size.
type nobody struct {
	local, remote net.Addr
}

func (n nobody) LocalAddr() net.Addr       { return orTCP(n.local) }
func (n nobody) RemoteAddr() net.Addr      { return orTCP(n.remote) }
func (nobody) WriteMsg(*dns.Msg) error     { return nil }
func (nobody) Write(b []byte) (int, error) { return len(b), nil }
func (nobody) Close() error                { return nil }
func (nobody) TsigStatus() error           { return nil }
func (nobody) TsigTimersOnly(bool)         {}
func (nobody) Hijack()                     {}
func (nobody) Network() string             { return "tcp" }

func orTCP(a net.Addr) net.Addr {
	if a == nil {
		return &net.TCPAddr{}
	}
	return a
}
