package server

import (
	"context"
	"hash/maphash"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// job is a query on its way to the chain of plugins: a copy of the message and
// the way back to the client. Jobs are reused.
type job struct {
	routes *routes
	raw    []byte
	query  wire.Query
	client netip.Addr
	w      replyWriter
	done   func()        // called after the last reply; may be nil
	trace  *plugin.Trace // of a query that was relayed before; else nil
}

// replyWriter is a dns.ResponseWriter for one query.
type replyWriter interface {
	dns.ResponseWriter
	// begin tells which query the replies are for.
	begin(req *dns.Msg)
}

// limiter runs jobs on at most max goroutines, which it keeps for a while to
// spare the next query the growing of a stack.
//
// When more than half are busy, a client (of those that hash alike) that has
// more than an eighth of all is refused more, so that one that floods leaves
// room for others; at the limit everybody is.
type limiter struct {
	max     int32
	open    atomic.Int32
	clients [1024]atomic.Int32
	seed    maphash.Seed
	jobs    chan *job
	full    prometheus.Counter
	unfair  prometheus.Counter
	pool    sync.Pool
}

func newLimiter(max int, shed *prometheus.CounterVec) *limiter {
	return &limiter{
		max:    int32(max),
		seed:   maphash.MakeSeed(),
		jobs:   make(chan *job),
		full:   shed.WithLabelValues("chain_full"),
		unfair: shed.WithLabelValues("chain_client_share"),
		pool:   sync.Pool{New: func() any { return &job{raw: make([]byte, 0, 1024)} }},
	}
}

func (l *limiter) bucket(client netip.Addr) *atomic.Int32 {
	b := client.As16()
	return &l.clients[maphash.Bytes(l.seed, b[:])%uint64(len(l.clients))]
}

// admit counts a query of client in, or refuses it.
func (l *limiter) admit(client netip.Addr) bool {
	open := l.open.Add(1)
	own := l.bucket(client).Add(1)
	switch {
	case open > l.max:
		l.full.Inc()
	case open > l.max/2 && own > l.max/8:
		l.unfair.Inc()
	default:
		return true
	}
	l.leave(client)
	return false
}

func (l *limiter) leave(client netip.Addr) {
	l.open.Add(-1)
	l.bucket(client).Add(-1)
}

// job returns an empty job with a copy of the message.
func (l *limiter) job(from *listener, raw []byte, client netip.Addr, w replyWriter) *job {
	j := l.pool.Get().(*job)
	j.routes, j.client, j.w, j.done = from.take(), client, w, nil
	j.raw = append(j.raw[:0], raw...)
	return j
}

// workerIdle is how long a worker without work is kept.
const workerIdle = 10 * time.Second

// run takes over an admitted job.
func (l *limiter) run(j *job) {
	select {
	case l.jobs <- j:
	default:
		go l.work(j)
	}
}

func (l *limiter) work(j *job) {
	idle := time.NewTimer(workerIdle)
	defer idle.Stop()
	for {
		j.serve()
		j.routes.gen.leave()
		l.leave(j.client)
		if j.done != nil {
			j.done()
		}
		j.routes, j.w, j.done, j.trace = nil, nil, nil, nil
		l.pool.Put(j)
		idle.Reset(workerIdle)
		select {
		case j = <-l.jobs:
		case <-idle.C:
			return
		}
	}
}

// serve parses the message and sends it through the chain.
func (j *job) serve() {
	var req *dns.Msg
	var err error
	if j.query.Parse(j.raw) == wire.Plain {
		req = message(&j.query)
	}
	if req == nil {
		req = new(dns.Msg)
		err = req.Unpack(j.raw)
	}
	j.w.begin(req)
	if err != nil {
		m := new(dns.Msg)
		m.MsgHdr = dns.MsgHdr{
			Id: req.Id, Response: true, Rcode: dns.RcodeFormatError,
			RecursionDesired: req.RecursionDesired, AuthenticatedData: req.AuthenticatedData, CheckingDisabled: req.CheckingDisabled,
		}
		m.Question = req.Question
		if b, err := m.Pack(); err == nil {
			_, _ = j.w.Write(b)
		}
		return
	}
	if j.trace == nil {
		j.trace = &plugin.Trace{}
	}
	ctx := plugin.WithTrace(j.routes.gen.ctx, j.trace)
	j.routes.guard(ctx, j.w, req)
}

// guard is serve with a net under it: a plugin that panics costs one SERVFAIL.
func (r *routes) guard(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		r.server.metrics.panics.Inc()
		trace := plugin.TraceOf(ctx)
		r.server.log.Error("a plugin panicked; the query was answered with SERVFAIL", "plugin", trace.Reached(), "panic", p, "stack", string(debug.Stack()))
		if len(req.Question) > 0 {
			writeError(w, req, dns.RcodeServerFailure)
		}
	}()
	r.serve(ctx, w, req)
}
