package iptables

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }
func addrPorts(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, addrPort(s))
	}
	return out
}

var testRules = plan.Rules{
	Detect:             plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")}},
	LocalhostNodePorts: true,
	NodeDNS:            addrPorts("10.96.0.10:53", "[fd00:10:96::a]:53"),
}

// a service of every kind, in both families.
func testServices() []plan.Service {
	name := func(s string) catalog.ServiceName { return catalog.ServiceName{Namespace: "default", Name: s} }
	return []plan.Service{
		{Name: name("web"), Ports: []plan.Port{
			{Name: "http", Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.1:80"), Cluster: addrPorts("10.244.0.9:8080", "10.244.0.10:8080", "10.244.1.2:8080"), Usable: true},
			{Name: "http", Protocol: catalog.TCP, ClusterIP: addrPort("[fd00:10:96::1]:80"), Cluster: addrPorts("[fd00:10:244::9]:8080"), Usable: true},
		}},
		{Name: name("dns"), Ports: []plan.Port{
			{Name: "dns", Protocol: catalog.UDP, ClusterIP: addrPort("10.96.0.10:53"), Cluster: addrPorts("10.244.0.3:53"), Usable: true, Affinity: 3 * time.Hour},
		}},
		{Name: name("lb"), HealthCheck: &plan.HealthCheck{NodePort: 32000, Families: [2]bool{true, false}}, Ports: []plan.Port{
			{Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.2:443"), NodePort: 30443, ExternalLocal: true,
				External: []plan.External{{Addr: addr("203.0.113.1"), LoadBalancer: true, Sources: []netip.Prefix{prefix("198.51.100.0/24"), prefix("203.0.113.1/32")}}, {Addr: addr("192.0.2.7")}},
				Cluster:  addrPorts("10.244.0.4:443", "10.244.1.4:443"), Local: addrPorts("10.244.0.4:443"), Usable: true},
		}},
		{Name: name("elsewhere"), Ports: []plan.Port{
			{Name: "a", Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.3:80"), NodePort: 30080, InternalLocal: true, ExternalLocal: true,
				Cluster: addrPorts("10.244.1.5:80"), Usable: true},
		}},
		{Name: name("nobody"), Ports: []plan.Port{
			{Name: "a", Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.4:80"), NodePort: 30081, External: []plan.External{{Addr: addr("192.0.2.8")}}},
			{Name: "a", Protocol: catalog.TCP, ClusterIP: addrPort("[fd00:10:96::4]:80"), NodePort: 30081},
		}},
	}
}

// node is a namespace with a dataplane of one back end.
type node struct {
	*testnet.Space
	t     *testing.T
	plane *Dataplane
	log   strings.Builder
}

func newNode(t *testing.T, b xtables.Backend, cfg dataplane.Config) *node {
	n := &node{Space: testnet.New(t, "iptables"), t: t}
	// Other tests, and this host, have the lock that there is one of.
	t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/lock")
	n.Do(func() {
		for _, v6 := range []bool{false, true} {
			usePrograms(t, b, v6)
		}
	})
	if t.Skipped() {
		t.SkipNow()
	}
	usePath(t, b)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(&n.log, nil))
	}
	cfg.IPv4, cfg.IPv6, cfg.MasqueradeBit = true, true, 14
	n.Do(func() {
		var err error
		if n.plane, err = Open(cfg); err != nil {
			panic(err)
		}
	})
	t.Cleanup(func() { n.plane.Close() })
	return n
}

func (n *node) adopt(services []plan.Service) {
	n.t.Helper()
	if refused, err := n.plane.Adopt(n.t.Context(), services); err != nil || len(refused) > 0 {
		n.t.Fatalf("adopt: %v, refused %v", err, refused)
	}
}

func (n *node) apply(services ...plan.Service) {
	n.t.Helper()
	if refused, err := n.plane.Apply(n.t.Context(), services); err != nil || len(refused) > 0 {
		n.t.Fatalf("apply: %v, refused %v", err, refused)
	}
}

// save is what the tables hold. The order of services in the chains that they
// share is of no account.
func (n *node) save() string {
	n.t.Helper()
	var b strings.Builder
	for _, f := range n.plane.families {
		listed, err := f.list(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		for _, table := range f.tables() {
			b.WriteString(familyName(f.style.v6) + " *" + table + "\n")
			for _, name := range slices.Sorted(maps.Keys(listed[table].Chains)) {
				rules := listed[table].Chains[name]
				if slices.ContainsFunc(sharedChains[:], func(c struct{ table, chain string }) bool { return c.table == table && c.chain == name }) {
					last := 0
					if name == servicesChain && table == "nat" {
						last = len(f.style.last())
					}
					slices.Sort(rules[:len(rules)-last])
				}
				b.WriteString(":" + name + "\n")
				for _, r := range rules {
					b.WriteString("-A " + name + " " + r + "\n")
				}
			}
		}
	}
	return b.String()
}

// diff is what differs between two listings.
func diff(a, b string) string {
	var out strings.Builder
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range la {
		if !slices.Contains(lb, l) {
			out.WriteString("- " + l + "\n")
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			out.WriteString("+ " + l + "\n")
		}
	}
	if out.Len() == 0 && a != b {
		return "the order"
	}
	return out.String()
}
