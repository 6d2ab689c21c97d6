package server

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const (
	readTimeout  = 3 * time.Second // for the first query, and for the rest of one that has begun
	writeTimeout = 5 * time.Second
	idleTimeout  = 10 * time.Second
	// pipelined is how many queries of one connection may be open; the next is
	// not read before one of them is answered.
	pipelined = 128
)

// connLimiter bounds connections, in all and per client address.
type connLimiter struct {
	max int

	mu      sync.Mutex
	open    int
	clients map[netip.Addr]int
}

func newConnLimiter(max int) *connLimiter {
	return &connLimiter{max: max, clients: make(map[netip.Addr]int)}
}

func (l *connLimiter) admit(client netip.Addr) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.max:
		return "tcp_full"
	case l.clients[client] >= max(1, l.max/4):
		return "tcp_client_share"
	}
	l.open++
	l.clients[client]++
	return ""
}

func (l *connLimiter) leave(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.clients[client]--; l.clients[client] == 0 {
		delete(l.clients, client)
	}
}

// accept serves connections until the listener is closed.
func (l *listener) accept() {
	s := l.server
	for {
		c, err := l.tcp.Accept()
		if err != nil {
			l.mu.Lock()
			stopping := l.stopping
			l.mu.Unlock()
			if stopping || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors or memory: connections that end make room.
			s.log.Warn("accepting a DNS connection", "listener", l.key.String(), "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		remote := addrPort(c.RemoteAddr())
		if reason := s.tcp.admit(remote.Addr()); reason != "" {
			s.metrics.shed.WithLabelValues(reason).Inc()
			_ = c.Close()
			continue
		}
		t := &tcpConn{listener: l, conn: c, remote: remote, local: addrPort(c.LocalAddr()), slots: make(chan struct{}, pipelined)}
		t.users.Store(1)
		l.mu.Lock()
		l.conns[t] = struct{}{}
		stopping := l.stopping
		l.mu.Unlock()
		if stopping { // close has not seen it
			t.release()
			return
		}
		l.serving.Go(func() {
			defer t.release()
			t.serve()
		})
	}
}

// tcpConn is one connection: queries of two length bytes and a message, many
// in a row, answered as they finish (RFC 7766 §6.2.1.1).
type tcpConn struct {
	listener *listener
	conn     net.Conn
	remote   netip.AddrPort
	local    netip.AddrPort
	slots    chan struct{} // open chain queries
	users    atomic.Int32  // the reader, and each open chain query

	mu      sync.Mutex // one reply at a time
	writeTo time.Duration
}

// release closes the connection when the last user is done with it: a client
// that has said all it wants still gets the answers that are under way.
func (t *tcpConn) release() {
	if t.users.Add(-1) > 0 {
		return
	}
	_ = t.conn.Close()
	t.listener.server.tcp.leave(t.remote.Addr())
	t.listener.mu.Lock()
	defer t.listener.mu.Unlock()
	delete(t.listener.conns, t)
}

func (t *tcpConn) stopReading() { _ = t.conn.SetReadDeadline(time.Unix(1, 0)) }

func (t *tcpConn) serve() {
	r := t.listener.routes.Load()
	limits := limits(r.timeouts)
	t.writeTo = limits.Write
	in := bufio.NewReaderSize(t.conn, 2048)
	var msg []byte
	q := &wire.Query{TCP: true, Remote: t.remote, Local: t.local}
	a := wire.NewAnswer(rand.Uint64())
	wait := limits.Read
	for served := 0; limits.MaxQueries <= 0 || served < limits.MaxQueries; served++ {
		if t.setReadDeadline(wait) {
			return
		}
		first, err := in.ReadByte()
		if err != nil {
			return
		}
		if t.setReadDeadline(limits.Read) {
			return
		}
		second, err := in.ReadByte()
		if err != nil {
			return
		}
		size := int(first)<<8 | int(second)
		if cap(msg) < size {
			msg = make([]byte, size)
		}
		msg = msg[:size]
		if _, err := io.ReadFull(in, msg); err != nil {
			return
		}
		wait = limits.Idle
		q.Received = time.Now()
		if t.answer(q, a, msg) != nil {
			return
		}
		if cap(msg) > 4096 {
			msg = nil // one long query does not keep 64 KiB for the connection's life
		}
	}
}

// setReadDeadline tells whether reading is over.
func (t *tcpConn) setReadDeadline(d time.Duration) (stop bool) {
	t.listener.mu.Lock()
	defer t.listener.mu.Unlock()
	if t.listener.stopping {
		return true
	}
	return t.conn.SetReadDeadline(time.Now().Add(d)) != nil
}

// answer writes the reply to msg, or hands it to the chain. An error ends the
// connection.
func (t *tcpConn) answer(q *wire.Query, a *wire.Answer, msg []byte) error {
	buf := tcpBuffers.Get().(*[]byte)
	defer tcpBuffers.Put(buf)
	count := t.listener.server.metrics.paths.of(0)
	switch verdict := q.Parse(msg); verdict {
	case wire.Drop:
		return nil
	case wire.FormErr, wire.NotImp:
		count.refused.Add(1)
		return t.send(*buf, refusal(msg, (*buf)[2:], verdict))
	case wire.Plain:
		r := t.listener.routes.Load()
		if reply, _, _ := r.direct(q, a, (*buf)[2:]); reply != nil {
			count.direct.Add(1)
			return t.send(*buf, reply)
		}
	}
	s := t.listener.server
	count.chain.Add(1)
	if !s.chain.admit(t.remote.Addr()) {
		return nil
	}
	t.slots <- struct{}{}
	t.users.Add(1)
	j := s.chain.job(t.listener, msg, t.remote.Addr(), &tcpReply{conn: t})
	j.done = func() {
		<-t.slots
		t.release()
	}
	s.chain.run(j)
	return nil
}

var tcpBuffers = sync.Pool{New: func() any { b := make([]byte, 2+dns.MaxMsgSize); return &b }}

// send writes a reply that stands in buf behind room for its length.
func (t *tcpConn) send(buf, reply []byte) error {
	binary.BigEndian.PutUint16(buf, uint16(len(reply)))
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.conn.SetWriteDeadline(time.Now().Add(t.writeTo)); err != nil {
		return err
	}
	_, err := t.conn.Write(buf[:2+len(reply)])
	return err
}

func limits(t plugin.Timeouts) plugin.Timeouts {
	pick := func(d, standard time.Duration) time.Duration {
		if d == 0 {
			return standard
		}
		return d
	}
	return plugin.Timeouts{
		Read:       pick(t.Read, readTimeout),
		Write:      pick(t.Write, writeTimeout),
		Idle:       pick(t.Idle, idleTimeout),
		MaxQueries: t.MaxQueries,
	}
}

// tcpReply is the way back to a TCP client.
type tcpReply struct {
	conn *tcpConn
	req  *dns.Msg
}

func (w *tcpReply) begin(req *dns.Msg)   { w.req = req }
func (w *tcpReply) LocalAddr() net.Addr  { return w.conn.conn.LocalAddr() }
func (w *tcpReply) RemoteAddr() net.Addr { return w.conn.conn.RemoteAddr() }

// WriteMsg sends m, cut to 64 KiB.
func (w *tcpReply) WriteMsg(m *dns.Msg) error {
	buf := tcpBuffers.Get().(*[]byte)
	defer tcpBuffers.Put(buf)
	b, err := pack(w, w.req, m, (*buf)[2:])
	if err != nil {
		return err
	}
	_, err = w.write(*buf, b)
	return err
}

func (w *tcpReply) Write(b []byte) (int, error) {
	buf := tcpBuffers.Get().(*[]byte)
	defer tcpBuffers.Put(buf)
	return w.write(*buf, b)
}

func (w *tcpReply) write(buf, b []byte) (int, error) {
	if len(b) > dns.MaxMsgSize {
		return 0, dns.ErrBuf
	}
	if len(b) > 0 && &b[0] != &buf[2] {
		copy(buf[2:], b)
	}
	if err := w.conn.send(buf, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (w *tcpReply) Close() error        { return w.conn.conn.Close() }
func (w *tcpReply) TsigStatus() error   { return nil }
func (w *tcpReply) TsigTimersOnly(bool) {}
func (w *tcpReply) Hijack()             {}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
