package userspace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// portKey names a service port of one family.
type portKey struct {
	addr  netip.AddrPort // its cluster IP
	proto catalog.Protocol
}

// portal is a service port at work. What the loops read of it is atomic; the
// rest belongs to Dataplane.mu.
type portal struct {
	key      portKey
	affinity atomic.Pointer[affinity] // nil for none
	targets  map[netip.AddrPort]*target
	// relays are by list: those of plan.Port.Cluster and of Local.
	relays [2]*relay
	socks  map[front]*sock
	// met tells that it had an endpoint at some time.
	met bool

	held         atomic.Int32 // connections
	failingSince atomic.Int64 // Unix nanoseconds; 0 when connections are taken
	lastFailure  atomic.Int64
}

// relay is one list of endpoints of a service port.
type relay struct {
	port *portal
	list atomic.Pointer[list]
}

const (
	clusterList = iota
	localList
)

// front is an address that clients reach a relay by, and who may.
type front struct {
	bind netip.AddrPort // port 0: any
	list int
}

// sock is a listening socket.
type sock struct {
	addr netip.AddrPort
	loop *loop
	tcp  *acceptor
	udp  *udpPort
}

// hold tells whether a connection may wait for an endpoint that takes it.
func (p *portal) hold(now time.Time) bool {
	n := now.UnixNano()
	if n-p.lastFailure.Swap(n) > int64(10*time.Second) {
		p.failingSince.Store(n)
	} else {
		p.failingSince.CompareAndSwap(0, n)
	}
	if !p.holds(now) {
		return false
	}
	if p.held.Add(1) > holdLimit {
		p.held.Add(-1)
		return false
	}
	return true
}

// holds tells whether those that wait may go on.
func (p *portal) holds(now time.Time) bool {
	since := p.failingSince.Load()
	return since == 0 || now.UnixNano()-since < int64(holdFor)
}

// works is called when an endpoint took a connection.
func (p *portal) works() {
	if p.failingSince.Load() != 0 {
		p.failingSince.Store(0)
	}
}

func newPortal(k portKey) *portal {
	p := &portal{key: k, targets: make(map[netip.AddrPort]*target), socks: make(map[front]*sock)}
	for i := range p.relays {
		p.relays[i] = &relay{port: p}
		p.relays[i].list.Store(newList(nil))
	}
	return p
}

// update takes over the endpoints of a plan.
func (p *portal) update(port *plan.Port) {
	switch a := p.affinity.Load(); {
	case port.Affinity == 0:
		p.affinity.Store(nil)
	case a == nil || a.timeout != port.Affinity:
		p.affinity.Store(&affinity{timeout: port.Affinity, clients: make(map[netip.Addr]visit)})
	}
	lists := [2][]netip.AddrPort{port.Cluster, port.Local}
	// Who still comes by a list that no front end uses any more gets the other.
	if port.InternalLocal && !port.ExternallyAccessible() {
		lists[clusterList] = port.Local
	} else if !port.InternalLocal && !port.ExternalLocal {
		lists[localList] = port.Cluster
	}
	for i, endpoints := range lists {
		targets := make([]*target, 0, len(endpoints))
		for _, e := range endpoints {
			t := p.targets[e]
			if t == nil {
				t = newTarget(e)
				p.targets[e] = t
			}
			targets = append(targets, t)
		}
		p.met = p.met || len(targets) > 0
		if !slices.Equal(targets, p.relays[i].list.Load().targets) {
			p.relays[i].list.Store(newList(targets))
		}
	}
	serving := make(map[netip.AddrPort]bool, len(port.Cluster)+len(port.Serving))
	for _, l := range [][]netip.AddrPort{port.Cluster, port.Local, port.Serving} {
		for _, e := range l {
			serving[e] = true
		}
	}
	for e := range p.targets {
		if !serving[e] {
			delete(p.targets, e)
		}
	}
	for _, s := range p.socks {
		if s.udp != nil {
			s.loop.call(func() { s.udp.keep(serving) })
		}
	}
}

// listen opens a socket for a front end, unless there is one.
func (d *Dataplane) listen(p *portal, f front, sources []netip.Prefix) error {
	if s := p.socks[f]; s != nil {
		s.loop.call(func() { s.restrict(sources) })
		return nil
	}
	s := &sock{loop: d.loops[d.nextLoop%len(d.loops)]}
	d.nextLoop++
	var err error
	s.loop.call(func() { err = s.open(p, f, sources) })
	if err != nil {
		return err
	}
	p.socks[f] = s
	d.listening[s.addr] = struct{}{}
	return nil
}

func (s *sock) restrict(sources []netip.Prefix) {
	if s.tcp != nil {
		s.tcp.sources = sources
	} else {
		s.udp.sources = sources
	}
}

// open runs in the loop, and so in its network namespace.
func (s *sock) open(p *portal, f front, sources []netip.Prefix) error {
	typ := unix.SOCK_STREAM
	if p.key.proto == catalog.UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family(f.bind.Addr()), typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	if err := s.bind(fd, typ, f.bind); err != nil {
		unix.Close(fd)
		return err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("listen on %s: %w", f.bind, err)
	}
	port := 0
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		port = sa.Port
	case *unix.SockaddrInet6:
		port = sa.Port
	}
	s.addr = netip.AddrPortFrom(f.bind.Addr(), uint16(port))
	var h handler
	if typ == unix.SOCK_STREAM {
		s.tcp = &acceptor{l: s.loop, fd: fd, relay: p.relays[f.list], sources: sources}
		h = s.tcp
	} else {
		s.udp = &udpPort{l: s.loop, fd: fd, relay: p.relays[f.list], sources: sources, sessions: make(map[netip.AddrPort]*session)}
		h = s.udp
		s.loop.ports[s.udp] = struct{}{}
	}
	s.loop.d.fds.Add(1)
	if err := s.loop.add(fd, h, unix.EPOLLIN); err != nil {
		return fmt.Errorf("watch a socket: %w", err)
	}
	return nil
}

func (s *sock) bind(fd, typ int, at netip.AddrPort) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if at.Addr().Is6() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	}
	if typ == unix.SOCK_DGRAM {
		// Room for bursts, as much as the system gives.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
		// SO_REUSEADDR would let another program take part of what comes.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
	} else {
		// What is accepted inherits these.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		keepAlive(fd)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return fmt.Errorf("listen on %s: %w", at, explainBind(err, at))
	}
	if typ == unix.SOCK_STREAM {
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen on %s: %w", at, explainBind(err, at))
		}
	}
	return nil
}

func explainBind(err error, at netip.AddrPort) error {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: without privilege only addresses of this host work, as those of 127.0.0.0/8: use a service CIDR such as 127.96.0.0/16, or run as root", err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program listens there: ss -lntup 'sport = :%d' shows it", err, at.Port())
	}
	return err
}

// unlisten ends the listening; connections go on.
func (d *Dataplane) unlisten(s *sock) {
	delete(d.listening, s.addr)
	s.loop.call(func() {
		if s.tcp != nil {
			s.tcp.close()
		} else {
			s.udp.close()
		}
		d.fds.Add(-1)
	})
}
