package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/conformance/peer"
)

// A ground is where one proxy is measured: a client, a node with the proxy, and
// all pods, each a network namespace.
//
//	client ─── node ─── pods
//
// The pods' namespace owns every pod address (AnyIP) and answers on all of
// them. What is measured is what packets do, so that any proxy in any mode can
// be compared: a change is in force when a connection arrives at the endpoint.
type ground struct {
	client, node, pods *peer.Netns
	server             *server
	sink               net.Listener
}

// nodeAddress is the address of the nodes, from TEST-NET-1 (RFC 5737).
const nodeAddress = "192.0.2.10"

// Pods, of which the client is one, are in podRange; those that answer are in
// its first half. The client has several addresses, so that its ports last.
const (
	podRange      = "10.128.0.0/9"
	answering     = "10.128.0.0/10"
	clientGateway = "10.255.0.1"
	clientPrefix  = "10.255.0."
	clientFirst   = 10
	clientCount   = 16
	serverPort    = 8080 // connections are accepted and closed
	sinkPort      = 8081 // what comes is read
	servicePort   = 80
	nodeInterface = "192.0.2.10/24"
	podsGateway   = "198.18.2.1"
	podsSide      = "198.18.2.2"
	listenBacklog = 4096
)

var clientNet = [4]byte{10, 255, 0, 0}

func newGround(api string) (g *ground, err error) {
	g = &ground{}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
			g = nil
		}
	}()
	for _, ns := range []**peer.Netns{&g.client, &g.node, &g.pods} {
		if *ns, err = peer.NewNetns(); err != nil {
			return g, err
		}
	}
	if err := errors.Join(g.node.AddInterface("eth0", nodeInterface), g.node.Forward(api)); err != nil {
		return g, err
	}
	clients := make([]string, clientCount)
	for i := range clients {
		clients[i] = fmt.Sprintf("%s%d/24", clientPrefix, clientFirst+i)
	}
	err = errors.Join(
		g.sysctls(),
		join(g.node, "client", []string{clientGateway + "/24"}, g.client, clients),
		join(g.node, "pods", []string{podsGateway + "/24"}, g.pods, []string{podsSide + "/24"}),
		route(g.node, answering, podsSide),
		route(g.client, "0.0.0.0/0", clientGateway),
		route(g.pods, "0.0.0.0/0", podsGateway),
		own(g.pods, answering),
	)
	if err != nil {
		return g, fmt.Errorf("building the network: %w", err)
	}
	if g.server, err = serve(g.pods); err != nil {
		return g, err
	}
	err = g.pods.Do(func() (err error) {
		g.sink, err = net.Listen("tcp4", fmt.Sprintf(":%d", sinkPort))
		return err
	})
	if err != nil {
		return g, err
	}
	go drain(g.sink)
	return g, nil
}

func (g *ground) close() error {
	var errs []error
	if g.server != nil {
		g.server.close()
	}
	if g.sink != nil {
		errs = append(errs, g.sink.Close())
	}
	for _, ns := range []*peer.Netns{g.client, g.node, g.pods} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

func (g *ground) sysctls() error {
	var errs []error
	for _, ns := range []*peer.Netns{g.client, g.node, g.pods} {
		errs = append(errs, ns.Do(func() error {
			var errs []error
			for key, value := range map[string]string{
				"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
				"net/ipv4/ip_local_port_range": "10240 65000",
			} {
				errs = append(errs, os.WriteFile("/proc/sys/"+key, []byte(value), 0))
			}
			return errors.Join(errs...)
		}))
	}
	return errors.Join(errs...)
}

// join lays a cable from one namespace, where the device is called name, to
// another, where it is eth0.
func join(one *peer.Netns, name string, addrs []string, other *peer.Netns, otherAddrs []string) error {
	return one.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(other.Handle()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return errors.Join(address(name, addrs), other.Do(func() error { return address("eth0", otherAddrs) }))
	})
}

func address(device string, addrs []string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func route(ns *peer.Netns, to, via string) error {
	return ns.Do(func() error {
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	})
}

// own makes every address of a range local.
func own(ns *peer.Netns, prefix string) error {
	return ns.Do(func() error {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst,
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST})
	})
}

// server accepts connections on every pod address, notes which address each
// was for, and closes it.
type server struct {
	fd   int
	done chan struct{}

	mu   sync.Mutex
	seen map[[4]byte]time.Time // first connection to an address
}

func serve(ns *peer.Netns) (*server, error) {
	s := &server{done: make(chan struct{}), seen: make(map[[4]byte]time.Time)}
	err := ns.Do(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(s.fd, &unix.SockaddrInet4{Port: serverPort}),
			unix.Listen(s.fd, listenBacklog))
	})
	if err != nil {
		return nil, fmt.Errorf("starting the pods' server: %w", err)
	}
	go s.run()
	return s, nil
}

func (s *server) run() {
	defer close(s.done)
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBADF) {
			return // closed
		}
		if err != nil {
			continue // of one connection
		}
		if at, err := unix.Getsockname(fd); err == nil {
			if a, ok := at.(*unix.SockaddrInet4); ok {
				s.mu.Lock()
				if _, ok := s.seen[a.Addr]; !ok {
					s.seen[a.Addr] = time.Now()
				}
				s.mu.Unlock()
			}
		}
		unix.Close(fd)
	}
}

func (s *server) close() {
	_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // ends accept
	<-s.done
	unix.Close(s.fd)
}

// first tells when the first connection for an address came.
func (s *server) first(a netip.Addr) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.seen[a.As4()]
	return t, ok
}

func drain(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		}()
	}
}

// begin begins to connect from the calling thread's namespace, as one of the
// client's addresses. Closing ends the connection with a reset: it leaves no
// port in TIME_WAIT. up tells that the connection is there already.
func begin(turn int, to netip.Addr) (fd int, up bool, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, false, err
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	// The port is chosen by the whole of both addresses, so they last longer.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	from := clientNet
	from[3] = byte(clientFirst + turn%clientCount)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from}); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	port := servicePort
	if to.As4()[1] >= 128 {
		port = serverPort // a pod itself
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4(), Port: port})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, err == nil, nil
}

// dial connects and closes. It tells whether the connection came about.
func dial(turn int, to netip.Addr, timeout time.Duration) bool {
	fd, up, err := begin(turn, to)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if up {
		return true
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(poll, int(timeout/time.Millisecond)); n != 1 || err != nil {
		return false
	}
	failed, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && failed == 0
}

// attempts are connections that were begun and whose outcome nobody waits for:
// a packet that is dropped must not keep the next from being sent.
type attempts struct {
	fds  [128]int // 0: none
	turn int
}

func (a *attempts) begin(to netip.Addr) {
	slot := &a.fds[a.turn%len(a.fds)]
	if *slot > 0 {
		unix.Close(*slot)
		*slot = 0
	}
	if fd, _, err := begin(a.turn, to); err == nil {
		*slot = fd
	}
	a.turn++
}

func (a *attempts) end() {
	for _, fd := range a.fds {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// errBound says that something took longer than it may.
var errBound = errors.New("not within the bound")

// await connects to services until a connection has arrived at an endpoint of
// each, and tells when the last one did. of tells whether it has, and when. The
// wait between two attempts is a hundredth of the time that has passed: so is
// the error, and the load.
func (g *ground) await(ctx context.Context, vips []netip.Addr, of func(netip.Addr) (time.Time, bool), bound time.Duration) (last time.Time, err error) {
	start := time.Now()
	err = g.client.Do(func() error {
		var tries attempts
		defer tries.end()
		for missing := slices.Clone(vips); ; {
			for i, vip := range missing {
				tries.begin(vip)
				if i%64 == 63 {
					time.Sleep(200 * time.Microsecond) // the server's turn
				}
			}
			missing = slices.DeleteFunc(missing, func(vip netip.Addr) bool {
				t, ok := of(vip)
				if ok && t.After(last) {
					last = t
				}
				return ok
			})
			passed := time.Since(start)
			switch {
			case len(missing) == 0:
				return nil
			case passed > bound:
				return errBound
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			time.Sleep(max(200*time.Microsecond, passed/100))
		}
	})
	return last, err
}

// awaitOne is await for one service and endpoint.
func (g *ground) awaitOne(ctx context.Context, vip, endpoint netip.Addr, bound time.Duration) (time.Time, error) {
	return g.await(ctx, []netip.Addr{vip}, func(netip.Addr) (time.Time, bool) { return g.server.first(endpoint) }, bound)
}
