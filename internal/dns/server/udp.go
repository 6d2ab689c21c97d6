package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

const (
	batchSize = 64
	// querySize is the largest query that is read whole. Queries are short;
	// what is longer counts as malformed.
	querySize = 2048
	// directSize is the largest direct answer over UDP; larger ones take the
	// chain. EDNS sizes in use are 1232 and 4096.
	directSize = 4096
	oobSize    = 64 // one IPV6_PKTINFO control message is 40 bytes
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// udpSocket is one of the sockets that share an address; the kernel spreads
// clients over them.
type udpSocket struct {
	listener *listener
	conn     *net.UDPConn
	raw      syscall.RawConn
	worker   int
	wildcard bool // replies need to be told which address to come from
	local    netip.AddrPort
	count    *pathCount
	draining atomic.Bool
	lanes    lanes // serve's
}

func newUDPSocket(l *listener, c *net.UDPConn) (*udpSocket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	u := &udpSocket{listener: l, conn: c, raw: raw, worker: len(l.udp), count: l.server.metrics.paths.of(len(l.udp))}
	u.local = c.LocalAddr().(*net.UDPAddr).AddrPort()
	u.wildcard = u.local.Addr().IsUnspecified()
	if u.wildcard {
		var serr error
		err := raw.Control(func(fd uintptr) {
			if u.local.Addr().Is4() {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			} else {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		})
		if err != nil || serr != nil {
			return nil, fmt.Errorf("asking for packet information: %w", errors.Join(err, serr))
		}
	}
	return u, nil
}

// batch is the buffers of one reading goroutine, used over and over.
type batch struct {
	in    [batchSize]mmsghdr
	inIov [batchSize]unix.Iovec
	names [batchSize]unix.RawSockaddrInet6
	oob   [batchSize][oobSize]byte
	data  [batchSize][querySize]byte

	out    [batchSize]mmsghdr
	outIov [batchSize]unix.Iovec
	reply  [batchSize][directSize]byte
}

// serve reads and answers until the socket is closed. Each round takes what
// has arrived, up to a batch, answers what it can and sends those answers with
// one system call.
func (u *udpSocket) serve() {
	b := new(batch)
	for i := range b.in {
		b.inIov[i].Base = &b.data[i][0]
		b.in[i].hdr.Iov = &b.inIov[i]
		b.in[i].hdr.SetIovlen(1)
		b.in[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		b.out[i].hdr.Iov = &b.outIov[i]
		b.out[i].hdr.SetIovlen(1)
	}
	var received, sent, pending int
	read := func(fd uintptr) bool {
		for {
			n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				received = int(n)
				return true
			case unix.EINTR:
			case unix.EAGAIN:
				received = 0
				return u.draining.Load()
			default:
				received = 0
				return true
			}
		}
	}
	write := func(fd uintptr) bool { return sendAll(fd, b.out[:pending], &sent) }

	q := &wire.Query{Worker: u.worker, Local: u.local}
	a := wire.NewAnswer(rand.Uint64())
	received = batchSize // slots to prepare: those that were used
	for {
		for i := range received {
			b.inIov[i].SetLen(querySize)
			b.in[i].hdr.Namelen = unix.SizeofSockaddrInet6
			if u.wildcard {
				b.in[i].hdr.Control = &b.oob[i][0]
				b.in[i].hdr.SetControllen(oobSize)
			}
		}
		if err := u.raw.Read(read); err != nil {
			if !u.draining.Load() {
				return
			}
			// The deadline that woke this goroutine must not hide what has
			// arrived: read on until nothing is left.
			if u.raw.Control(func(fd uintptr) { read(fd) }) != nil || received == 0 {
				return
			}
		}
		q.Received = time.Now()
		pending, sent = 0, 0
		r := u.listener.routes.Load()
		for i := range received {
			m := &b.in[i]
			if reply := u.answer(r, q, a, b, i); reply != nil {
				o := &b.out[pending]
				b.outIov[pending].Base = &reply[0]
				b.outIov[pending].SetLen(len(reply))
				o.hdr.Name, o.hdr.Namelen = m.hdr.Name, m.hdr.Namelen
				o.hdr.Control, o.hdr.Controllen = nil, 0
				if u.wildcard && m.hdr.Controllen > 0 {
					anyInterface(b.oob[i][:m.hdr.Controllen])
					o.hdr.Control, o.hdr.Controllen = m.hdr.Control, m.hdr.Controllen
				}
				pending++
			}
		}
		u.lanes.flush()
		if pending > 0 && u.raw.Write(write) != nil {
			return
		}
	}
}

// sendAll sends out from next on without waiting; false when it has to be called
// again.
func sendAll(fd uintptr, out []mmsghdr, next *int) bool {
	for *next < len(out) {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out[*next])), uintptr(len(out)-*next), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			*next += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			*next++ // this client cannot be reached (no route, refused by a filter)
		}
	}
	return true
}

// answer returns the reply to the i-th message of the batch, or nil when there
// is none or it comes later.
func (u *udpSocket) answer(r *routes, q *wire.Query, a *wire.Answer, b *batch, i int) []byte {
	m := &b.in[i]
	data := b.data[i][:m.n]
	verdict := q.Parse(data)
	if m.hdr.Flags&unix.MSG_TRUNC != 0 && verdict == wire.Unusual {
		verdict = wire.FormErr // what was cut off is not only trailing bytes
	}
	q.Remote = sockaddr(&b.names[i])
	switch verdict {
	case wire.Drop:
		return nil
	case wire.FormErr, wire.NotImp:
		u.count.refused.Add(1)
		return refusal(data, b.reply[i][:], verdict)
	case wire.Plain:
		reply, to, by := r.direct(q, a, b.reply[i][:])
		if reply != nil {
			u.count.direct.Add(1)
			return reply
		}
		if by != nil && u.relay(r, to, by, q, a, b, i) {
			u.count.relay.Add(1)
			return nil
		}
	}
	s := u.listener.server
	u.count.chain.Add(1)
	client := q.Remote.Addr()
	if !s.chain.admit(client) {
		return nil
	}
	w := &udpReply{socket: u, remote: q.Remote, local: u.local}
	if u.wildcard {
		w.oob = append(w.oob, b.oob[i][:m.hdr.Controllen]...)
		anyInterface(w.oob)
		w.local = netip.AddrPortFrom(packetAddr(w.oob), u.local.Port())
	}
	s.chain.run(s.chain.job(u.listener, data, client, w))
	return nil
}

func (u *udpSocket) stopReading() {
	u.draining.Store(true)
	_ = u.conn.SetReadDeadline(time.Unix(1, 0))
}

// sockaddr returns the address in a sockaddr_in or sockaddr_in6.
func sockaddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	p := uint16(port[0])<<8 | uint16(port[1])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), p)
	}
	addr := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && addr.Is6() {
		addr = addr.WithZone(zoneName(sa.Scope_id))
	}
	return netip.AddrPortFrom(addr, p)
}

// zoneName writes a scope as a number, which the net package understands; link
// local clients are rare.
func zoneName(id uint32) string { return fmt.Sprint(id) }

// anyInterface takes the interface out of a packet information message that
// was received, so that it can be sent with the reply: only the address must be
// the same, the way back is the routing table's to choose. Link-local addresses
// mean nothing without their interface and keep it.
func anyInterface(oob []byte) {
	if len(oob) < unix.SizeofCmsghdr {
		return
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	data := oob[unix.CmsgLen(0):]
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		binary.NativeEndian.PutUint32(data, 0)
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if data[0] != 0xfe || data[1]&0xc0 != 0x80 {
			binary.NativeEndian.PutUint32(data[16:], 0)
		}
	}
}

// packetAddr returns the address in a packet information message.
func packetAddr(oob []byte) netip.Addr {
	if len(oob) < unix.SizeofCmsghdr {
		return netip.Addr{}
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	data := oob[unix.CmsgLen(0):]
	switch {
	case h.Level == unix.IPPROTO_IP && len(data) >= unix.SizeofInet4Pktinfo:
		return netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst: the local address
	case h.Level == unix.IPPROTO_IPV6 && len(data) >= unix.SizeofInet6Pktinfo:
		return netip.AddrFrom16([16]byte(data[:16])).Unmap()
	}
	return netip.Addr{}
}

// udpReply is the way back to a UDP client.
type udpReply struct {
	socket *udpSocket
	remote netip.AddrPort
	local  netip.AddrPort
	oob    []byte
	req    *dns.Msg
	addr   net.Addr // remote once more: plugins ask for it several times per query
}

func (w *udpReply) begin(req *dns.Msg) {
	w.req = req
	w.addr = net.UDPAddrFromAddrPort(w.remote)
}

func (w *udpReply) LocalAddr() net.Addr  { return net.UDPAddrFromAddrPort(w.local) }
func (w *udpReply) RemoteAddr() net.Addr { return w.addr }

var packBuffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// WriteMsg sends m, cut to the client's size.
func (w *udpReply) WriteMsg(m *dns.Msg) error {
	buf := packBuffers.Get().(*[]byte)
	defer packBuffers.Put(buf)
	b, err := pack(w, w.req, m, *buf)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func (w *udpReply) Write(b []byte) (int, error) {
	n, _, err := w.socket.conn.WriteMsgUDPAddrPort(b, w.oob, w.remote)
	return n, err
}

func (w *udpReply) Close() error        { return nil }
func (w *udpReply) TsigStatus() error   { return nil }
func (w *udpReply) TsigTimersOnly(bool) {}
func (w *udpReply) Hijack()             {}
