// Package forward passes queries on to other servers.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

const name = "forward"

// maxTime is how long a query may take with all its attempts.
const maxTime = 5 * time.Second

// maxEverywhere bounds the queries that wait for upstreams, over all forward
// lines: three quarters of what the server's chain takes by default, so that
// dead upstreams do not keep what is answered here from being answered.
const maxEverywhere = 1536

var errFull = errors.New("too many queries wait for upstreams")

var errNoHealthy = errors.New("no healthy proxies")

// handler is one forward line.
type handler struct {
	next plugin.Handler
	log  *slog.Logger
	options
	lines     string // a hash of all forward lines
	upstreams []*upstream
	metrics   *metrics
	inFlight  atomic.Int64

	everywhere *atomic.Int64 // queries in all forward lines of the process

	scope, exceptScope scope.Scope // from and except
	relays             bool        // relayable, known at start
	mu                 sync.Mutex
	sockets            map[*socket]struct{} // of the relay

	ctx    context.Context // from start to stop: health checks live in it
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func (h *handler) Name() string { return name }

// Source tells whom the lines of the server block ask and how: what has been
// cached of them is forgotten when it changes.
func (h *handler) Source() string { return h.lines }

// ServeDNS passes r on unless it is outside the line's zone or in an exception.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if !plugin.InZone(q.Name(), h.from) || h.except.Matches(q.Name()) != "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	relayed := h.resumedFor(ctx, q)
	if n := h.inFlight.Add(1); h.maxConcurrent > 0 && n > int64(h.maxConcurrent) {
		h.inFlight.Add(-1)
		h.metrics.rejected.Inc()
		return dns.RcodeRefused, h.errConcurrent
	}
	defer h.inFlight.Add(-1)
	// Without a limit of the line's own, queries for others must find room.
	if h.everywhere.Add(1) > maxEverywhere {
		h.everywhere.Add(-1)
		return dns.RcodeServerFailure, errFull
	}
	defer h.everywhere.Add(-1)
	query, err := pack(r, q.Size())
	if err != nil {
		return dns.RcodeServerFailure, fmt.Errorf("packing the query: %w", err)
	}
	return h.attempt(ctx, q, query, relayed)
}

// attempt tries upstreams in the policy's order, again from the first when none
// is left, until one replies, the time is over or there were too many attempts.
// If the query was relayed (nil if not) that was the first attempt.
func (h *handler) attempt(ctx context.Context, q *plugin.Request, query *packed, relayed *resumed) (int, error) {
	start := time.Now()
	var list []*upstream
	if relayed != nil {
		start = relayed.sent
		list = h.policy.after(h.upstreams, slices.Index(h.upstreams, relayed.upstream))
	} else {
		list = h.policy.order(h.upstreams)
	}
	ctx, cancel := context.WithDeadline(ctx, start.Add(maxTime))
	defer cancel()
	passed := 0 // upstreams in a row that were down or whose rcode asks for another
	failed := 0 // attempts without a reply
	lastErr := errNoHealthy
	for i := 0; ctx.Err() == nil && (h.maxAttempts == 0 || failed < h.maxAttempts); i++ {
		if i == len(list) {
			i, passed = 0, 0
		}
		u := list[i]
		first := relayed // the attempt that was made
		if relayed = nil; first == nil && u.down(h.maxFails) {
			if passed++; passed < len(list) {
				continue
			}
			h.metrics.broken.Inc()
			if h.failfast {
				break
			}
			// All are down. Rather than to trust that, try any of them.
			u = list[rand.IntN(len(list))]
		}
		metadata.Set(ctx, "forward/upstream", func() string { return u.addr })
		var m *dns.Msg
		var err error
		if first != nil {
			m, err = h.outcome(ctx, first, q, query)
		} else {
			m, err = h.ask(ctx, u, q, query)
		}
		if err != nil {
			lastErr = err
			failed++
			if h.maxFails > 0 && !errors.Is(err, errBusy) {
				u.suspect(h.ctx, &h.tasks, h.check)
			}
			if passed < len(list) {
				continue
			}
			break
		}
		if !answers(m, q) {
			m = new(dns.Msg)
			m.SetRcode(q.Req, dns.RcodeFormatError)
			return dns.RcodeSuccess, q.W.WriteMsg(m)
		}
		if slices.Contains(h.failover, m.Rcode) {
			if passed++; passed < len(list) {
				continue
			}
		}
		if next, ok := h.next.(*handler); ok && h.wantsNext(m) {
			return plugin.NextOrFailure(name, next, ctx, q.W, q.Req)
		}
		return dns.RcodeSuccess, q.W.WriteMsg(m)
	}
	return dns.RcodeServerFailure, lastErr
}

// ask sends the query the way the client's came unless told otherwise.
func (h *handler) ask(ctx context.Context, u *upstream, q *plugin.Request, query *packed) (*dns.Msg, error) {
	stream := h.forceTCP || !h.preferUDP && q.Proto() == "tcp"
	m, err := u.exchange(ctx, query, stream)
	if err == nil && m.Truncated && h.preferUDP && !stream {
		return u.exchange(ctx, query, true)
	}
	return m, err
}

// outcome is what ask would have returned for the attempt of the relay.
func (h *handler) outcome(ctx context.Context, r *resumed, q *plugin.Request, query *packed) (*dns.Msg, error) {
	switch {
	case r.err != nil:
		return nil, r.err
	case r.raw == nil:
		return h.ask(ctx, r.upstream, q, query)
	}
	m, err := r.upstream.reply(query, r.raw, false, r.sent)
	if err == nil && m.Truncated && h.preferUDP {
		return r.upstream.exchange(ctx, query, true)
	}
	return m, err
}

// answers tells whether m is a reply to q's question.
func answers(m *dns.Msg, q *plugin.Request) bool {
	if !m.Response || len(m.Question) != 1 {
		return false
	}
	got := m.Question[0]
	return got.Qtype == q.QType() && got.Qclass == q.QClass() && strings.EqualFold(got.Name, q.Name())
}

// wantsNext tells whether the next forward line should have a go.
func (h *handler) wantsNext(m *dns.Msg) bool {
	if slices.Contains(h.nextOn, m.Rcode) {
		return true
	}
	return h.nextOnNoData && m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0
}

// start resolves upstreams that were written as names and makes the pools.
func (h *handler) start(ctx context.Context) error {
	if err := h.resolveNames(ctx); err != nil {
		return err
	}
	h.ctx, h.cancel = context.WithCancel(ctx)
	h.relays = h.relayable()
	for _, u := range h.upstreams {
		u.metrics = h.metrics
		u.start(&h.options)
	}
	h.tasks.Go(func() {
		tick := time.NewTicker(max(h.expire/2, 100*time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-h.ctx.Done():
				return
			case now := <-tick.C:
				for _, u := range h.upstreams {
					u.tidy(now)
				}
				h.tidySockets(now)
			}
		}
	})
	return nil
}

func (h *handler) stop() error {
	if h.cancel == nil {
		return nil // never started
	}
	h.cancel()
	for _, u := range h.upstreams {
		u.stop()
	}
	for _, s := range h.openSockets() {
		s.end(net.ErrClosed)
	}
	h.tasks.Wait()
	return nil
}

// openSockets lists those of the relay.
func (h *handler) openSockets() []*socket {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.sockets))
}
