package forward

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// A query that nobody changes goes to its upstream as the bytes that came, with
// another ID, and the reply back to the client likewise: the relay. What it does
// is what the chain would do if all goes well. When not (an error, no reply in
// time, a reply that needs a closer look), the chain goes on where the relay
// ended (resumed): it knows about other upstreams, health and the rest.
//
//	lane.Pass     chooses an upstream, notes the query in a socket's table
//	lane.Flush    sends what was noted with one system call
//	socket.read   receives replies, many at once, and finds their queries
//	socket.tick   ends the queries that have waited too long

// relayable tells whether plain queries over UDP may be relayed at all.
func (h *handler) relayable() bool {
	if h.forceTCP || len(h.upstreams) == 0 {
		return false
	}
	for _, u := range h.upstreams {
		if u.transport != plain {
			return false
		}
	}
	return true
}

// relayQuery and relayReply bound the bytes of what is relayed.
const (
	relayQuery = 512
	relayReply = 4096
)

// ServeDirect tells whether the lane may have the query.
func (h *handler) ServeDirect(q *wire.Query, a *wire.Answer) plugin.Outcome {
	switch {
	case !h.scope.Has(q) || h.exceptScope.Has(q):
		return plugin.Next
	case !h.relays || q.TCP || q.End() > relayQuery || q.Limit() > relayReply:
		return plugin.Chain
	}
	return plugin.Pass
}

// lane is one reading goroutine's way to the upstreams. Its fields are that
// goroutine's.
type lane struct {
	handler *handler
	replies func() plugin.Replies
	sockets []ring // by upstream

	out  [outBatch]outgoing
	n    int // used of out
	hdrs [outBatch]mmsghdr
	iovs [outBatch]unix.Iovec

	from, to int                  // of hdrs: what is to be sent
	errno    syscall.Errno        // why nothing was
	sendmmsg func(socket uintptr) // moves from, or sets errno

	dice  [256]byte // random
	rolls int       // used of dice
}

// ring is the sockets to one upstream. One is filled before the next is taken,
// so that a system call carries many queries.
type ring struct {
	open []*socket
	at   int // the one in use
}

// outgoing is a query to be sent.
type outgoing struct {
	socket *socket // nil once it is sent
	id     uint16
	size   int
	data   [relayQuery]byte
}

const outBatch = 64

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Lane makes a lane.
func (h *handler) Lane(replies func() plugin.Replies) plugin.Lane {
	l := &lane{handler: h, replies: replies, sockets: make([]ring, len(h.upstreams)), rolls: math.MaxInt}
	for i := range l.hdrs {
		l.hdrs[i].hdr.Iov = &l.iovs[i]
		l.hdrs[i].hdr.SetIovlen(1)
	}
	l.sendmmsg = func(fd uintptr) {
		for {
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&l.hdrs[l.from])), uintptr(l.to-l.from), unix.MSG_DONTWAIT, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if l.errno = errno; errno == 0 {
				l.from += int(n)
			}
			return
		}
	}
	return l
}

// Pass takes q over unless the chosen upstream is down or there are too many
// queries: the chain knows what to do then.
func (l *lane) Pass(q *wire.Query, a *wire.Answer, t plugin.Ticket) bool {
	h := l.handler
	at := h.policy.first(len(h.upstreams))
	u := h.upstreams[at]
	if u.down(h.maxFails) || !h.enter() {
		return false
	}
	id, s := l.note(at, flight{ticket: t, sent: q.Received})
	if s == nil {
		h.leave()
		return false
	}
	if l.n == outBatch {
		l.Flush()
	}
	o := &l.out[l.n]
	l.n++
	o.socket, o.id = s, id
	o.size = copy(o.data[:], q.Raw[:q.End()])
	binary.BigEndian.PutUint16(o.data[:], id)
	if a.Keeper != nil {
		o.data[3] |= 0x20 // AD: the reply is for later askers too (RFC 6840 §5.7)
	}
	return true
}

// enter counts a query in, or refuses it.
func (h *handler) enter() bool {
	if n := h.inFlight.Add(1); h.maxConcurrent > 0 && n > int64(h.maxConcurrent) {
		h.inFlight.Add(-1)
		return false
	}
	if h.everywhere.Add(1) > maxEverywhere {
		h.leave()
		return false
	}
	return true
}

func (h *handler) leave() {
	h.inFlight.Add(-1)
	h.everywhere.Add(-1)
}

// note puts a query into the table of a socket to the upstream, a new one if
// need be. It returns nil if there can be none.
func (l *lane) note(at int, f flight) (id uint16, s *socket) {
	u, r := l.handler.upstreams[at], &l.sockets[at]
	for tries := len(r.open); tries > 0; tries-- {
		if r.at >= len(r.open) {
			r.at = 0
		}
		s := r.open[r.at]
		id, room := s.add(f, l)
		switch room {
		case noted:
			u.metrics.socket(u, true)
			return id, s
		case full:
			r.at++
		case ended:
			r.open = slices.Delete(r.open, r.at, r.at+1)
		}
	}
	if len(r.open) >= relayBounds.conns {
		return 0, nil
	}
	s, err := l.handler.newSocket(u, l.replies)
	if err != nil {
		return 0, nil
	}
	r.at = len(r.open)
	r.open = append(r.open, s)
	id, _ = s.add(f, l)
	u.metrics.socket(u, false)
	return id, s
}

// randomID is as randomID of the package, drawn from a larger handful.
func (l *lane) randomID() uint16 {
	if l.rolls > len(l.dice)-2 {
		_, _ = rand.Read(l.dice[:]) // never fails (crypto/rand)
		l.rolls = 0
	}
	id := binary.BigEndian.Uint16(l.dice[l.rolls:])
	l.rolls += 2
	return id
}

// Flush sends what Pass noted, with a system call for each socket.
func (l *lane) Flush() {
	for i := range l.n {
		s := l.out[i].socket
		if s == nil {
			continue
		}
		var which [outBatch]uint8
		n := 0
		for j := i; j < l.n; j++ {
			o := &l.out[j]
			if o.socket != s {
				continue
			}
			o.socket = nil
			which[n] = uint8(j)
			l.iovs[n].Base = &o.data[0]
			l.iovs[n].SetLen(o.size)
			n++
		}
		l.send(s, which[:n])
	}
	l.n = 0
}

// send sends the messages that were prepared, which are those of out. One that
// cannot be sent goes to the chain.
func (l *lane) send(s *socket, which []uint8) {
	l.from, l.to = 0, len(which)
	for l.from < l.to {
		err := s.raw.Control(l.sendmmsg)
		switch {
		case err != nil:
		case l.errno == 0:
			continue
		case l.errno == unix.EAGAIN || l.errno == unix.ENOBUFS: // says nothing of the upstream
		default:
			err = s.opError("write", os.NewSyscallError("write", l.errno))
		}
		if f, ok := s.take(l.out[which[l.from]].id); ok {
			s.giveBack(f, nil, err)
		}
		l.from++
	}
}

// resumed is what the chain gets with a query that was relayed: a reply that
// needs a closer look, or an error.
type resumed struct {
	handler  *handler
	upstream *upstream
	question string // lower case
	qtype    uint16
	sent     time.Time
	raw      []byte
	err      error
	used     atomic.Bool
}

// resumedFor returns what the relay left for this query and handler, once.
func (h *handler) resumedFor(ctx context.Context, q *plugin.Request) *resumed {
	r, ok := plugin.Resumed(ctx).(*resumed)
	if !ok || r.handler != h || r.qtype != q.QType() || r.question != q.Name() || r.used.Swap(true) {
		return nil
	}
	return r
}

// giveBack sends a query into the chain.
func (s *socket) giveBack(f flight, raw []byte, err error) {
	h := s.handler
	h.leave()
	if err != nil && h.maxFails > 0 {
		s.upstream.suspect(h.ctx, &h.tasks, h.check)
	}
	if h.ctx.Err() != nil {
		f.ticket.Drop()
		return
	}
	var q wire.Query
	f.ticket.Query(&q)
	name, _, nameErr := dns.UnpackDomainName(q.Name, 0)
	if nameErr != nil {
		f.ticket.Resume(nil) // cannot be: the name was parsed
		return
	}
	f.ticket.Resume(&resumed{handler: h, upstream: s.upstream, question: strings.ToLower(name), qtype: q.Type, sent: f.sent, raw: raw, err: err})
}

func (s *socket) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: s.conn.LocalAddr(), Addr: s.conn.RemoteAddr(), Err: err}
}
