package userspace

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The life of a connection:
//
//	accept ─▶ dialing ─┬─▶ open ─▶ one way ended (half-closed) ─▶ closed
//	            ▲  ▲   │
//	            │  └───┤ the next endpoint, while one is not down
//	            └ held ◀┘ all are down: for a time that is bounded
//
// A client is reset when no endpoint takes the connection, and when the
// endpoint resets it; and the other way round.

const (
	// An endpoint that does not answer is given up for the next after this long,
	// twice as long each time. (A lost SYN is sent again after a second: whoever
	// has no other endpoint waits for it.)
	dialFirst = 250 * time.Millisecond
	dialLast  = 2 * time.Second
	// How long, in all, the connections of a service port are held while no
	// endpoint takes them: one that was just started listens in a moment.
	holdFor   = 3 * time.Second
	holdFirst = 50 * time.Millisecond
	// How many a service port holds; more are reset at once.
	holdLimit = 64
	// accept takes at most this many connections before others have their turn.
	acceptAtOnce = 64
	backlog      = 4096
)

// acceptor is a listening TCP socket. It belongs to a loop; what it accepts may
// go to another.
type acceptor struct {
	l       *loop
	fd      int
	relay   *relay
	sources []netip.Prefix // who may connect; nil: everybody
}

func (a *acceptor) ready(uint32) {
	for range acceptAtOnce {
		var sa unix.RawSockaddrInet6
		size := uint32(unsafe.Sizeof(sa))
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(a.fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
		case unix.ECONNABORTED, unix.EINTR:
			continue
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.pause()
			return
		default:
			return
		}
		a.accepted(int(n), rawAddr(&sa))
		if a.l.d.full() {
			a.pause()
			return
		}
	}
}

// pause leaves further clients in the kernel's queue until the next tick.
func (a *acceptor) pause() {
	a.l.d.warnFull()
	a.l.modify(a.fd, 0)
	a.l.paused = append(a.l.paused, a)
}

func (a *acceptor) resume() {
	if a.fd < 0 {
		return
	}
	if a.l.d.full() {
		a.l.paused = append(a.l.paused, a)
		return
	}
	a.l.modify(a.fd, unix.EPOLLIN)
}

func (a *acceptor) accepted(fd int, client netip.Addr) {
	if !allowed(a.sources, client) {
		reset(fd)
		return
	}
	c := &conn{l: a.l.d.lightest(a.l), relay: a.relay, from: client}
	c.l.load.Add(1)
	c.client = side{conn: c, peer: &c.server, fd: fd}
	c.server = side{conn: c, peer: &c.client, fd: -1}
	c.l.d.fds.Add(2)
	if c.l == a.l {
		c.start()
	} else if !c.l.do(c.start) {
		c.release()
		reset(fd)
	}
}

// close ends the listening. Who is in the kernel's queue is served.
func (a *acceptor) close() {
	a.ready(0)
	a.l.forget(a.fd)
	unix.Close(a.fd)
	a.fd = -1
}

// conn is a client's connection and the one to an endpoint.
type conn struct {
	l              *loop
	relay          *relay
	target         *target
	from           netip.Addr
	client, server side
	dials          int
	state          state
	deadline       time.Time
	holdNext       time.Duration
	counted        bool // among those that are held
}

type state uint8

const (
	dialing state = iota
	held
	established
	closed
)

// side is one of the two sockets of a connection. What is read from it is
// written to its peer at once; what the peer does not take waits in out, and
// until it is gone nothing more is read.
type side struct {
	conn *conn
	peer *side
	fd   int
	mask uint32 // the events that are asked for
	off  bool   // not even asked for those that are told unasked
	eof  bool   // nothing more comes from it
	shut bool   // nothing more goes to it
	out  []byte // to be written to it
	bulk bulk   // what comes from it, when it is much
}

func (c *conn) start() {
	c.l.open[c] = struct{}{}
	c.dial()
}

// dial tries an endpoint, and goes on trying others until one may answer.
func (c *conn) dial() {
	for {
		now := c.l.now
		t := c.relay.choose(c.from, now, c.dials > 0)
		if t == nil {
			c.hold()
			return
		}
		c.target = t
		c.dials++
		fd, err := unix.Socket(family(t.addr.Addr()), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			c.l.d.warnFull()
			c.abort() // no descriptors
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		keepAlive(fd)
		c.l.d.markOwn(fd)
		if err = t.connect(fd); err != nil && err != unix.EINPROGRESS {
			unix.Close(fd)
			t.failed(now)
			continue
		}
		c.state = dialing
		timeout := dialLast
		if len(c.relay.list.Load().targets) > 1 {
			timeout = min(dialFirst<<(min(c.dials, 8)-1), dialLast)
		}
		c.deadline = now.Add(timeout)
		c.l.waiting[c] = struct{}{}
		c.server.fd, c.server.mask = fd, unix.EPOLLOUT
		if c.l.add(fd, &c.server, unix.EPOLLOUT) != nil {
			c.abort()
		}
		return
	}
}

// hold keeps the client waiting for an endpoint that takes connections, if too
// many do not wait already, and not for too long.
func (c *conn) hold() {
	p := c.relay.port
	switch {
	case c.counted && !p.holds(c.l.now), !c.counted && !p.hold(c.l.now):
		c.abort()
		return
	case !c.counted:
		c.counted, c.holdNext = true, holdFirst
	}
	c.state = held
	c.deadline = c.l.now.Add(c.holdNext)
	c.holdNext = min(2*c.holdNext, time.Second)
	c.l.waiting[c] = struct{}{}
}

// unhold is called when the wait is over, in whatever way.
func (c *conn) unhold() {
	if c.counted {
		c.counted = false
		c.relay.port.held.Add(-1)
	}
}

// expired is called when the deadline has passed.
func (c *conn) expired() {
	switch c.state {
	case dialing:
		c.target.failed(c.l.now)
		c.redial()
	case held:
		c.retry()
	}
}

// retry tries again for a client that is held: the endpoints may be others now,
// or listen.
func (c *conn) retry() {
	t := c.relay.list.Load().pick(c.l.now, false)
	if t == nil {
		c.hold()
		return
	}
	t.worked() // it is worth a try
	c.redial()
}

func (c *conn) redial() {
	delete(c.l.waiting, c)
	if c.server.fd >= 0 {
		c.l.forget(c.server.fd)
		unix.Close(c.server.fd)
		c.server.fd = -1
	}
	c.dial()
}

// connected is called when the endpoint's socket has news while dialing.
func (c *conn) connected() {
	errno, err := unix.GetsockoptInt(c.server.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || errno != 0 {
		c.target.failed(c.l.now)
		c.redial()
		return
	}
	delete(c.l.waiting, c)
	c.unhold()
	c.state = established
	c.target.worked()
	c.relay.port.works()
	c.target.count.connections.Add(1)
	c.server.mask = unix.EPOLLIN
	c.l.modify(c.server.fd, unix.EPOLLIN)
	c.client.mask = unix.EPOLLIN
	if c.l.add(c.client.fd, &c.client, unix.EPOLLIN) != nil {
		c.abort()
		return
	}
	c.client.read() // most clients have said something by now
}

// ready is called with the events of one of the two sockets.
func (s *side) ready(events uint32) {
	c := s.conn
	if c.state == dialing {
		c.connected()
		return
	}
	if s.mask == 0 {
		if events&unix.EPOLLERR != 0 {
			c.abort()
			return
		}
		// The peer closed both ways, and what it said waits for the other side:
		// the kernel would tell so without end.
		s.off = true
		c.l.forget(s.fd)
		_ = unix.EpollCtl(c.l.epfd, unix.EPOLL_CTL_DEL, s.fd, nil)
		return
	}
	if events&unix.EPOLLOUT != 0 && (len(s.out) > 0 || s.peer.bulk.held > 0) {
		s.flush()
	}
	if c.state == established && events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && s.mask&unix.EPOLLIN != 0 {
		s.read()
	}
}

// readAtOnce bounds what one side may take of a loop's round.
const readAtOnce = 8

// read moves what the side has to its peer.
func (s *side) read() {
	c := s.conn
	for range readAtOnce {
		if s.bulk.on {
			s.splice()
			return
		}
		n, errno := readRaw(s.fd, c.l.buf)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			return
		case errno != 0:
			c.abort()
			return
		case n == 0:
			s.ended()
			return
		}
		c.l.d.counted(c.target, 1, n)
		b := c.l.buf[:n]
		sent, errno := writeRaw(s.peer.fd, b)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			c.abort()
			return
		}
		if errno != 0 {
			sent = 0
		}
		if sent < n {
			s.peer.out = append(s.peer.out, b[sent:]...)
			s.watch()
			s.peer.watch()
			return
		}
		if n < len(c.l.buf) {
			return // what comes meanwhile is told again
		}
		s.bulk.full()
	}
}

// flush writes what waits for the side.
func (s *side) flush() {
	c := s.conn
	if len(s.out) > 0 {
		n, errno := writeRaw(s.fd, s.out)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			return
		case errno != 0:
			c.abort()
			return
		}
		if s.out = s.out[n:]; len(s.out) > 0 {
			return
		}
		s.out = nil
	}
	if s.peer.bulk.held > 0 && !s.peer.drain() {
		return
	}
	if s.peer.eof {
		s.finish()
	}
	if c.state == established {
		s.watch()
		s.peer.watch()
	}
}

// ended is called when the side has said its last. The peer is told so when it
// has got everything; what it still says goes on.
func (s *side) ended() {
	s.eof = true
	if len(s.peer.out) == 0 && s.bulk.held == 0 {
		s.peer.finish()
	}
	if s.conn.state == established {
		s.watch()
		s.peer.watch()
	}
}

// finish tells the side that nothing more comes.
func (s *side) finish() {
	if s.shut {
		return
	}
	s.shut = true
	if s.eof && s.peer.shut {
		s.conn.close()
		return
	}
	_ = unix.Shutdown(s.fd, unix.SHUT_WR)
}

// watch asks for the events that the side's state needs.
func (s *side) watch() {
	var mask uint32
	blocked := len(s.peer.out) > 0 || s.bulk.held > 0
	if !s.eof && !blocked {
		mask |= unix.EPOLLIN
	}
	if len(s.out) > 0 || s.peer.bulk.held > 0 {
		mask |= unix.EPOLLOUT
	}
	if mask == s.mask {
		return
	}
	s.mask = mask
	if s.off && mask != 0 {
		s.off = false
		if s.conn.l.add(s.fd, s, mask) != nil {
			s.conn.abort()
		}
		return
	}
	s.conn.l.modify(s.fd, mask)
}

// abort ends the connection with a reset to whom it concerns.
func (c *conn) abort() {
	for _, s := range []*side{&c.client, &c.server} {
		if s.fd >= 0 {
			linger := unix.Linger{Onoff: 1}
			_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger)
		}
	}
	c.close()
}

func (c *conn) close() {
	if c.state == closed {
		return
	}
	c.state = closed
	delete(c.l.waiting, c)
	delete(c.l.open, c)
	for _, s := range []*side{&c.client, &c.server} {
		s.bulk.release(c.l)
		if s.fd >= 0 {
			c.l.forget(s.fd)
			unix.Close(s.fd)
		}
	}
	c.release()
}

func (c *conn) release() {
	c.unhold()
	c.l.load.Add(-1)
	c.l.d.fds.Add(-2)
}

func reset(fd int) {
	linger := unix.Linger{Onoff: 1}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger)
	unix.Close(fd)
}

// keepAlive notices, after minutes, a peer that is gone without a word.
func keepAlive(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 300)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 30)
}

func readRaw(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

// writeRaw sends without SIGPIPE.
func writeRaw(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// rawAddr reads the address of either family from where the kernel put it.
func rawAddr(sa *unix.RawSockaddrInet6) netip.Addr {
	return rawAddrPort(sa).Addr()
}

func rawAddrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), ntohs(sa.Port))
}

func ntohs(p uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, p))
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func allowed(sources []netip.Prefix, client netip.Addr) bool {
	if sources == nil {
		return true
	}
	for _, s := range sources {
		if s.Contains(client) {
			return true
		}
	}
	return false
}
