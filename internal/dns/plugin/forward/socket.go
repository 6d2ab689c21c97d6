package forward

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// socket is a datagram socket of a lane, connected to an upstream, so that the
// kernel drops what others send. It is changed as often as those of a pool.
type socket struct {
	handler  *handler
	upstream *upstream
	conn     *net.UDPConn
	raw      syscall.RawConn
	born     time.Time
	timer    *time.Timer // runs tick when the oldest query has waited enough

	mu      sync.Mutex
	waiting map[uint16]*flight
	oldest  *flight // a list in the order of sending
	newest  *flight
	free    *flight // to be used again, linked by next
	served  int
	ticking bool
	retired bool // takes no more queries; closed with the last one
	closed  bool
	idle    time.Time
}

// flight is a query that was sent.
type flight struct {
	ticket     plugin.Ticket
	sent       time.Time
	id         uint16
	prev, next *flight
}

// newSocket opens a socket to u.
func (h *handler) newSocket(u *upstream, replies func() plugin.Replies) (*socket, error) {
	c, err := u.dial(h.ctx, "udp")
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	now := time.Now()
	s := &socket{handler: h, upstream: u, conn: conn, raw: raw, born: now, idle: now, waiting: make(map[uint16]*flight)}
	s.timer = time.AfterFunc(time.Hour, s.tick)
	s.timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		conn.Close()
		return nil, h.ctx.Err()
	}
	h.sockets[s] = struct{}{}
	h.tasks.Go(func() {
		s.read(replies())
		h.mu.Lock()
		delete(h.sockets, s)
		h.mu.Unlock()
	})
	return s, nil
}

// room is what a socket says to one more query.
type room uint8

const (
	noted room = iota
	full       // for now
	ended      // for good
)

// relayBounds are per lane and upstream. A socket's receive buffer, 208 KiB by
// default, holds the replies to as many queries.
var relayBounds = bounds{conns: 16, queries: 64}

// add notes a query under an ID of its own, or refuses it.
func (s *socket) add(f flight, l *lane) (id uint16, r room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maxAge := s.handler.maxAge; s.served >= queriesOfSocket || maxAge > 0 && f.sent.Sub(s.born) > maxAge {
		s.retired = true
		s.closeIfDone()
	}
	switch {
	case s.retired || s.closed:
		return 0, ended
	case len(s.waiting) >= relayBounds.queries:
		return 0, full
	}
	for {
		id = l.randomID()
		if _, taken := s.waiting[id]; !taken {
			break
		}
	}
	n := s.free
	if n == nil {
		n = new(flight)
	} else {
		s.free = n.next
	}
	*n = flight{ticket: f.ticket, sent: f.sent, id: id, prev: s.newest}
	if s.newest != nil {
		s.newest.next = n
	} else {
		s.oldest = n
	}
	s.newest = n
	s.waiting[id] = n
	s.served++
	if !s.ticking {
		s.ticking = true
		s.timer.Reset(s.upstream.timeout)
	}
	return id, noted
}

// take ends a query's stay in the table.
func (s *socket) take(id uint16) (f flight, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked(id)
}

func (s *socket) takeLocked(id uint16) (f flight, ok bool) {
	n := s.waiting[id]
	if n == nil {
		return flight{}, false
	}
	delete(s.waiting, id)
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		s.oldest = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		s.newest = n.prev
	}
	f = *n
	*n = flight{next: s.free}
	s.free = n
	return f, true
}

// takeAll empties the table of queries sent until then.
func (s *socket) takeAll(until time.Time) (list []flight) {
	for s.oldest != nil && !s.oldest.sent.After(until) {
		f, _ := s.takeLocked(s.oldest.id)
		list = append(list, f)
	}
	return list
}

// tick gives back what was not answered in time. The path may be dead for this
// socket alone, so the next query takes another.
func (s *socket) tick() {
	s.mu.Lock()
	list := s.takeAll(time.Now().Add(-s.upstream.timeout))
	s.ticking = s.oldest != nil
	if s.ticking {
		s.timer.Reset(time.Until(s.oldest.sent.Add(s.upstream.timeout)))
	}
	s.retired = s.retired || len(list) > 0
	s.closeIfDone()
	s.mu.Unlock()
	for _, f := range list {
		s.giveBack(f, nil, s.opError("read", os.ErrDeadlineExceeded))
	}
}

// tidySockets retires the relay's sockets that nobody has used for long, and
// those that are more than max_idle_conns for an upstream.
func (h *handler) tidySockets(now time.Time) {
	idle := make(map[*upstream]int)
	for _, s := range h.openSockets() {
		s.mu.Lock()
		if len(s.waiting) == 0 {
			idle[s.upstream]++
			if now.Sub(s.idle) > h.expire || h.maxIdle > 0 && idle[s.upstream] > h.maxIdle {
				s.retired = true
				s.closeIfDone()
			}
		}
		s.mu.Unlock()
	}
}

// closeIfDone closes a retired socket that no query waits for; mu is held.
func (s *socket) closeIfDone() {
	if s.retired && !s.closed && len(s.waiting) == 0 {
		s.closed = true
		s.conn.Close()
	}
}

// end closes the socket and gives every query back.
func (s *socket) end(err error) {
	s.mu.Lock()
	list := s.takeAll(time.Now())
	s.retired, s.closed = true, true
	s.timer.Stop()
	s.conn.Close()
	s.mu.Unlock()
	for _, f := range list {
		s.giveBack(f, nil, err)
	}
}

const inBatch = 16

// inBuffers are what a reading socket needs.
type inBuffers struct {
	hdrs [inBatch]mmsghdr
	iovs [inBatch]unix.Iovec
	data [inBatch][relayReply + relayQuery]byte // room for an OPT record

	flights [inBatch]flight
	found   [inBatch]bool
}

var inPool = sync.Pool{New: func() any {
	b := new(inBuffers)
	for i := range b.hdrs {
		b.iovs[i].Base = &b.data[i][0]
		b.iovs[i].SetLen(relayReply)
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
	}
	return b
}}

// read delivers replies until the socket is closed.
func (s *socket) read(replies plugin.Replies) {
	b := inPool.Get().(*inBuffers)
	defer inPool.Put(b)
	var q wire.Query
	var received int
	var errno syscall.Errno
	receive := func(fd uintptr) bool {
		for {
			var n uintptr
			n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.hdrs[0])), inBatch, unix.MSG_DONTWAIT, 0, 0)
			received = int(n)
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	}
	for {
		if err := s.raw.Read(receive); err != nil {
			s.end(net.ErrClosed)
			return
		}
		if errno != 0 {
			s.end(s.opError("read", os.NewSyscallError("read", errno)))
			return
		}
		now := time.Now()
		s.mu.Lock()
		for i := range received {
			b.found[i] = false
			if b.hdrs[i].n >= headerLen {
				id := uint16(b.data[i][0])<<8 | uint16(b.data[i][1])
				b.flights[i], b.found[i] = s.takeLocked(id) // else late, repeated or forged
			}
		}
		s.idle = now
		s.mu.Unlock()
		for i := range received {
			if b.found[i] {
				s.deliver(b.flights[i], &b.hdrs[i], b.data[i][:], &q, replies, now)
				b.flights[i] = flight{}
			}
		}
		replies.Flush()
		s.mu.Lock()
		s.closeIfDone()
		s.mu.Unlock()
	}
}

// deliver sends a reply to the client, or to the chain if it needs more than an
// ID of its own.
func (s *socket) deliver(f flight, m *mmsghdr, data []byte, q *wire.Query, replies plugin.Replies, now time.Time) {
	if m.hdr.Flags&unix.MSG_TRUNC != 0 {
		s.giveBack(f, nil, nil) // to be asked again with more room
		return
	}
	raw := data[:m.n]
	f.ticket.Query(q)
	var r wire.Reply
	if !r.Parse(raw) || !r.Answering(q) || !s.handler.accepts(&r) {
		s.giveBack(f, append([]byte(nil), raw...), nil)
		return
	}
	if !replies.Send(f.ticket, q, &r, raw) {
		s.giveBack(f, append([]byte(nil), raw...), nil)
		return
	}
	s.upstream.metrics.replied(s.upstream, int(r.Rcode), now.Sub(f.sent))
	s.handler.leave()
}

// accepts tells whether the reply ends the query: no other upstream, line or
// transport is to be asked.
func (h *handler) accepts(r *wire.Reply) bool {
	if r.Truncated && h.preferUDP {
		return false
	}
	for _, list := range [2][]int{h.failover, h.nextOn} {
		for _, rcode := range list {
			if rcode == int(r.Rcode) {
				return false
			}
		}
	}
	return !(h.nextOnNoData && r.Rcode == 0 && r.Answers == 0)
}
