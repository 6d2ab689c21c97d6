package ipvs

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// needIPVS skips a test on a kernel without IPVS. scripts/qemu.sh runs it on one
// that has it.
func needIPVS(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := Probe(); err != nil {
		if os.Getenv("RUTTER_IPVS") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; scripts/qemu.sh test runs this on Debian's kernel", err)
	}
}

var nodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

var testRules = plan.Rules{
	Detect:        plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}},
	NodePortAddrs: nodeIPs,
}

func openIn(t testing.TB, s *testnet.Space, opts Options) (d *Dataplane) {
	t.Helper()
	var err error
	s.Do(func() {
		d, err = Open(dataplane.Config{Rules: testRules, IPv4: true, IPv6: true, MasqueradeBit: 14, Counters: true, CountBytes: true, Logger: discard}, opts)
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var discard = slog.New(slog.DiscardHandler)

// must fails the test if the kernel took anything not.
func must(t testing.TB) func([]dataplane.Refusal, error) {
	return func(refused []dataplane.Refusal, err error) {
		t.Helper()
		if err != nil || len(refused) > 0 {
			t.Fatal(refused, err)
		}
	}
}

// eventually waits for a condition; the kernel and other goroutines may be slow
// here.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// net1 is a node with two pods and a client, and a host outside.
type net1 struct{ node, p1, p2, client, out *testnet.Space }

func newNet(t *testing.T) net1 {
	n := net1{node: testnet.New(t, "node"), out: testnet.New(t, "out")}
	n.node.Forward()
	n.node.Connect(n.out, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.9/24", "2001:db8::9/64"})
	n.p1 = n.node.Pod("p1", "10.244.0.1", "fd00:244::1")
	n.p2 = n.node.Pod("p2", "10.244.0.2", "fd00:244::2")
	n.client = n.node.Pod("client", "10.244.0.3", "fd00:244::3")
	n.p1.Serve("[::]:8080")
	n.p2.Serve("[::]:8080")
	n.out.Route("10.96.0.0/16", "192.0.2.1")
	n.out.Route("203.0.113.0/24", "192.0.2.1")
	return n
}

func eps(names ...string) (list []netip.AddrPort) {
	for _, n := range names {
		list = append(list, netip.MustParseAddrPort("10.244.0."+n+":8080"))
	}
	return list
}

// svc is a service with a TCP and a UDP port, both 80 and node port 30080.
func svc(name string, host int, endpoints []netip.AddrPort, edit func(*plan.Port)) plan.Service {
	s := plan.Service{Name: catalog.ServiceName{Namespace: "test", Name: name}}
	for _, proto := range []catalog.Protocol{catalog.TCP, catalog.UDP} {
		p := plan.Port{Protocol: proto, ClusterIP: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(host)}), 80), Cluster: endpoints, Usable: len(endpoints) > 0}
		if proto == catalog.UDP {
			p.Serving = endpoints
		}
		if edit != nil {
			edit(&p)
		}
		s.Ports = append(s.Ports, p)
	}
	for _, ep := range endpoints {
		s.LocalAddrs = append(s.LocalAddrs, ep.Addr())
	}
	return s
}

func (n net1) asks(from *testnet.Space, to string, times int) string {
	seen := make(map[string]bool)
	for range times {
		seen[from.Ask("tcp", to, "")] = true
	}
	var list []string
	for s := range seen {
		list = append(list, s)
	}
	slices.Sort(list)
	return strings.Join(list, " | ")
}

func TestTraffic(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer d.Close()
	ctx := context.Background()
	must(t)(d.Adopt(ctx, []plan.Service{
		svc("web", 1, eps("1", "2"), func(p *plan.Port) {
			p.NodePort = 30080
			p.External = []plan.External{{Addr: netip.MustParseAddr("203.0.113.1")}}
		}),
		svc("none", 2, nil, nil),
	}))
	for _, c := range []struct {
		from *testnet.Space
		to   string
		want string
	}{
		{n.client, "10.96.0.1:80", "p1 10.244.0.3 | p2 10.244.0.3"},
		{n.out, "10.96.0.1:80", "p1 192.0.2.1 | p2 192.0.2.1"},
		{n.out, "192.0.2.1:30080", "p1 192.0.2.1 | p2 192.0.2.1"},
		{n.out, "203.0.113.1:80", "p1 192.0.2.1 | p2 192.0.2.1"},
		{n.p1, "10.96.0.1:80", "p1 192.0.2.1 | p2 10.244.0.1"},
		{n.node, "10.96.0.1:80", "p1 192.0.2.1 | p2 192.0.2.1"},
		{n.client, "10.96.0.2:80", testnet.Refused},
		{n.client, "10.96.0.1:81", testnet.Refused},
		{n.node, "10.96.0.2:80", testnet.Refused},
	} {
		got := n.asks(c.from, c.to, 4)
		// The node's address towards pods is of their link.
		got = strings.ReplaceAll(got, "169.254.1.1", "192.0.2.1")
		if got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.from.Name, c.to, got, c.want)
		}
		if got := c.from.Ask("udp", c.to, ""); !strings.Contains(c.want, strings.ReplaceAll(got, "169.254.1.1", "192.0.2.1")) {
			t.Errorf("%s to %s over UDP: %s, want one of %s", c.from.Name, c.to, got, c.want)
		}
	}
	flow := dataplane.Flow{Front: netip.MustParseAddrPort("192.0.2.1:30080"), Protocol: catalog.TCP, Endpoint: eps("1")[0]}
	// The kernel sums up every two seconds.
	eventually(t, "both connections to p1 by the node port are counted", func() bool {
		counts, err := d.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return counts[flow].Connections == 2 && counts[flow].Bytes > 0
	})
	if t.Failed() {
		t.Log(dump(t, d), rules(t, d))
	}
}

// dump is what the kernel holds, as text.
func dump(t testing.TB, d *Dataplane) string {
	t.Helper()
	lines := append(serverLines(t, d), setLines(t, d)...)
	addrs, err := d.device.addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.index == d.device.index && !(a.Is6() && a.IsLinkLocalUnicast()) {
			lines = append(lines, fmt.Sprintf("address %s/%d", a.Addr, a.bits))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// servers are the virtual servers that the kernel holds.
func servers(t testing.TB, d *Dataplane) string {
	t.Helper()
	return strings.Join(serverLines(t, d), "\n") + "\n"
}

func serverLines(t testing.TB, d *Dataplane) (lines []string) {
	t.Helper()
	list, err := d.kernel.servers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		held, err := d.kernel.dests(l.front)
		if err != nil {
			t.Fatal(err)
		}
		var to []string
		for _, h := range held {
			to = append(to, fmt.Sprintf("%s=%d", h.addr, h.weight))
		}
		slices.Sort(to)
		lines = append(lines, fmt.Sprintf("server %s %s flags=%#x timeout=%d: %s", l.front, l.scheduler, l.flags, l.timeout, strings.Join(to, " ")))
	}
	slices.Sort(lines)
	return lines
}

func setLines(t testing.TB, d *Dataplane) (lines []string) {
	t.Helper()
	for _, r := range d.rulesets {
		for id := range setCount {
			if err := d.sets.elements(id, r.v6, func(e element) {
				lines = append(lines, fmt.Sprintf("set %s %s %d %d %s", setName(id, r.v6), e.addr, e.port, e.proto, e.with))
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return lines
}

// rules are those that iptables-save shows.
func rules(t testing.TB, d *Dataplane) string {
	t.Helper()
	var lines []string
	for _, r := range d.rulesets {
		tables, err := r.read(context.Background(), tableNames...)
		if err != nil {
			t.Fatal(err)
		}
		for name, table := range tables {
			for chain, rules := range table.Chains {
				for i, rule := range rules {
					lines = append(lines, fmt.Sprintf("rule v6=%v %s %s %02d %s", r.v6, name, chain, i, rule))
				}
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// held is an open connection, and who answers on it.
type heldConn struct {
	net.Conn
	in  *bufio.Reader
	who string
}

func hold(t testing.TB, from *testnet.Space, network, to string) *heldConn {
	t.Helper()
	c, err := from.Dial(network, to, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h := &heldConn{c, bufio.NewReader(c), ""}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	line, err := h.in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	h.who, _, _ = strings.Cut(line, " ")
	return h
}

// alive tells whether the connection still carries bytes.
func (h *heldConn) alive() bool {
	_ = h.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := h.Write([]byte("still\n")); err != nil {
		return false
	}
	line, err := h.in.ReadString('\n')
	return err == nil && line == "still\n"
}

// reset closes the connection by a reset: after an orderly end the kernel
// remembers it for two minutes.
func (h *heldConn) reset() {
	_ = h.Conn.(*net.TCPConn).SetLinger(0)
	h.Close()
}
