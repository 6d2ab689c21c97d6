// Package plugin is the contract between the DNS server and what answers its
// queries: handlers in a fixed order (package order), each doing its part of a
// query and handing the rest to the next.
//
// A plugin is a folder below this one and a line in the order list. Its Setup
// turns the directives of one server block into a handler; it reads and
// validates only, so that `rutter check` can run it. Sockets, files that are
// watched and goroutines begin in the hooks it registers with the Block.
//
// Optional abilities are one-method interfaces found by type assertion:
// Direct, Relay and Observer (the direct path), DropObserver, Readiness.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// Handler answers queries, or passes them on.
type Handler interface {
	// Name is the plugin's name in the Corefile.
	Name() string
	// ServeDNS handles r. The returned rcode tells whether w was written to:
	// SERVFAIL, REFUSED, FORMERR and NOTIMP mean that it was not and that the
	// caller must answer (see ClientWrite); any other means that it was. The
	// error is logged by the errors plugin, it does not change the answer.
	//
	// r belongs to the query: a handler that alters it for the next one
	// restores it before it returns. Goroutines that outlive the call must
	// work on copies.
	ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (rcode int, err error)
}

// Outcome is what a handler did on the direct path.
type Outcome uint8

const (
	// Chain sends the query through the chain of handlers, from the first.
	Chain Outcome = iota
	// Next leaves the query to the next handler; the answer is untouched.
	Next
	// Answered says that the answer is complete but for its OPT record.
	Answered
	// Pass asks the server to give the query to the handler's Lane. Only a
	// handler that is a Relay may return it.
	Pass
)

// Direct is the ability to answer without the chain: on the goroutine that
// reads the socket, from memory, without allocating or waiting.
//
// A handler that has it and is asked must do what its ServeDNS would do. One
// that lacks it is passed over if its Effect is transparent; else the query
// and all others that reach it take the chain.
type Direct interface {
	ServeDirect(q *wire.Query, a *wire.Answer) Outcome
}

// Observer is told about each query of its server block that was answered on
// the direct path, once, after its answer was complete. The chain path calls
// ServeDNS instead, so metrics count every query once. It runs on many
// goroutines, q.Worker tells which, and must not keep q or a.
type Observer interface {
	ObserveDirect(o *Origin, answeredBy string, q *wire.Query, a *wire.Answer)
}

// DropObserver is told about queries that the server answered itself because
// no server block would (REFUSED and the like). One handler of the listener's
// blocks is asked.
type DropObserver interface {
	ObserveDrop(o *Origin, w dns.ResponseWriter, r *dns.Msg, rcode int)
}

// Readiness is asked by the ready plugin.
type Readiness interface {
	// Ready tells whether the plugin can do its work now.
	Ready() bool
}

// New makes the handler of a plugin in front of next, which is nil at the end
// of the chain. Several lines of one plugin may make a chain of their own.
type New func(next Handler) Handler

// Setup reads the directives that carry a plugin's name in one server block,
// in the order of the file (never none). It may set the Block's fields and
// register hooks, and returns nil for a plugin without a handler. It opens no
// socket, starts no goroutine and changes nothing outside the Block. Errors
// point at a word of the Corefile (corefile.Errorf).
type Setup func(b *Block, lines []corefile.Directive) (New, error)

// Effect is what a plugin may do to a query.
type Effect uint8

const (
	// Configures: shapes its server block or opens a port of its own; no
	// query meets it.
	Configures Effect = iota
	// Observes: looks at queries and replies, changes neither.
	Observes
	// Changes: may alter a query or a reply, or refuse the query.
	Changes
	// Answers: may answer with what others said (an upstream, a store
	// elsewhere), or hold such answers.
	Answers
	// Local: may answer from data that this process holds and keeps current.
	// Such answers are never cached.
	Local
)

func (e Effect) String() string {
	return [...]string{"configures", "observes", "changes", "answers", "local"}[e]
}

// Transparent tells whether a direct answer may pass the plugin by.
func (e Effect) Transparent() bool { return e <= Observes }

// Entry is a line of the order list.
type Entry struct {
	Name   string
	Setup  Setup // nil for a plugin that CoreDNS has and Rutter lacks
	Effect Effect
}

// errNoNext is CoreDNS's text, which users search for.
var errNoNext = errors.New("no next plugin found")

// NextOrFailure passes the query to next. Without one the answer is SERVFAIL.
func NextOrFailure(name string, next Handler, ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) { //nolint:revive // argument order as in CoreDNS
	if next == nil {
		return dns.RcodeServerFailure, Error(name, errNoNext)
	}
	if t := TraceOf(ctx); t != nil {
		t.enter(next.Name())
	}
	return next.ServeDNS(ctx, w, r)
}

// ClientWrite tells whether a handler that returned rcode has written a reply.
func ClientWrite(rcode int) bool {
	switch rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeFormatError, dns.RcodeNotImplemented:
		return false
	}
	return true
}

// Error names the plugin that err comes from: "plugin/NAME: text".
func Error(name string, err error) error { return fmt.Errorf("plugin/%s: %w", name, err) }

// Once refuses the second of a plugin's lines, for plugins that may stand in a
// block only once.
func Once(lines []corefile.Directive) error {
	if len(lines) > 1 {
		first := lines[0].Name
		return corefile.Errorf(lines[1].Name, "%s stands twice in this server block (first at %s:%d); keep one", first.Text, first.File, first.Line)
	}
	return nil
}

// Origin says where a query came in and which server block it was given to.
// It is the same value for all queries of one listener and zone.
type Origin struct {
	Server string // the metric label: "dns://:53"
	Zone   string // the block key that matched, "." for the root
	View   string // name of the block's view, usually empty
	// Serve asks the same listener again from the start: routing, then the
	// whole chain. The reply goes to w.
	Serve func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg)
}

// Trace follows one query through the chain.
type Trace struct {
	Origin *Origin
	Depth  int // how many lookups of this server's own it stands in

	received time.Time // of a query that a Lane had
	resumed  any       // what the Lane said

	mu      sync.Mutex // prefetching and hedging handlers go on in other goroutines
	reached string
}

func (t *Trace) enter(name string) {
	t.mu.Lock()
	t.reached = name
	t.mu.Unlock()
}

// Reached is the name of the plugin that the query was passed to last: after
// the chain returned, the one that answered.
func (t *Trace) Reached() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reached
}

type traceKey struct{}

// WithTrace returns a context in which TraceOf finds t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns the query's trace; nil outside a server (in tests).
func TraceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// OriginOf returns where the query came in; an empty Origin outside a server.
func OriginOf(ctx context.Context) *Origin {
	if t := TraceOf(ctx); t != nil && t.Origin != nil {
		return t.Origin
	}
	return &Origin{}
}
