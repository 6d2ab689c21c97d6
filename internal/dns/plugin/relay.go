package plugin

import (
	"context"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// Relay is the ability to pass queries on to other servers as the bytes they
// are, without the chain: the reply comes later and on another goroutine.
//
//	server's reading goroutine: ServeDirect says Pass ──▶ Lane.Pass … Lane.Flush
//	a goroutine of the Relay's: reply arrives ──▶ Replies.Send … Replies.Flush
//	                            anything else ──▶ Ticket.Resume: the chain takes over
type Relay interface {
	Direct
	// Lane returns a way for the queries of one socket. Replies go to what
	// replies returns, one for each goroutine that has any. The handler's end
	// is the end of its lanes.
	Lane(replies func() Replies) Lane
}

// Lane takes queries over. It is used by one goroutine.
type Lane interface {
	// Pass takes over q, for which ServeDirect has just returned Pass with a,
	// and later ends t. False: it will not, and the chain must be asked.
	Pass(q *wire.Query, a *wire.Answer, t Ticket) bool
	// Flush sends what was passed since the last Flush.
	Flush()
}

// Replies are a batch of replies on their way to the clients of one socket. It
// is used by one goroutine.
type Replies interface {
	// Send answers t, whose query q is, with another server's reply, the bytes
	// b that r was parsed from, and ends t. The bytes are changed, and must
	// stay until Flush. False: the reply needs more than that, t goes on and b
	// is as it was.
	Send(t Ticket, q *wire.Query, r *wire.Reply, b []byte) bool
	Flush()
}

// Ticket is a query in a Lane's hands. Exactly one of Resume, Drop and
// Replies.Send ends it.
type Ticket interface {
	// Query reads the query into q again.
	Query(q *wire.Query)
	// Resume sends the query through the chain of handlers, where Resumed
	// returns state.
	Resume(state any)
	// Drop forgets the query: the handler is at its end.
	Drop()
}

// Keeper is a handler that keeps what others reply: its ServeDirect makes
// itself the Answer's Keeper and returns Next. It must not be one of several.
type Keeper interface {
	// Keep does to m, a reply to q that was relayed, what its ServeDNS does to
	// a reply on its way to the client.
	Keep(o *Origin, q *wire.Query, m *dns.Msg)
}

// Resume returns a trace for a query that was received then and that a Lane has
// given back with state.
func Resume(received time.Time, state any) *Trace { return &Trace{received: received, resumed: state} }

// Resumed returns the state with which a Lane gave the query back; nil for all
// other queries.
func Resumed(ctx context.Context) any {
	if t := TraceOf(ctx); t != nil {
		return t.resumed
	}
	return nil
}

// Received returns when the query arrived if it has been in a Lane, else now.
func Received(ctx context.Context) time.Time {
	if t := TraceOf(ctx); t != nil && !t.received.IsZero() {
		return t.received
	}
	return time.Now()
}
