package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is the sockets of one address and port, UDP and TCP.
type listener struct {
	key    listenerKey
	server *Server
	routes atomic.Pointer[routes]
	udp    []*udpSocket
	tcp    net.Listener

	mu       sync.Mutex
	conns    map[*tcpConn]struct{}
	stopping bool
	serving  sync.WaitGroup
}

// open opens the sockets that gen needs and the server does not have. On error
// none stays open.
func (s *Server) open(gen *generation) (opened []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range opened {
				l.close()
			}
			opened = nil
		}
	}()
	for key, r := range gen.routes {
		if _, ok := s.listeners[key]; ok {
			continue
		}
		l := &listener{key: key, server: s, conns: make(map[*tcpConn]struct{})}
		opened = append(opened, l)
		if !s.portIsOurs(key.port) {
			if err := probe(key); err != nil {
				return opened, s.listenError("udp", key, err)
			}
		}
		err := l.open(r)
		for tries := 0; key.port == "0" && errors.Is(err, unix.EADDRINUSE) && tries < 20; tries++ {
			l.closeSockets() // the UDP port that the kernel chose is another's TCP port
			err = l.open(r)
		}
		if err != nil {
			return opened, err
		}
	}
	return opened, nil
}

func (s *Server) portIsOurs(port string) bool {
	for key := range s.listeners {
		if key.port == port {
			return true
		}
	}
	return false
}

// probe finds out whether the UDP port is free. The sockets that serve share
// their port among themselves (SO_REUSEPORT), and would with another server of
// the same user without either noticing.
func probe(key listenerKey) error {
	if key.port == "0" {
		return nil
	}
	c, err := net.ListenPacket("udp", net.JoinHostPort(key.addr, key.port))
	if err != nil {
		return err
	}
	return c.Close()
}

func (l *listener) open(r *routes) error {
	address := net.JoinHostPort(l.key.addr, l.key.port)
	lc := net.ListenConfig{Control: shareControl}
	ctx := context.Background()
	n := r.sockets
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	for range n {
		pc, err := lc.ListenPacket(ctx, "udp", address)
		if err != nil {
			return l.server.listenError("udp", l.key, err)
		}
		sock, err := newUDPSocket(l, pc.(*net.UDPConn))
		if err != nil {
			_ = pc.Close()
			return fmt.Errorf("listen udp %s: %w", address, err)
		}
		l.udp = append(l.udp, sock)
		address = pc.LocalAddr().String() // of port 0 the kernel chose one
		if l.key.addr == "" {
			_, port, _ := net.SplitHostPort(address)
			address = ":" + port
		}
	}
	t, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return l.server.listenError("tcp", l.key, err)
	}
	l.tcp = t
	return nil
}

// shareControl lets the sockets of one address share it and lets a socket of
// one address stand beside one of all addresses.
func shareControl(network, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if serr == nil && strings.HasPrefix(network, "udp") {
			// Room for bursts. Beyond net.core.rmem_max needs CAP_NET_ADMIN.
			const room = 4 << 20
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, room)
			}
		}
	})
	return errors.Join(err, serr)
}

// hint is an error with words that help more.
type hint struct {
	error
	text string
}

func (h hint) Error() string { return h.text }
func (h hint) Unwrap() error { return h.error }

// listenError says in one line what keeps a port from being opened and what to
// do about it.
func (s *Server) listenError(network string, key listenerKey, err error) error {
	where := net.JoinHostPort(key.addr, key.port)
	flag := map[string]string{"udp": "u", "tcp": "t"}[network]
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return hint{err, fmt.Sprintf("listen %s %s: address already in use: another DNS server has it (ss -%slpn 'sport = :%s' shows which); stop it, or %s", network, where, flag, key.port, s.cfg.Elsewhere)}
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("listen %s %s: permission denied: a port below 1024 needs root or CAP_NET_BIND_SERVICE; or %s", network, where, s.cfg.Elsewhere)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("listen %s %s: this host does not have the address; correct the bind line, or add the address first", network, where)
	}
	return fmt.Errorf("listen %s %s: %w", network, where, err)
}

func (l *listener) addr(network string) net.Addr {
	if network == "udp" {
		return l.udp[0].conn.LocalAddr()
	}
	return l.tcp.Addr()
}

// take returns the routes in force, counted in so that they are not stopped
// before leave is called on their generation.
func (l *listener) take() *routes {
	for {
		r := l.routes.Load()
		r.gen.enter()
		if l.routes.Load() == r {
			return r
		}
		r.gen.leave()
	}
}

// serve starts the goroutines that read; they end with close.
func (l *listener) serve() {
	for _, u := range l.udp {
		l.serving.Go(u.serve)
	}
	l.serving.Go(l.accept)
}

// stopReading ends reading once what has arrived is read; replies still leave.
func (l *listener) stopReading() {
	_ = l.tcp.Close()
	for _, u := range l.udp {
		u.stopReading()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = true
	for c := range l.conns {
		c.stopReading()
	}
}

func (l *listener) close() {
	if l.tcp != nil {
		_ = l.tcp.Close()
	}
	l.mu.Lock()
	l.stopping = true
	for c := range l.conns {
		_ = c.conn.Close()
	}
	l.mu.Unlock()
	l.closeSockets()
	l.serving.Wait()
}

func (l *listener) closeSockets() {
	for _, u := range l.udp {
		_ = u.conn.Close()
	}
	l.udp = nil
}

// portPool keeps the listeners of plugins (health, ready, prometheus) open over
// a reload: who asks for an address that is open gets another file descriptor
// of the same socket.
type portPool struct {
	mu   sync.Mutex
	open map[string][]*pooled
}

type pooled struct {
	net.Listener
	pool *portPool
	key  string
	once sync.Once
}

func (p *portPool) listen(network, addr string) (net.Listener, error) {
	key := network + " " + addr
	p.mu.Lock()
	defer p.mu.Unlock()
	var l net.Listener
	var err error
	if have := p.open[key]; len(have) > 0 {
		l, err = duplicate(have[0].Listener)
	} else {
		l, err = net.Listen(network, addr)
	}
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("%w: another process has it (ss -tlpn shows which); stop it or choose another port", err)
		}
		return nil, err
	}
	entry := &pooled{Listener: l, pool: p, key: key}
	if p.open == nil {
		p.open = make(map[string][]*pooled)
	}
	p.open[key] = append(p.open[key], entry)
	return entry, nil
}

func (l *pooled) Close() error {
	l.once.Do(func() {
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		list := l.pool.open[l.key]
		for i, e := range list {
			if e == l {
				l.pool.open[l.key] = append(list[:i:i], list[i+1:]...)
			}
		}
	})
	return l.Listener.Close()
}

func duplicate(l net.Listener) (net.Listener, error) {
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("%s: cannot be shared over a reload", l.Addr())
	}
	f, err := t.File()
	if err != nil {
		return nil, err
	}
	defer func(c io.Closer) { _ = c.Close() }(f)
	return net.FileListener(f)
}
