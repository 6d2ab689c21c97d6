package proxy_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// loadBalancer is a service with every kind of front end, of family 4 or 6.
func loadBalancer(n, ip, external, vip string, nodePort uint16) *catalog.Service {
	s := service(n, ip)
	s.Type = catalog.LoadBalancer
	for i := range s.Ports {
		s.Ports[i].NodePort = nodePort
	}
	s.ExternalIPs = []netip.Addr{addr(external)}
	s.LoadBalancer = []catalog.Ingress{{Addr: addr(vip)}}
	return s
}

func TestExternal(t *testing.T) {
	w := newWorld(t, nil)
	w.node.AddAddr("outside", "192.0.2.200/24") // an address that is not primary
	for _, f := range []struct {
		family, ip, external, vip, node, client, outside, a, b, other string
	}{
		{"4", "10.96.1.", "203.0.113.", "198.51.100.", nodeIP, "10.244.0.9", outsideIP, "10.244.0.2", "10.244.0.3", "192.0.2.200"},
		{"6", "fd00:96::", "2001:db8:e::", "2001:db8:f::", nodeIP6, "fd00:244::9", outsideIP6, "fd00:244::2", "fd00:244::3", ""},
	} {
		remote := func(s *catalog.EndpointSlice, i int) *catalog.EndpointSlice {
			s.Endpoints[i].Node = "elsewhere"
			return s
		}

		// all: ETP Cluster. local: ETP Local, only a is here. away: ETP Local,
		// nobody is here. none: ETP Local, nobody anywhere. ranged: only the
		// client pod may use the VIP.
		w.cat.ApplyService(loadBalancer("all"+f.family, f.ip+"1", f.external+"1", f.vip+"1", 30001))
		w.cat.ApplySlice(slice("all"+f.family, f.a, f.b))
		local := loadBalancer("local"+f.family, f.ip+"2", f.external+"2", f.vip+"2", 30002)
		local.ExternalLocal = true
		w.cat.ApplyService(local)
		w.cat.ApplySlice(remote(slice("local"+f.family, f.a, f.b), 1))
		away := loadBalancer("away"+f.family, f.ip+"3", f.external+"3", f.vip+"3", 30003)
		away.ExternalLocal = true
		w.cat.ApplyService(away)
		w.cat.ApplySlice(remote(slice("away"+f.family, f.b), 0))
		none := loadBalancer("none"+f.family, f.ip+"4", f.external+"4", f.vip+"4", 30004)
		none.ExternalLocal = true
		w.cat.ApplyService(none)
		ranged := loadBalancer("ranged"+f.family, f.ip+"5", f.external+"5", f.vip+"5", 30005)
		ranged.SourceRanges = []netip.Prefix{netip.PrefixFrom(addr(f.client), addr(f.client).BitLen())}
		w.cat.ApplyService(ranged)
		w.cat.ApplySlice(slice("ranged"+f.family, f.a))
		proxied := loadBalancer("proxied"+f.family, f.ip+"6", f.external+"6", f.vip+"6", 30006)
		proxied.LoadBalancer[0].Proxy = true
		w.cat.ApplyService(proxied)
		w.cat.ApplySlice(slice("proxied"+f.family, f.a))
		internal := service("internal"+f.family, f.ip+"7")
		internal.InternalLocal = true
		w.cat.ApplyService(internal)
		w.cat.ApplySlice(remote(slice("internal"+f.family, f.a, f.b), 1))
		gone := service("internalaway"+f.family, f.ip+"8")
		gone.InternalLocal = true
		w.cat.ApplyService(gone)
		w.cat.ApplySlice(remote(slice("internalaway"+f.family, f.b), 0))
	}
	w.markSynced()
	w.sync()
	w.nft()

	table := w.table()
	for _, f := range []struct {
		family, ip, external, vip, node, client, outside, a, b, other string
	}{
		{"4", "10.96.1.", "203.0.113.", "198.51.100.", nodeIP, "10.244.0.9", outsideIP, "10.244.0.2", "10.244.0.3", "192.0.2.200"},
		{"6", "fd00:96::", "2001:db8:e::", "2001:db8:f::", nodeIP6, "fd00:244::9", outsideIP6, "fd00:244::2", "fd00:244::3", ""},
	} {
		source := map[*testnet.Space]string{w.client: f.client, w.outside: f.outside, w.node: f.node, w.a: f.a}
		cases := []struct {
			from     *testnet.Space
			to, port string
			want     string // servers with the source they see: the node's, the sender's own
		}{
			{w.outside, f.external + "1", "80", "a node,b node"},
			{w.outside, f.vip + "1", "80", "a node,b node"},
			{w.outside, f.node, "30001", "a node,b node"},
			{w.client, f.vip + "1", "80", "a node,b node"},
			{w.client, f.node, "30001", "a node,b node"},
			{w.node, f.node, "30001", "a node,b node"},
			{w.outside, f.ip + "1", "80", "a node,b node"},

			{w.outside, f.external + "2", "80", "a own"},
			{w.outside, f.vip + "2", "80", "a own"},
			{w.outside, f.node, "30002", "a own"},
			{w.client, f.vip + "2", "80", "a own,b own"},
			{w.client, f.node, "30002", "a own,b own"},
			{w.node, f.vip + "2", "80", "a node,b node"},
			{w.node, f.node, "30002", "a node,b node"},
			{w.client, f.ip + "2", "80", "a own,b own"},

			{w.outside, f.vip + "3", "80", testnet.Silence},
			{w.outside, f.node, "30003", testnet.Silence},
			{w.client, f.vip + "3", "80", "b own"},
			{w.node, f.node, "30003", "b node"},
			{w.client, f.ip + "3", "80", "b own"},

			{w.outside, f.vip + "4", "80", testnet.Refused},
			{w.outside, f.node, "30004", testnet.Refused},
			{w.client, f.external + "4", "80", testnet.Refused},
			{w.node, f.node, "30004", testnet.Refused},
			{w.client, f.ip + "4", "80", testnet.Refused},

			{w.client, f.vip + "5", "80", "a node"},
			{w.outside, f.vip + "5", "80", testnet.Silence},
			{w.node, f.vip + "5", "80", testnet.Silence},
			{w.outside, f.external + "5", "80", "a node"},
			{w.outside, f.node, "30005", "a node"},

			{w.client, f.ip + "7", "80", "a own"},
			{w.node, f.ip + "7", "80", "a node"},
			{w.client, f.ip + "8", "80", testnet.Silence},
		}
		if f.other != "" {
			cases = append(cases, struct {
				from     *testnet.Space
				to, port string
				want     string
			}{w.client, f.other, "30001", testnet.Refused})
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range cases {
				to := c.to + ":" + c.port
				if f.family == "6" {
					to = "[" + c.to + "]:" + c.port
				}
				from := c.from
				if c.want == testnet.Silence {
					from = from.Brief()
				}
				got := who(from, network, to)
				for i := range got {
					got[i] = strings.Replace(got[i], f.node, "node", 1)
					if c.from != w.node {
						got[i] = strings.Replace(got[i], source[c.from], "own", 1)
					}
				}
				if network == "udp" && c.from == w.node && c.want == testnet.Silence && got[0] == testnet.Refused {
					got[0] = testnet.Silence // sending fails at once in the node's own output hook
				}
				if g := strings.Join(got, ","); g != c.want {
					t.Errorf("%s asks %s %s: got %q, want %q", c.from.Name, network, to, g, c.want)
				}
				// The plan's own walk says the same.
				proto, in := catalog.TCP, c.from.Name
				if network == "udp" {
					proto = catalog.UDP
				}
				if c.from == w.node {
					in = ""
				}
				r := table.Walk(plan.Packet{Src: addr(source[c.from]), Dst: netip.MustParseAddrPort(to), Protocol: proto, In: in})
				if walk := describe(r, f.a, f.b, c.from == w.node); walk != c.want && !(c.want == testnet.Refused && r.Verdict == plan.Pass) {
					t.Errorf("the walk of %s to %s %s: got %q (%v), want %q", c.from.Name, network, to, walk, r.Reasons, c.want)
				}
			}
		}
	}
}

// table is the plan of what the catalogue holds.
func (w *world) table() *plan.Table {
	pl := plan.Planner{Node: plan.Node{Name: "node", IPs: []netip.Addr{addr(nodeIP), addr(nodeIP6)}}}
	var services []plan.Service
	w.cat.Services(func(n catalog.ServiceName, e catalog.Entry) bool {
		services = append(services, pl.Service(n, &e))
		return true
	})
	return plan.NewTable(plan.Rules{
		Detect:        w.detect,
		NodePortAddrs: []netip.Addr{addr(nodeIP), addr(nodeIP6)},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
	}, []netip.Addr{addr(nodeIP), addr(nodeIP6), addr("192.0.2.200")}, services)
}

// describe puts a walk's result into the words of a test case.
func describe(r plan.Result, a, b string, fromNode bool) string {
	switch r.Verdict {
	case plan.Reject:
		return testnet.Refused
	case plan.Drop:
		return testnet.Silence
	}
	var words []string
	for _, ep := range r.Endpoints {
		server, source := "a", "own"
		if ep.Addr() == addr(b) {
			server = "b"
		}
		if r.Masquerade || fromNode {
			source = "node"
		}
		words = append(words, server+" "+source)
	}
	return strings.Join(words, ",")
}

func TestAffinity(t *testing.T) {
	w := newWorld(t, nil)
	for _, f := range []struct{ ip, vip, node, a, b string }{
		{"10.96.0.1", "198.51.100.1", nodeIP, "10.244.0.2", "10.244.0.3"},
		{"fd00:96::1", "2001:db8:f::1", nodeIP6, "fd00:244::2", "fd00:244::3"},
	} {
		s := loadBalancer("sticky", f.ip, f.vip, f.vip, 30001)
		s.ExternalIPs = nil
		s.AffinityTimeout = time.Hour
		w.cat.ApplyService(s)
		w.cat.ApplySlice(slice("sticky", f.a, f.b))
		w.markSynced()
		w.sync()
		w.nft()
		to := func(ip, port string) string {
			if addr(ip).Is6() {
				ip = "[" + ip + "]"
			}
			return ip + ":" + port
		}
		first := func(ask string) string { return strings.Fields(ask)[0] }
		for _, network := range []string{"tcp", "udp"} {
			with := first(w.client.Ask(network, to(f.ip, "80"), ""))
			for range 12 {
				for _, front := range []string{to(f.ip, "80"), to(f.vip, "80"), to(f.node, "30001")} {
					if got := first(w.client.Ask(network, front, "")); got != with {
						t.Fatalf("%s to %s: first %s, then %s", network, front, with, got)
					}
				}
			}
			// Its endpoint goes: the other at once, and there to stay.
			stays := map[string]string{"a": f.b, "b": f.a}[with]
			w.cat.ApplySlice(slice("sticky", stays))
			w.sync()
			other := map[string]string{"a": "b", "b": "a"}[with]
			if got := first(w.client.Ask(network, to(f.ip, "80"), "")); got != other {
				t.Fatalf("%s: endpoint %s is gone, got %s", network, with, got)
			}
			w.cat.ApplySlice(slice("sticky", f.a, f.b))
			w.sync()
			for range 12 {
				if got := first(w.client.Ask(network, to(f.ip, "80"), "")); got != other {
					t.Fatalf("%s: moved from %s to %s without need", network, other, got)
				}
			}
		}
		// Affinity switched off: both again.
		s2 := *s
		s2.AffinityTimeout = 0
		w.cat.ApplyService(&s2)
		w.sync()
		if got := who(w.client, "tcp", to(f.ip, "80")); len(got) != 2 {
			t.Errorf("without affinity only %q answered", got)
		}
	}
}

func TestNodeDNS(t *testing.T) {
	var dead atomic.Bool
	w := newWorld(t, func(c *proxy.Config) {
		c.NodeDNS = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("169.254.20.10:53")}
		c.DNSService = name("dns")
		c.NodeDNSAlive = func() bool { return !dead.Load() }
		c.NodeDNSTimeout = 300 * time.Millisecond
	})
	w.b.Serve("10.244.0.3:53")
	dns := service("dns", "10.96.0.10")
	for i := range dns.Ports {
		dns.Ports[i].Port = 53
	}
	w.cat.ApplyService(dns)
	s := slice("dns", "10.244.0.3")
	for i := range s.Ports {
		s.Ports[i].Port = 53
	}
	w.cat.ApplySlice(s)
	w.markSynced()
	w.sync()
	w.nft()
	w.node.AddAddr("lo", "10.96.0.10/32")
	w.node.Serve("10.96.0.10:53")
	w.node.AddAddr("lo", "169.254.20.10/32")
	w.node.Serve("169.254.20.10:53")
	for _, network := range []string{"tcp", "udp"} {
		w.expect(w.client, network, "10.96.0.10:53", "node 10.244.0.9")
		w.expect(w.node, network, "10.96.0.10:53", "node 10.96.0.10")
		w.expect(w.client, network, "169.254.20.10:53", "node 10.244.0.9")
	}
	if n := w.conntrack(); strings.Contains(n, "10.96.0.10") {
		t.Errorf("queries to the node's DNS server are tracked:\n%s", n)
	}
	dead.Store(true)
	deadline := time.Now().Add(10 * time.Second)
	for strings.HasPrefix(w.client.Brief().Ask("udp", "10.96.0.10:53", ""), "node") {
		if time.Now().After(deadline) {
			t.Fatal("queries still go to the node's DNS server, which is not alive")
		}
	}
	w.expect(w.client, "udp", "10.96.0.10:53", "b 10.244.0.9")
	w.expect(w.client, "tcp", "10.96.0.10:53", "b 10.244.0.9")
	// Masqueraded to one of the node's addresses, as with any external front end.
	if got := w.client.Ask("udp", "169.254.20.10:53", ""); !strings.HasPrefix(got, "b ") {
		t.Errorf("the node-local address: %q", got)
	}
}

// Node ports where they were asked for: on 127.0.0.1, on the addresses of a
// range, also those that come later.
func TestNodePortAddresses(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) {
		c.NodePortAddresses = []string{"192.0.2.192/26", "::/0", "127.0.0.0/8"}
		c.LocalhostNodePorts = true
	})
	for _, f := range []struct{ n, ip, ep string }{{"web", "10.96.0.1", "10.244.0.2"}, {"web6", "fd00:96::1", "fd00:244::2"}} {
		s := service(f.n, f.ip)
		for i := range s.Ports {
			s.Ports[i].NodePort = 30001
		}
		w.cat.ApplyService(s)
		w.cat.ApplySlice(slice(f.n, f.ep))
	}
	w.markSynced()
	w.sync()
	w.nft()
	for _, network := range []string{"tcp", "udp"} {
		if got := w.node.Ask(network, "127.0.0.1:30001", ""); !strings.HasPrefix(got, "a ") {
			t.Errorf("%s to 127.0.0.1: %q", network, got)
		}
		w.expect(w.node, network, "[::1]:30001", testnet.Refused)
		w.expect(w.client, network, "["+nodeIP6+"]:30001", "a "+nodeIP6)
		w.expect(w.client, network, nodeIP+":30001", testnet.Refused)
		w.expect(w.client, network, "192.0.2.200:30001", testnet.Silence)
	}
	w.node.AddAddr("outside", "192.0.2.200/24")
	deadline := time.Now().Add(10 * time.Second)
	for w.client.Brief().Ask("tcp", "192.0.2.200:30001", "") != "a "+nodeIP {
		if time.Now().After(deadline) {
			t.Fatal("an address that came later is not served")
		}
	}
	// route_localnet must not open the node's loopback to others.
	w.node.Serve("127.0.0.1:9999")
	w.outside.Do(func() {
		script := "sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip route flush table local 127.0.0.0/8 && ip addr flush dev lo && ip route add 127.0.0.1 via " + nodeIP
		if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	if got := w.outside.Brief().Ask("tcp", "127.0.0.1:9999", outsideIP); got != testnet.Silence {
		t.Errorf("the node's loopback from another host: %q", got)
	}
	if got := w.node.Ask("tcp", "127.0.0.1:9999", ""); got != "node 127.0.0.1" {
		t.Errorf("the node's own loopback: %q", got)
	}
	r, err := w.proxy.Walk(plan.Packet{Src: addr("127.0.0.1"), Dst: netip.MustParseAddrPort("127.0.0.1:30001"), Protocol: catalog.TCP})
	if err != nil || r.Verdict != plan.Forward || !r.Masquerade {
		t.Errorf("the walk to 127.0.0.1: %+v, %v", r, err)
	}
}
