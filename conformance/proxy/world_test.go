package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/conformance/peer"
)

// A world is the network in which one proxy is looked at. All worlds are alike,
// down to the addresses.
//
//	           a1 a2 ca        b1 b2 cb            pods, each a namespace behind its
//	            │ │ │           │ │ │              node, point to point
//	 ┌───── n1 ─┘─┘─┘     n2 ───┘─┘─┘ ──┐          the nodes, with a proxy each
//	 │       │             │            │
//	out      └───── r ─────┘           out         out: a client outside the cluster
//
// r joins the nodes and is what lies behind them: it owns every service
// address (AnyIP), so what no proxy captured is answered by r, not lost. out
// reaches service addresses through n1, where its load balancer would send
// them.
type world struct {
	spaces map[string]*space
}

// space is a network namespace.
type space struct {
	*peer.Netns
	name    string
	nl      *netlink.Handle
	servers []io.Closer
}

// The cluster's addresses.
const (
	podCIDRs     = "10.244.0.0/16,fd00:244::/48"
	serviceCIDRs = "10.96.0.0/16,fd00:96::/112"
)

// manyPods are addresses by the thousand (by family: IPv6 or not), all of which
// lead to the pod a1.
var manyPods = map[bool]string{false: "10.244.64.0/20", true: "fd00:244:0:40::/64"}

// place is a namespace and where it is: pods say behind which node, nodes have
// no other place.
type place struct {
	name, node string
	v4, v6     string
}

// places are the namespaces in the order of their making.
var places = []place{
	{name: "r", v4: "172.18.1.1", v6: "fd00:18:1::1"},
	{name: "n1", v4: "172.18.1.2", v6: "fd00:18:1::2"},
	{name: "n2", v4: "172.18.2.2", v6: "fd00:18:2::2"},
	{name: "out", v4: "192.0.2.10", v6: "2001:db8:1::10"},
	{"a1", "n1", "10.244.1.11", "fd00:244:0:1::11"},
	{"a2", "n1", "10.244.1.12", "fd00:244:0:1::12"},
	{"ca", "n1", "10.244.1.20", "fd00:244:0:1::20"},
	{"b1", "n2", "10.244.2.11", "fd00:244:0:2::11"},
	{"b2", "n2", "10.244.2.12", "fd00:244:0:2::12"},
	{"cb", "n2", "10.244.2.20", "fd00:244:0:2::20"},
}

// further addresses have names of their own: a gateway is the node's address on
// the side of its pods.
var further = map[string][]string{
	"n1.gw":  {"10.244.1.1", "fd00:244:0:1::1"},
	"n2.gw":  {"10.244.2.1", "fd00:244:0:2::1"},
	"n1.out": {"192.0.2.1", "2001:db8:1::1"},
	"n2.out": {"198.18.2.1", "2001:db8:2::1"},
	"out.n2": {"198.18.2.10", "2001:db8:2::10"},
	"r.n2":   {"172.18.2.1", "fd00:18:2::1"},
	// out has a handful of further addresses, to be several clients.
	"out.1": {"192.0.2.11", "2001:db8:1::11"},
	"out.2": {"192.0.2.12", "2001:db8:1::12"},
	"out.3": {"192.0.2.13", "2001:db8:1::13"},
	"out.4": {"192.0.2.14", "2001:db8:1::14"},
	"out.5": {"192.0.2.15", "2001:db8:1::15"},
	"out.6": {"192.0.2.16", "2001:db8:1::16"},
	"out.7": {"192.0.2.17", "2001:db8:1::17"},
	"out.8": {"192.0.2.18", "2001:db8:1::18"},
}

// address is a place's address in a family, 4 or 6.
func address(name string, v6 bool) netip.Addr {
	i := 0
	if v6 {
		i = 1
	}
	if f, ok := further[name]; ok {
		return netip.MustParseAddr(f[i])
	}
	for _, p := range places {
		if p.name == name {
			return netip.MustParseAddr([]string{p.v4, p.v6}[i])
		}
	}
	panic("no place is called " + name)
}

// nameOf is the name of an address: outcomes are told in names.
func nameOf(a netip.Addr) string {
	a = a.Unmap()
	for _, p := range places {
		if a == netip.MustParseAddr(p.v4) || a == netip.MustParseAddr(p.v6) {
			return p.name
		}
	}
	for name, f := range further {
		if a == netip.MustParseAddr(f[0]) || a == netip.MustParseAddr(f[1]) {
			return name
		}
	}
	return a.String()
}

// nodeOf is the node whose proxy sees first what a place sends.
func nodeOf(name string) string {
	for _, p := range places {
		if p.name == name && p.node != "" {
			return p.node
		}
	}
	if name == "n2" {
		return "n2"
	}
	return "n1"
}

// newWorld builds a world and starts its servers.
func newWorld() (_ *world, err error) {
	w := &world{spaces: make(map[string]*space)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	for _, p := range places {
		if w.spaces[p.name], err = newSpace(p.name); err != nil {
			return nil, err
		}
	}
	b := builder{w: w}
	b.link("n1", "r", []string{"172.18.1.2/24", "fd00:18:1::2/64"}, []string{"172.18.1.1/24", "fd00:18:1::1/64"})
	b.link("n2", "r", []string{"172.18.2.2/24", "fd00:18:2::2/64"}, []string{"172.18.2.1/24", "fd00:18:2::1/64"})
	clients := []string{"192.0.2.10/24", "2001:db8:1::10/64"}
	for i := 1; i <= 8; i++ {
		f := further[fmt.Sprintf("out.%d", i)]
		clients = append(clients, f[0]+"/24", f[1]+"/128")
	}
	b.link("n1", "out", []string{"192.0.2.1/24", "2001:db8:1::1/64"}, clients)
	b.link("n2", "out", []string{"198.18.2.1/24", "2001:db8:2::1/64"}, []string{"198.18.2.10/24", "2001:db8:2::10/64"})
	for _, p := range places {
		if p.node != "" {
			b.pod(p)
		}
	}
	b.route("n1", "0.0.0.0/0", "172.18.1.1")
	b.route("n1", "::/0", "fd00:18:1::1")
	b.route("n2", "0.0.0.0/0", "172.18.2.1")
	b.route("n2", "::/0", "fd00:18:2::1")
	b.route("r", "10.244.1.0/24", "172.18.1.2")
	b.route("r", "fd00:244:0:1::/64", "fd00:18:1::2")
	b.route("r", "10.244.2.0/24", "172.18.2.2")
	b.route("r", "fd00:244:0:2::/64", "fd00:18:2::2")
	b.route("r", "192.0.2.0/24", "172.18.1.2")
	b.route("r", "2001:db8:1::/64", "fd00:18:1::2")
	b.route("r", "198.18.2.0/24", "172.18.2.2")
	b.route("r", "2001:db8:2::/64", "fd00:18:2::2")
	for _, a := range append(strings.Split(serviceCIDRs, ","), "203.0.113.0/24", "2001:db8:e::/64", "198.51.100.0/24", "2001:db8:f::/64") {
		b.anyIP("r", a)
	}
	for v6, pods := range manyPods {
		b.anyIP("a1", pods)
		b.route("n1", pods, address("a1", v6).String())
		b.route("r", pods, address("n1", v6).String())
	}
	b.route("out", "0.0.0.0/0", "192.0.2.1")
	b.route("out", "::/0", "2001:db8:1::1")
	for _, a := range []string{"172.18.2.0/24", "10.244.2.0/24"} {
		b.route("out", a, "198.18.2.1")
	}
	for _, a := range []string{"fd00:18:2::/64", "fd00:244:0:2::/64"} {
		b.route("out", a, "2001:db8:2::1")
	}
	if b.err != nil {
		return nil, fmt.Errorf("building the network: %w", b.err)
	}
	return w, w.serve()
}

func (w *world) close() error {
	var errs []error
	for _, s := range w.spaces {
		if s != nil {
			for _, c := range s.servers {
				errs = append(errs, c.Close())
			}
			s.nl.Close()
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// newSpace makes a namespace that routes and that sends every ICMP error.
func newSpace(name string) (*space, error) {
	ns, err := peer.NewNetns()
	if err != nil {
		return nil, err
	}
	s := &space{Netns: ns, name: name}
	if s.nl, err = netlink.NewHandleAt(ns.Handle()); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	err = s.sysctl(
		"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1",
		"net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0",
		"net/ipv4/conf/all/send_redirects=0", "net/ipv4/conf/default/send_redirects=0",
		// Addresses are unique: no need to wait for the check.
		"net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0",
		// Refusals are counted on: they must not be limited.
		"net/ipv4/icmp_ratelimit=0", "net/ipv4/icmp_ratemask=0", "net/ipv6/icmp/ratelimit=0",
		// One client opens more connections here than it has ports for, if each stays a minute.
		"net/ipv4/tcp_tw_reuse=1", "net/ipv4/ip_local_port_range=32768 65000",
	)
	if err != nil {
		s.nl.Close()
		return nil, errors.Join(err, ns.Close())
	}
	return s, nil
}

// sysctl sets key=value in the namespace.
func (s *space) sysctl(settings ...string) error {
	return s.Do(func() error {
		for _, set := range settings {
			key, value, _ := strings.Cut(set, "=")
			if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
				return fmt.Errorf("setting %s in %s: %w", set, s.name, err)
			}
		}
		return nil
	})
}

// builder builds the network; it keeps the first error.
type builder struct {
	w   *world
	err error
}

func (b *builder) do(what string, f func() error) {
	if b.err == nil {
		if err := f(); err != nil {
			b.err = fmt.Errorf("%s: %w", what, err)
		}
	}
}

// link joins two spaces; each device is called by the name of the other side.
func (b *builder) link(one, two string, addrs1, addrs2 []string) {
	b.veth(one, two, two, one)
	for _, side := range []struct {
		space, device string
		addrs         []string
	}{{one, two, addrs1}, {two, one, addrs2}} {
		for _, a := range side.addrs {
			b.addr(side.space, side.device, a)
		}
	}
}

// veth makes a pair of devices and sets both up.
func (b *builder) veth(one, device1, two, device2 string) {
	b.do("link "+one+"-"+two, func() error {
		s1, s2 := b.w.spaces[one], b.w.spaces[two]
		attrs := netlink.LinkAttrs{Name: device1, MTU: 1500, TxQLen: 1000}
		if err := s1.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: device2, PeerNamespace: netlink.NsFd(int(s2.Handle()))}); err != nil {
			return err
		}
		for s, device := range map[*space]string{s1: device1, s2: device2} {
			l, err := s.nl.LinkByName(device)
			if err != nil {
				return err
			}
			if err := s.nl.LinkSetUp(l); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *builder) addr(space, device, prefix string) {
	b.do("address "+prefix+" of "+space, func() error {
		nl := b.w.spaces[space].nl
		l, err := nl.LinkByName(device)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		return nl.AddrAdd(l, a)
	})
}

// pod joins a pod to its node as a point-to-point network plugin does: host
// routes on both sides.
func (b *builder) pod(p place) {
	device := p.name
	b.veth(p.node, device, p.name, "eth0")
	for v6, own := range map[bool]string{false: p.v4, true: p.v6} {
		bits := map[bool]int{false: 32, true: 128}[v6]
		gw := address(p.node+".gw", v6)
		b.addr(p.node, device, fmt.Sprintf("%s/%d", gw, bits))
		b.addr(p.name, "eth0", fmt.Sprintf("%s/%d", own, bits))
		b.do("routes of "+p.name, func() error {
			node, pod := b.w.spaces[p.node].nl, b.w.spaces[p.name].nl
			l, err := node.LinkByName(device)
			if err != nil {
				return err
			}
			if err := node.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix(fmt.Sprintf("%s/%d", own, bits)), Scope: netlink.SCOPE_LINK}); err != nil {
				return err
			}
			if l, err = pod.LinkByName("eth0"); err != nil {
				return err
			}
			return pod.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix(map[bool]string{false: "0.0.0.0/0", true: "::/0"}[v6]),
				Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		})
	}
}

func (b *builder) route(space, to, via string) {
	b.do("route of "+space+" to "+to, func() error {
		return b.w.spaces[space].nl.RouteAdd(&netlink.Route{Dst: prefix(to), Gw: net.ParseIP(via)})
	})
}

// anyIP makes every address of a range local (RTN_LOCAL), without adding them.
func (b *builder) anyIP(space, to string) {
	b.do("local route of "+space+" to "+to, func() error {
		nl := b.w.spaces[space].nl
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return nl.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: prefix(to), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST})
	})
}

func prefix(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}
