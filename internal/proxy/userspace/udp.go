package userspace

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UDP has no connections: a client, which is an address and port, has a session
// with an endpoint for as long as either says something now and then. It is a
// connected socket, so that answers, and ICMP errors, find their client.

const (
	// sessionIdle ends a session, unless the kernel is told to track flows for
	// another time (net.netfilter.nf_conntrack_udp_timeout_stream): that one.
	sessionIdle = 120 * time.Second
	// sessionLimit bounds the sessions of a service port; a new one then ends
	// the one that was silent for longest.
	sessionLimit = 4096
	batchSize    = 32
	datagramMax  = 64 << 10
)

// udpPort is a UDP socket that clients send to. It and its sessions belong to a
// loop.
type udpPort struct {
	l        *loop
	fd       int
	relay    *relay
	sources  []netip.Prefix // who may send; nil: everybody
	sessions map[netip.AddrPort]*session
	// The sessions, the one that was silent for longest first.
	first, last *session
}

type session struct {
	port       *udpPort
	fd         int
	client     netip.AddrPort
	to         unix.RawSockaddrInet6 // the client's, as the kernel wants it
	toLen      uint32
	target     *target
	active     time.Time
	prev, next *session
}

// batch is room for datagrams that are received or sent together.
type batch struct {
	messages []mmsghdr
	iovecs   []unix.Iovec
	names    []unix.RawSockaddrInet6
	room     []byte
}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

func (b *batch) init() {
	if b.messages != nil {
		return
	}
	b.messages, b.iovecs, b.names = make([]mmsghdr, batchSize), make([]unix.Iovec, batchSize), make([]unix.RawSockaddrInet6, batchSize)
	b.room = make([]byte, batchSize*datagramMax)
	for i := range b.messages {
		b.iovecs[i].Base = &b.room[i*datagramMax]
		h := &b.messages[i].hdr
		h.Iov = &b.iovecs[i]
		h.SetIovlen(1)
	}
}

// receive returns how many datagrams came.
func (b *batch) receive(fd int, named bool) (int, unix.Errno) {
	b.init()
	for i := range b.messages {
		b.iovecs[i].SetLen(datagramMax)
		h := &b.messages[i].hdr
		h.Name, h.Namelen = nil, 0
		if named {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
		}
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (b *batch) payload(i int) []byte {
	return b.room[i*datagramMax:][:b.messages[i].len]
}

// send sends the first n datagrams that were received to one address.
func (b *batch) send(fd, n int, to *unix.RawSockaddrInet6, size uint32) {
	for i := range n {
		b.iovecs[i].SetLen(int(b.messages[i].len))
		b.messages[i].hdr.Name, b.messages[i].hdr.Namelen = (*byte)(unsafe.Pointer(to)), size
	}
	for at := 0; at < n; {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[at])), uintptr(n-at), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			at += int(sent)
		case unix.EINTR:
		default:
			at++ // an error of an earlier datagram, or no room: as on any network
		}
	}
}

// ready takes what clients sent.
func (p *udpPort) ready(uint32) {
	b := &p.l.udp
	n, errno := b.receive(p.fd, true)
	if errno != 0 {
		return
	}
	for i := range n {
		client := rawAddrPort(&b.names[i])
		s := p.sessions[client]
		if s == nil {
			if s = p.begin(client, &b.names[i], b.messages[i].hdr.Namelen); s == nil {
				continue
			}
		} else {
			p.touch(s)
		}
		data := b.payload(i)
		for try := 0; ; try++ {
			var base *byte = &b.room[i*datagramMax]
			_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(base)), uintptr(len(data)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			if errno == 0 {
				p.l.d.counted(s.target, 1, len(data))
				break
			}
			if errno != unix.ECONNREFUSED || try > 0 {
				break
			}
			// The answer to an earlier datagram: this endpoint does not listen.
			// This one goes to another.
			s.target.failed(p.l.now)
			p.end(s)
			if s = p.begin(client, &b.names[i], b.messages[i].hdr.Namelen); s == nil {
				break
			}
		}
	}
}

// ready takes what the endpoint answered.
func (s *session) ready(uint32) {
	p := s.port
	b := &p.l.udp
	n, errno := b.receive(s.fd, false)
	switch errno {
	case 0:
	case unix.ECONNREFUSED:
		s.target.failed(p.l.now)
		p.end(s)
		return
	default:
		return
	}
	s.target.worked()
	p.touch(s)
	size := 0
	for i := range n {
		size += int(b.messages[i].len)
	}
	p.l.d.counted(s.target, n, size)
	b.send(p.fd, n, &s.to, s.toLen)
}

// begin makes a session of a client; nil if there is no endpoint for it.
func (p *udpPort) begin(client netip.AddrPort, name *unix.RawSockaddrInet6, size uint32) *session {
	if !allowed(p.sources, client.Addr()) {
		return nil
	}
	t := p.relay.choose(client.Addr(), p.l.now, false)
	if t == nil {
		return nil
	}
	if p.first != nil && (len(p.sessions) >= sessionLimit || p.l.d.full()) {
		p.end(p.first)
	}
	fd, err := unix.Socket(family(t.addr.Addr()), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.l.d.warnFull()
		return nil
	}
	p.l.d.markOwn(fd)
	if t.connect(fd) != nil {
		unix.Close(fd)
		t.failed(p.l.now)
		return nil
	}
	s := &session{port: p, fd: fd, client: client, to: *name, toLen: size, target: t}
	if p.l.add(fd, s, unix.EPOLLIN) != nil {
		unix.Close(fd)
		return nil
	}
	p.l.d.fds.Add(1)
	t.count.connections.Add(1)
	p.sessions[client] = s
	p.append(s)
	return s
}

// end ends a session: what the client sends next begins another.
func (p *udpPort) end(s *session) {
	p.unlink(s)
	delete(p.sessions, s.client)
	p.l.forget(s.fd)
	unix.Close(s.fd)
	p.l.d.fds.Add(-1)
}

func (p *udpPort) touch(s *session) {
	if p.last == s {
		s.active = p.l.now
		return
	}
	p.unlink(s)
	p.append(s)
}

func (p *udpPort) append(s *session) {
	s.active = p.l.now
	s.prev, s.next = p.last, nil
	if p.last != nil {
		p.last.next = s
	} else {
		p.first = s
	}
	p.last = s
}

func (p *udpPort) unlink(s *session) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		p.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		p.last = s.prev
	}
}

// sessionIdle is looked up now and then.
func (l *loop) sessionIdle() time.Duration {
	const every = 10 * time.Second
	if l.now.Sub(l.idleRead) < every {
		return l.idle
	}
	l.idle, l.idleRead = sessionIdle, l.now
	if text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n > 0 {
			l.idle = time.Duration(n) * time.Second
		}
	}
	return l.idle
}

// expire ends the sessions that are silent.
func (p *udpPort) expire() {
	for p.first != nil && p.l.now.Sub(p.first.active) >= p.l.sessionIdle() {
		p.end(p.first)
	}
}

// keep ends the sessions with endpoints that are gone. An endpoint that is only
// not chosen any more, by policy or because it is terminating, keeps its own.
func (p *udpPort) keep(serving map[netip.AddrPort]bool) {
	for s := p.first; s != nil; {
		next := s.next
		if !serving[s.target.addr] {
			p.end(s)
		}
		s = next
	}
}

func (p *udpPort) close() {
	for p.first != nil {
		p.end(p.first)
	}
	p.l.forget(p.fd)
	unix.Close(p.fd)
	delete(p.l.ports, p)
}
