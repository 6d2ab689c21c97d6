package userspace

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// target is an endpoint of a service port. It is the same for as long as the
// port has the endpoint, whatever list it is in.
type target struct {
	addr netip.AddrPort
	sa   unix.RawSockaddrInet6 // the same, for the kernel; only read
	size uintptr
	// down is until when the endpoint is taken last, in Unix nanoseconds: it did
	// not take a connection.
	down  atomic.Int64
	count counter
}

// counter counts what an endpoint got.
type counter struct{ connections, packets, bytes atomic.Uint64 }

// counted adds what went to or came from an endpoint, if that is counted.
func (d *Dataplane) counted(t *target, packets, bytes int) {
	if d.countBytes {
		t.count.packets.Add(uint64(packets))
		t.count.bytes.Add(uint64(bytes))
	}
}

// downFor is how long an endpoint that did not take a connection is passed by,
// while there are others.
const downFor = time.Second

func newTarget(a netip.AddrPort) *target {
	t := &target{addr: a}
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, a.Port()))
	if a.Addr().Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&t.sa)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: a.Addr().As4()}
		t.size = unix.SizeofSockaddrInet4
		return t
	}
	t.sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	t.size = unix.SizeofSockaddrInet6
	return t
}

// connect begins to connect a socket to the endpoint.
func (t *target) connect(fd int) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&t.sa)), t.size)
	if errno != 0 {
		return errno
	}
	return nil
}

func (t *target) failed(now time.Time) { t.down.Store(now.Add(downFor).UnixNano()) }

func (t *target) worked() {
	if t.down.Load() != 0 {
		t.down.Store(0)
	}
}

// list is the endpoints that a relay spreads over. Only next changes.
type list struct {
	targets []*target
	next    atomic.Uint32
}

func newList(targets []*target) *list {
	l := &list{targets: targets}
	// Nodes that start at the same time do not all start with the same endpoint.
	l.next.Store(rand.Uint32())
	return l
}

// pick returns the next endpoint that is not down. Without one it returns the
// next, or nil if a connection has already tried.
func (l *list) pick(now time.Time, again bool) *target {
	n := uint32(len(l.targets))
	if n == 0 {
		return nil
	}
	first := l.next.Add(1)
	for i := range n {
		if t := l.targets[(first+i)%n]; t.down.Load() <= now.UnixNano() {
			if i > 0 {
				l.next.Add(i) // its neighbour does not get its share too
			}
			return t
		}
	}
	if again {
		return nil
	}
	return l.targets[first%n]
}

func (l *list) has(t *target) bool {
	for _, o := range l.targets {
		if o == t {
			return true
		}
	}
	return false
}

// affinityLimit bounds the clients that a service port remembers.
const affinityLimit = 1 << 16

// affinity remembers which endpoint a client went to: the same whatever the
// front end is.
type affinity struct {
	timeout time.Duration
	mu      sync.Mutex
	clients map[netip.Addr]visit
}

type visit struct {
	target *target
	last   time.Time
}

// lookup returns where the client went, if that is recent and in the list.
func (a *affinity) lookup(client netip.Addr, l *list, now time.Time) *target {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.clients[client]
	if !ok || now.Sub(v.last) > a.timeout || !l.has(v.target) {
		return nil
	}
	a.clients[client] = visit{v.target, now}
	return v.target
}

// note remembers where the client went.
func (a *affinity) note(client netip.Addr, t *target, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.clients[client]; !known && len(a.clients) >= affinityLimit {
		a.sweep(now)
		for other := range a.clients { // whoever comes first, if all are recent
			if len(a.clients) < affinityLimit {
				break
			}
			delete(a.clients, other)
		}
	}
	a.clients[client] = visit{t, now}
}

func (a *affinity) sweep(now time.Time) {
	for client, v := range a.clients {
		if now.Sub(v.last) > a.timeout {
			delete(a.clients, client)
		}
	}
}

// choose returns the endpoint for a client; nil if there is none. again tells
// that one was tried already.
func (r *relay) choose(client netip.Addr, now time.Time, again bool) *target {
	l := r.list.Load()
	a := r.port.affinity.Load()
	if a != nil && !again {
		if t := a.lookup(client, l, now); t != nil {
			return t
		}
	}
	t := l.pick(now, again)
	if a != nil && t != nil {
		a.note(client, t, now)
	}
	return t
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
