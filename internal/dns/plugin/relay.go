package plugin

import (
	"context"
	"time"

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
	// Pass takes over q, for which ServeDirect has just returned Pass, and
	// later ends t. False: it will not, and the chain must be asked.
	Pass(q *wire.Query, t Ticket) bool
	// Flush sends what was passed since the last Flush.
	Flush()
}

// Replies are a batch of replies on their way to the clients of one socket. It
// is used by one goroutine.
type Replies interface {
	// Send answers t, whose query q is, with b. The bytes must stay as they
	// are until Flush, except that Send may reorder records. It ends t.
	Send(t Ticket, q *wire.Query, b []byte)
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
