package forward

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// pool is the connections of one transport to one upstream.
type pool struct {
	label   string // of the metrics: udp, tcp, tcp-tls
	dial    func(ctx context.Context) (net.Conn, error)
	stream  bool
	expire  time.Duration // idle connections are closed after it
	maxAge  time.Duration // 0: any age
	maxIdle int           // 0: any number

	mu      sync.Mutex
	conns   []*conn
	dialing int
	waiting []chan error // queries that wait for a dial of another one
	closed  bool
}

// Bounds per upstream and transport. Datagram sockets are shared by many
// queries and changed often, so that their ports stay hard to guess
// (RFC 5452 §9.2); a stream is shared by few, because an upstream that answers
// in order would make them wait for each other.
type bounds struct {
	conns   int // open at a time
	queries int // on one connection at a time
	load    int // queries on every connection that make another one worthwhile
	dials   int // at a time
}

var (
	datagrams = bounds{conns: 32, queries: 512, load: 8, dials: 32}
	streams   = bounds{conns: 256, queries: 16, load: 1, dials: 16}
)

// queriesOfSocket is after how many a datagram socket is changed.
const queriesOfSocket = 20_000

var errBusy = errors.New("too many queries wait for this upstream")

// get returns a connection with room for a query, which it has been added to
// with ch, and whether it was open before.
func (p *pool) get(ctx context.Context, ch chan<- result) (k *conn, id uint16, reused bool, err error) {
	b := &datagrams
	if p.stream {
		b = &streams
	}
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, 0, false, net.ErrClosed
		}
		mayDial := p.dialing < b.dials && len(p.conns)+p.dialing < b.conns
		if k, load := p.leastLoaded(); k != nil && (load < b.load || !mayDial) {
			if id, ok := k.add(b.queries, ch); ok {
				p.mu.Unlock()
				return k, id, true, nil
			}
		}
		if mayDial {
			p.dialing++
			p.mu.Unlock()
			k, id, err = p.open(ctx, b, ch)
			return k, id, false, err
		}
		if p.dialing == 0 {
			p.mu.Unlock()
			return nil, 0, false, errBusy
		}
		opened := make(chan error, 1)
		p.waiting = append(p.waiting, opened)
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, 0, false, ctx.Err()
		case err := <-opened:
			if err != nil {
				return nil, 0, false, err
			}
		}
	}
}

// open dials a connection for a query. Those that waited for it learn how it
// went: a dead upstream is not dialled once per query.
func (p *pool) open(ctx context.Context, b *bounds, ch chan<- result) (*conn, uint16, error) {
	c, err := p.dial(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing--
	waiting := p.waiting
	p.waiting = nil
	defer func() {
		for _, w := range waiting {
			w <- err
		}
	}()
	if err == nil && p.closed {
		c.Close()
		err = net.ErrClosed
	}
	if err != nil {
		return nil, 0, err
	}
	k := newConn(c, p.stream, time.Now())
	id, _ := k.add(b.queries, ch)
	p.conns = append(p.conns, k)
	return k, id, nil
}

// leastLoaded returns the open connection with the fewest queries, the first
// one without any from a random place on; nil when none is usable. It forgets
// those that have ended.
func (p *pool) leastLoaded() (best *conn, bestLoad int) {
	now := time.Now()
	ended := false
	start := 0
	if n := len(p.conns); n > 0 {
		start = rand.IntN(n)
	}
	for i := range p.conns {
		k := p.conns[(start+i)%len(p.conns)]
		load, usable := k.load()
		switch {
		case !usable:
			ended = ended || load == 0
			continue
		case p.worn(k, now):
			continue
		case best == nil || load < bestLoad:
			best, bestLoad = k, load
		}
		if bestLoad == 0 {
			break
		}
	}
	if ended {
		p.conns = slices.DeleteFunc(p.conns, func(k *conn) bool {
			n, usable := k.load()
			return n == 0 && !usable
		})
	}
	return best, bestLoad
}

// worn tells whether a connection has lived long enough.
func (p *pool) worn(k *conn, now time.Time) bool {
	if p.maxAge > 0 && now.Sub(k.born) > p.maxAge {
		return true
	}
	if idle, ok := k.idleSince(); ok && now.Sub(idle) > p.expire {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return !p.stream && k.served >= queriesOfSocket
}

// tidy closes what is idle for too long or worn, and forgets what has ended.
func (p *pool) tidy(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := 0
	p.conns = slices.DeleteFunc(p.conns, func(k *conn) bool {
		n, usable := k.load()
		switch {
		case !usable && n == 0:
		case p.worn(k, now):
		case n == 0 && p.maxIdle > 0 && idle >= p.maxIdle:
		default:
			if n == 0 {
				idle++
			}
			return false
		}
		k.retire()
		return n == 0
	})
}

// close ends every connection, also those in use.
func (p *pool) close() {
	p.mu.Lock()
	conns, waiting := p.conns, p.waiting
	p.conns, p.waiting, p.closed = nil, nil, true
	p.mu.Unlock()
	for _, w := range waiting {
		w <- net.ErrClosed
	}
	for _, k := range conns {
		k.fail(net.ErrClosed)
	}
}
