package proxy_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// world is a node with a proxy, two pods that serve, one that asks, and a host
// outside of the cluster that routes to the node:
//
//	outside ── node ─┬─ a (10.244.0.2, fd00:244::2)
//	192.0.2.9        ├─ b (10.244.0.3, fd00:244::3)
//	                 └─ client (10.244.0.9, fd00:244::9)
type world struct {
	t                           testing.TB
	cat                         *catalog.Catalog
	sub                         *catalog.Subscription
	proxy                       *proxy.Proxy
	node, a, b, client, outside *testnet.Space
	detect                      plan.Detector
	serviceCIDRs                []netip.Prefix
}

const (
	nodeIP, outsideIP   = "192.0.2.1", "192.0.2.9"
	nodeIP6, outsideIP6 = "2001:db8::1", "2001:db8::9"
)

func newWorld(t *testing.T, change func(*proxy.Config)) *world {
	t.Parallel() // each has namespaces of its own
	w := &world{t: t, node: testnet.New(t, "node"), outside: testnet.New(t, "outside")}
	w.node.Forward()
	w.a = w.node.Pod("a", "10.244.0.2", "fd00:244::2")
	w.b = w.node.Pod("b", "10.244.0.3", "fd00:244::3")
	w.client = w.node.Pod("client", "10.244.0.9", "fd00:244::9")
	w.node.Connect(w.outside, []string{nodeIP + "/24", nodeIP6 + "/64"}, []string{outsideIP + "/24", outsideIP6 + "/64"})
	w.node.Route("default", outsideIP)
	w.node.Route("default", outsideIP6)
	w.outside.Route("default", nodeIP)
	w.outside.Route("default", nodeIP6)
	w.a.Serve("10.244.0.2:8080")
	w.a.Serve("[fd00:244::2]:8080")
	w.b.Serve("10.244.0.3:8080")
	w.b.Serve("[fd00:244::3]:8080")

	w.cat = catalog.New(catalog.Services | catalog.EndpointSlices)
	w.cat.ReplaceNodes([]*catalog.Node{{Name: "node", InternalIPs: []netip.Addr{addr(nodeIP), addr(nodeIP6)}}})
	w.sub = w.cat.Subscribe()
	t.Cleanup(w.sub.Close)
	cfg := proxy.Config{
		Node: "node", IPv4: true, IPv6: true,
		Detect:       plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		Logger:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	w.detect, w.serviceCIDRs = cfg.Detect, cfg.ServiceCIDRs
	w.start(cfg)
	return w
}

// markSynced says that what the catalogue holds is all there is.
func (w *world) markSynced() {
	var services []*catalog.Service
	var slices []*catalog.EndpointSlice
	w.cat.Services(func(_ catalog.ServiceName, e catalog.Entry) bool {
		if e.Service != nil {
			services = append(services, e.Service)
		}
		slices = append(slices, e.Slices...)
		return true
	})
	w.cat.ReplaceServices(services)
	w.cat.ReplaceSlices(slices)
}

// conntrack lists the node's tracked connections.
func (w *world) conntrack() string {
	var out []byte
	w.node.Do(func() {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, f := range flows {
			out = append(out, f.String()+"\n"...)
		}
	})
	return string(out)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Log(string(b)); return len(b), nil }

func (w *world) start(cfg proxy.Config) {
	p, err := proxy.New(w.cat, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.node.Do(func() { err = p.Start(context.Background()) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { p.Close() })
	w.proxy = p
}

// sync hands the catalogue's changes to the proxy.
func (w *world) sync() {
	w.t.Helper()
	w.node.Do(func() {
		if err := w.proxy.Apply(context.Background(), w.sub.Take()); err != nil {
			w.t.Error(err)
		}
	})
	if s := w.proxy.Status(); len(s.Refused) > 0 {
		w.t.Errorf("the kernel refuses %v", s.Refused)
	}
}

// nft returns what the stock tool says of our tables: it must be able to.
func (w *world) nft() string {
	var out []byte
	w.node.Do(func() {
		for _, family := range []string{"ip", "ip6"} {
			text, err := exec.Command("nft", "list", "table", family, "rutter").CombinedOutput()
			if err != nil {
				w.t.Errorf("nft list table %s rutter: %v\n%s", family, err, text)
			}
			out = append(out, text...)
		}
	})
	return string(out)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func name(s string) catalog.ServiceName { return catalog.ServiceName{Namespace: "default", Name: s} }

func service(n string, ips ...string) *catalog.Service {
	s := &catalog.Service{Name: name(n), Ports: []catalog.ServicePort{
		{Name: "http", Protocol: catalog.TCP, Port: 80},
		{Name: "udp", Protocol: catalog.UDP, Port: 80},
	}}
	for _, ip := range ips {
		s.ClusterIPs = append(s.ClusterIPs, addr(ip))
	}
	return s
}

// slice is a slice of the service's endpoints, all ready and on this node.
func slice(service string, addrs ...string) *catalog.EndpointSlice {
	s := &catalog.EndpointSlice{Namespace: "default", Name: service + "-4", Service: service, Ports: []catalog.EndpointPort{
		{Name: "http", Protocol: catalog.TCP, Port: 8080},
		{Name: "udp", Protocol: catalog.UDP, Port: 8080},
	}}
	for _, a := range addrs {
		if addr(a).Is6() && !s.IPv6 {
			s.Name, s.IPv6 = service+"-6", true
		}
		s.Endpoints = append(s.Endpoints, catalog.Endpoint{Addr: addr(a), Node: "node", Conditions: catalog.Ready | catalog.Serving})
	}
	return s
}

// who asks often enough that each endpoint should have answered (one of two is
// missed once in 2^23 times), and returns what was said.
func who(from *testnet.Space, network, to string) []string {
	seen := make(map[string]bool)
	for range 24 {
		answer := from.Ask(network, to, "")
		seen[answer] = true
		if answer == testnet.Silence || answer == testnet.Refused {
			break
		}
	}
	var list []string
	for s := range seen {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

func (w *world) expect(from *testnet.Space, network, to string, want ...string) {
	w.t.Helper()
	if want[0] == testnet.Silence {
		from = from.Brief()
	}
	if got := who(from, network, to); !slices.Equal(got, want) {
		w.t.Errorf("%s asks %s %s: got %q, want %q", from.Name, network, to, got, want)
	}
}

func TestClusterIP(t *testing.T) {
	w := newWorld(t, nil)
	w.cat.ApplyService(service("web", "10.96.0.1", "fd00:96::1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2", "10.244.0.3"))
	w.cat.ApplySlice(slice("web", "fd00:244::2", "fd00:244::3"))
	w.cat.ApplyService(service("none", "10.96.0.2", "fd00:96::2"))
	w.sync()
	if got := w.client.Brief().Ask("tcp", "10.96.0.1:80", ""); got == "a 10.244.0.9" {
		t.Error("programmed before the catalogue was synced")
	}
	w.markSynced()
	w.sync()
	for _, f := range []struct{ net, vip, none, client, node, a, b string }{
		{"4", "10.96.0.1", "10.96.0.2", "10.244.0.9", nodeIP, "10.244.0.2", "10.244.0.3"},
		{"6", "[fd00:96::1]", "[fd00:96::2]", "fd00:244::9", nodeIP6, "fd00:244::2", "fd00:244::3"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			w.expect(w.client, network, f.vip+":80", "a "+f.client, "b "+f.client)
			// A pod that reaches itself sees an address of the node.
			hairpin := w.a.Ask(network, f.vip+":80", "")
			for range 40 {
				if hairpin != "b "+f.a {
					break
				}
				hairpin = w.a.Ask(network, f.vip+":80", "")
			}
			if hairpin == "a "+f.a || hairpin[:2] != "a " {
				t.Errorf("hairpin over %s%s: %q", network, f.net, hairpin)
			}
			w.expect(w.outside, network, f.vip+":80", "a "+gateway(f.net), "b "+gateway(f.net))
			for _, from := range []*testnet.Space{w.client, w.node, w.outside} {
				w.expect(from, network, f.none+":80", testnet.Refused)
				w.expect(from, network, f.vip+":81", testnet.Refused)
			}
		}
		if got := who(w.node, "tcp", f.vip+":80"); len(got) != 2 || got[0][:2] != "a " || got[1][:2] != "b " {
			t.Errorf("the node asks %s: %q", f.vip, got)
		}
	}
	if got := w.client.Brief().Ask("tcp", "10.96.0.77:80", ""); got != testnet.Silence {
		t.Errorf("an address in the service CIDR that is no service's: %q", got)
	}

	// One endpoint leaves, the other takes it all; then a service goes.
	w.cat.ApplySlice(slice("web", "10.244.0.3"))
	w.sync()
	w.expect(w.client, "tcp", "10.96.0.1:80", "b 10.244.0.9")
	w.cat.ApplySlice(slice("web", "10.244.0.2", "10.244.0.3"))
	w.sync()
	w.expect(w.client, "tcp", "10.96.0.1:80", "a 10.244.0.9", "b 10.244.0.9")
	w.nft()
	w.cat.RemoveService(name("web"))
	w.sync()
	if got := w.client.Brief().Ask("tcp", "10.96.0.1:80", ""); got != testnet.Silence {
		t.Errorf("a deleted service: %q", got)
	}
}

// gateway is the address that masquerading towards a pod uses: the node's
// first global one of the family.
func gateway(family string) string {
	if family == "6" {
		return nodeIP6
	}
	return nodeIP
}
