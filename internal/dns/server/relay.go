package server

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// lanes are the ways of one reading goroutine to handlers that relay.
type lanes struct {
	routes *routes // whose handlers they lead to
	of     map[plugin.Relay]plugin.Lane
	used   []plugin.Lane // since the last flush
}

// to returns the lane to a handler of r.
func (l *lanes) to(r *routes, h plugin.Relay, u *udpSocket) plugin.Lane {
	if l.routes != r {
		l.routes, l.of = r, make(map[plugin.Relay]plugin.Lane)
	}
	lane := l.of[h]
	if lane == nil {
		lane = h.Lane(func() plugin.Replies { return newLateReplies(u) })
		l.of[h] = lane
	}
	for _, used := range l.used {
		if used == lane {
			return lane
		}
	}
	l.used = append(l.used, lane)
	return lane
}

func (l *lanes) flush() {
	for i, lane := range l.used {
		lane.Flush()
		l.used[i] = nil
	}
	l.used = l.used[:0]
}

// ticket is a query in a lane's hands: a copy of the message and the way back
// to its client. It counts as one in the chain. Tickets are reused.
type ticket struct {
	socket   *udpSocket
	routes   *routes
	target   *target
	by       *step
	raw      []byte
	received time.Time
	client   netip.AddrPort
	name     unix.RawSockaddrInet6
	namelen  uint32
	shuffle  bool
	set      uint16 // of the reply's flags
	clear    uint16
	keeper   plugin.Keeper
	oob      [oobSize]byte
	oobLen   int
}

var tickets = sync.Pool{New: func() any { return &ticket{raw: make([]byte, 0, 512)} }}

// relay hands the i-th message of the batch to the lane of a handler that said
// Pass, or returns false.
func (u *udpSocket) relay(r *routes, to *target, by *step, q *wire.Query, a *wire.Answer, b *batch, i int) bool {
	// Counted in before the configuration is replaced, it is waited for.
	r.gen.enter()
	if u.listener.routes.Load() != r {
		r.gen.leave()
		return false
	}
	if !u.listener.server.chain.admit(q.Remote.Addr()) {
		r.gen.leave()
		return true // dropped
	}
	t := tickets.Get().(*ticket)
	t.socket, t.routes, t.target, t.by = u, r, to, by
	t.raw = append(t.raw[:0], q.Raw...)
	t.received, t.client = q.Received, q.Remote
	t.shuffle, t.set, t.clear = a.Shuffle, a.SetFlags, a.ClearFlags
	t.keeper, _ = a.Keeper.(plugin.Keeper)
	m := &b.in[i]
	t.name, t.namelen = b.names[i], m.hdr.Namelen
	t.oobLen = 0
	if u.wildcard && m.hdr.Controllen > 0 {
		t.oobLen = copy(t.oob[:], b.oob[i][:m.hdr.Controllen])
		anyInterface(t.oob[:t.oobLen])
	}
	if u.lanes.to(r, by.relay, u).Pass(q, a, t) {
		return true
	}
	t.end()
	return false
}

// end counts the query out.
func (t *ticket) end() {
	t.routes.gen.leave()
	t.socket.listener.server.chain.leave(t.client.Addr())
	t.forget()
}

func (t *ticket) forget() {
	t.socket, t.routes, t.target, t.by, t.keeper = nil, nil, nil, nil, nil
	tickets.Put(t)
}

// Query reads the query again.
func (t *ticket) Query(q *wire.Query) {
	q.Parse(t.raw)
	q.Remote, q.Local, q.Worker, q.Received = t.client, t.socket.local, t.socket.worker, t.received
}

// Resume sends the query through the chain of handlers.
func (t *ticket) Resume(state any) {
	u := t.socket
	s, client := u.listener.server, t.client.Addr()
	w := &udpReply{socket: u, remote: t.client, local: u.local}
	if t.oobLen > 0 {
		w.oob = append(w.oob, t.oob[:t.oobLen]...)
		w.local = netip.AddrPortFrom(packetAddr(w.oob), u.local.Port())
	}
	// The count of the ticket goes on as that of the job.
	j := s.chain.pool.Get().(*job)
	j.routes, j.client, j.w, j.done = t.routes, client, w, nil
	j.raw = append(j.raw[:0], t.raw...)
	j.trace = plugin.Resume(t.received, state)
	t.forget()
	s.chain.run(j)
}

// Drop forgets the query.
func (t *ticket) Drop() { t.end() }

// lateReplies sends replies that did not come on the goroutine that read their
// queries.
type lateReplies struct {
	socket *udpSocket
	answer *wire.Answer
	n      int
	packed [lateBatch]*[]byte // what was packed anew, from packBuffers
	out    [lateBatch]mmsghdr
	iovs   [lateBatch]unix.Iovec
	sent   [lateBatch]*ticket
	next   int // of out, to be sent
	write  func(fd uintptr) bool
}

const lateBatch = 32

func newLateReplies(u *udpSocket) *lateReplies {
	l := &lateReplies{socket: u, answer: wire.NewAnswer(rand.Uint64())}
	for i := range l.out {
		l.out[i].hdr.Iov = &l.iovs[i]
		l.out[i].hdr.SetIovlen(1)
	}
	l.write = func(fd uintptr) bool {
		return sendAll(fd, l.out[:l.n], &l.next)
	}
	return l
}

// Send queues a reply.
func (l *lateReplies) Send(pt plugin.Ticket, q *wire.Query, r *wire.Reply, b []byte) bool {
	t := pt.(*ticket)
	if l.n == lateBatch {
		l.Flush()
	}
	if t.keeper != nil {
		b = l.keep(t, q, b)
	} else if b = r.Address(q, b); b != nil {
		flags := binary.BigEndian.Uint16(b[2:])
		binary.BigEndian.PutUint16(b[2:], flags&^t.clear|t.set)
	}
	if b == nil {
		return false
	}
	l.answer.Adopt(q, b, t.shuffle)
	for _, o := range t.target.block.observers {
		o.ObserveDirect(t.target.origin, t.by.name, q, l.answer)
	}
	m := &l.out[l.n].hdr
	l.iovs[l.n].Base = &b[0]
	l.iovs[l.n].SetLen(len(b))
	m.Name, m.Namelen = (*byte)(unsafe.Pointer(&t.name)), t.namelen
	m.Control, m.Controllen = nil, 0
	if t.oobLen > 0 {
		m.Control = &t.oob[0]
		m.SetControllen(t.oobLen)
	}
	l.sent[l.n] = t
	l.n++
	return true
}

// keep shows the reply to who keeps replies, and packs what is left of it for
// the client, as the chain would. It returns nil when that is the chain's to do.
func (l *lateReplies) keep(t *ticket, q *wire.Query, b []byte) []byte {
	m, req := new(dns.Msg), message(q)
	if req == nil || m.Unpack(b) != nil {
		return nil
	}
	m.Id = q.ID
	if len(b) > q.Limit() {
		return nil // has to be truncated
	}
	flags := binary.BigEndian.Uint16(b[2:])&^t.clear | t.set
	m.Authoritative, m.RecursionDesired, m.RecursionAvailable = flags&0x0400 != 0, flags&0x0100 != 0, flags&0x0080 != 0
	t.keeper.Keep(t.target.origin, q, m)
	buf := packBuffers.Get().(*[]byte)
	l.packed[l.n] = buf
	b, err := pack(&udpReply{remote: t.client, addr: udpAddr, req: req}, req, m, *buf)
	if err != nil {
		return nil // cannot be: it was unpacked a moment ago
	}
	return b
}

// udpAddr is any address over UDP: what matters of a client when a reply is
// packed.
var udpAddr = new(net.UDPAddr)

// Flush sends the replies.
func (l *lateReplies) Flush() {
	if l.n == 0 {
		return
	}
	l.next = 0
	_ = l.socket.raw.Write(l.write) // fails when the socket was closed
	for i := range l.n {
		l.sent[i].end()
		l.sent[i] = nil
		if l.packed[i] != nil {
			packBuffers.Put(l.packed[i])
			l.packed[i] = nil
		}
	}
	l.n = 0
}
