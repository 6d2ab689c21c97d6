// Package testnet builds small networks of namespaces for tests: a node with
// pods behind it, and hosts beside it, with real links and real sockets.
package testnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is a network namespace that ends with the test.
type Space struct {
	Name string
	t    testing.TB
	ns   netns.NsHandle
	// brief makes Ask take silence for an answer soon.
	brief bool
}

// New makes a namespace with its loopback up. It skips the test without the
// privilege to.
func New(t testing.TB, name string) *Space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	type made struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan made)
	go func() {
		// The thread is in the new namespace for good: not unlocked, it ends
		// with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{err: err}
			return
		}
		ns, err := netns.Get()
		ch <- made{ns, err}
	}()
	m := <-ch
	if errors.Is(m.err, unix.EPERM) {
		t.Skip("making network namespaces is not permitted here")
	}
	if m.err != nil {
		t.Fatalf("make network namespace %s: %v", name, m.err)
	}
	s := &Space{Name: name, t: t, ns: m.ns}
	t.Cleanup(func() { s.ns.Close() })
	s.Do(func() {
		lo, err := netlink.LinkByName("lo")
		s.must(err)
		s.must(netlink.LinkSetUp(lo))
		// Addresses of tests are unique: no need to wait for the check.
		s.Sysctl("net/ipv6/conf/default/accept_dad", "0")
		s.Sysctl("net/ipv6/conf/all/accept_dad", "0")
		// Tests provoke more ICMP errors than the kernel likes to send.
		s.Sysctl("net/ipv4/icmp_ratelimit", "0")
		s.Sysctl("net/ipv6/icmp/ratelimit", "0")
	})
	return s
}

func (s *Space) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("%s: %v", s.Name, err))
	}
}

// Do runs f inside the namespace, on a thread of its own. Sockets that f opens
// stay in the namespace. A panic in f fails the test.
func (s *Space) Do(f func()) {
	s.t.Helper()
	done := make(chan any)
	go func() {
		runtime.LockOSThread()
		defer func() { done <- recover() }()
		s.must(netns.Set(s.ns))
		f()
	}()
	if p := <-done; p != nil {
		s.t.Fatal(p)
	}
}

// Sysctl writes a sysctl of the namespace; call it inside Do.
func (s *Space) Sysctl(key, value string) {
	s.must(os.WriteFile("/proc/sys/"+key, []byte(value), 0))
}

// AddAddr gives lo, or another device, an address.
func (s *Space) AddAddr(device, prefix string) {
	s.Do(func() {
		l, err := netlink.LinkByName(device)
		s.must(err)
		a, err := netlink.ParseAddr(prefix)
		s.must(err)
		a.Flags = unix.IFA_F_NODAD
		s.must(netlink.AddrAdd(l, a))
	})
}

// Forward makes the namespace a router.
func (s *Space) Forward() {
	s.Do(func() {
		s.Sysctl("net/ipv4/ip_forward", "1")
		s.Sysctl("net/ipv6/conf/all/forwarding", "1")
	})
}

// Pod makes a namespace with these addresses behind s, point to point: s has a
// host route to each address, the pod a default route to s. The device in s is
// called by the pod's name.
func (s *Space) Pod(name string, addrs ...string) *Space {
	p := New(s.t, name)
	gateway := map[bool]string{false: "169.254.1.1", true: "fe80::1"}
	s.Do(func() {
		s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(p.ns))}))
		l, err := netlink.LinkByName(name)
		s.must(err)
		s.must(netlink.LinkSetUp(l))
		for _, a := range gateway {
			s.must(netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(a), Scope: int(netlink.SCOPE_LINK), Flags: unix.IFA_F_NODAD}))
		}
	})
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		p.must(err)
		p.must(netlink.LinkSetUp(l))
		for _, a := range addrs {
			p.must(netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(a), Flags: unix.IFA_F_NODAD}))
		}
		for v6, gw := range gateway {
			to := "0.0.0.0/0"
			if v6 {
				to = "::/0"
			}
			_, dst, _ := net.ParseCIDR(to)
			p.must(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(gw), Flags: int(netlink.FLAG_ONLINK)}))
		}
	})
	s.Do(func() {
		l, err := netlink.LinkByName(name)
		s.must(err)
		for _, a := range addrs {
			s.must(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: hostNet(a), Scope: netlink.SCOPE_LINK}))
		}
	})
	return p
}

// Connect joins two namespaces by a link with these addresses (a/len form).
// Devices are called by the name of the other side.
func (s *Space) Connect(o *Space, mine, theirs []string) {
	s.Do(func() {
		s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: o.Name}, PeerName: s.Name, PeerNamespace: netlink.NsFd(int(o.ns))}))
	})
	for _, side := range []struct {
		*Space
		device string
		addrs  []string
	}{{s, o.Name, mine}, {o, s.Name, theirs}} {
		for _, a := range side.addrs {
			side.AddAddr(side.device, a)
		}
		side.Do(func() {
			l, err := netlink.LinkByName(side.device)
			side.must(err)
			side.must(netlink.LinkSetUp(l))
		})
	}
}

// Route adds a route; to may be "default".
func (s *Space) Route(to, via string) {
	s.Do(func() {
		gw := net.ParseIP(via)
		if to == "default" {
			to = "0.0.0.0/0"
			if gw.To4() == nil {
				to = "::/0"
			}
		}
		_, dst, err := net.ParseCIDR(to)
		s.must(err)
		s.must(netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw}))
	})
}

func hostNet(a string) *net.IPNet {
	ip := net.ParseIP(a)
	if v4 := ip.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}
}

// Serve answers TCP connections and UDP datagrams on the address with the
// namespace's name and the peer's address, "name addr", until the test ends.
func (s *Space) Serve(addr string) {
	s.Do(func() {
		l, err := net.Listen("tcp", addr)
		s.must(err)
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					fmt.Fprintf(c, "%s %s\n", s.Name, host(c.RemoteAddr()))
					_, _ = io.Copy(c, c) // echo
				}()
			}
		}()
		u, err := net.ListenPacket("udp", addr)
		s.must(err)
		s.t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(s.Name+" "+host(from)+"\n"), from)
			}
		}()
	})
}

func host(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().String()
}

// Outcomes of Ask besides an answer.
const (
	Refused = "refused"
	Silence = "silence"
)

// Ask connects to addr over tcp or udp, from the address local if it is not
// empty, and returns what the server said, Refused or Silence.
func (s *Space) Ask(network, addr, local string) string {
	c, err := s.Dial(network, addr, local)
	if err != nil {
		return outcome(err)
	}
	defer c.Close()
	return AnswerWithin(c, s.patience())
}

// Brief is the same namespace for one who expects silence, and does not want to
// wait for it long.
func (s *Space) Brief() *Space {
	b := *s
	b.brief = true
	return &b
}

func (s *Space) patience() time.Duration {
	if s.brief {
		return soon
	}
	return patience
}

// Dial connects from inside the namespace.
func (s *Space) Dial(network, addr, local string) (c net.Conn, err error) {
	s.Do(func() {
		d := net.Dialer{Timeout: s.patience()}
		if local != "" {
			ip := net.ParseIP(local)
			d.LocalAddr = &net.TCPAddr{IP: ip}
			if network == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: ip}
			}
		}
		c, err = d.Dial(network, addr)
	})
	return c, err
}

// How long silence must last to be called so: long where an answer is expected,
// so that a busy machine fails no test.
const (
	patience = 5 * time.Second
	soon     = 300 * time.Millisecond
)

// Answer reads the server's word. On UDP it sends a datagram first.
func Answer(c net.Conn) string { return AnswerWithin(c, patience) }

// AnswerWithin is Answer with a limit.
func AnswerWithin(c net.Conn, limit time.Duration) string {
	if _, ok := c.(*net.UDPConn); ok {
		if _, err := c.Write([]byte("?")); err != nil {
			return outcome(err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		return outcome(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

func outcome(err error) string {
	var timeout net.Error
	switch {
	// A node's own datagram that its output hook rejects fails with EPERM.
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM):
		return Refused
	case errors.As(err, &timeout) && timeout.Timeout():
		return Silence
	}
	return err.Error()
}
