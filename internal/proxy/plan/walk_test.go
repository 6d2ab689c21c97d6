package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// One packet, its fate, and why. The tests of dataplanes compare with the walk;
// this one holds the walk against kube-proxy's documented behaviour.
func TestWalk(t *testing.T) {
	web := &catalog.Service{Name: name, Type: catalog.LoadBalancer, ExternalLocal: true,
		ClusterIPs: []netip.Addr{addr("10.96.0.1")}, ExternalIPs: []netip.Addr{addr("203.0.113.1")},
		LoadBalancer: []catalog.Ingress{{Addr: addr("198.51.100.1")}},
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")},
		Ports:        []catalog.ServicePort{{Protocol: catalog.TCP, Port: 80, NodePort: 30080}}, AffinityTimeout: time.Hour}
	all := &catalog.Service{Name: catalog.ServiceName{Namespace: "default", Name: "all"}, Type: catalog.NodePort,
		ClusterIPs: []netip.Addr{addr("10.96.0.2")}, Ports: []catalog.ServicePort{{Protocol: catalog.UDP, Port: 53, NodePort: 30053}}}
	none := &catalog.Service{Name: catalog.ServiceName{Namespace: "default", Name: "none"},
		ClusterIPs: []netip.Addr{addr("10.96.0.3")}, Ports: []catalog.ServicePort{{Protocol: catalog.TCP, Port: 80}}}
	here := &catalog.Service{Name: catalog.ServiceName{Namespace: "default", Name: "here"}, InternalLocal: true,
		ClusterIPs: []netip.Addr{addr("10.96.0.4")}, Ports: []catalog.ServicePort{{Protocol: catalog.TCP, Port: 80}}}
	pl := Planner{Node: Node{Name: "node", IPs: []netip.Addr{addr("192.0.2.1")}}}
	tcp := &catalog.EndpointSlice{Ports: []catalog.EndpointPort{{Protocol: catalog.TCP, Port: 8080}}, Endpoints: []catalog.Endpoint{endpoint("10.0.0.1 node"), endpoint("10.0.0.2 other")}}
	away := &catalog.EndpointSlice{Ports: tcp.Ports, Endpoints: []catalog.Endpoint{endpoint("10.0.0.2 other")}}
	udp := &catalog.EndpointSlice{Ports: []catalog.EndpointPort{{Protocol: catalog.UDP, Port: 5353}}, Endpoints: []catalog.Endpoint{endpoint("10.0.0.1 node")}}
	services := []Service{
		pl.Service(web.Name, &catalog.Entry{Service: web, Slices: []*catalog.EndpointSlice{tcp}}),
		pl.Service(all.Name, &catalog.Entry{Service: all, Slices: []*catalog.EndpointSlice{udp}}),
		pl.Service(none.Name, &catalog.Entry{Service: none}),
		pl.Service(here.Name, &catalog.Entry{Service: here, Slices: []*catalog.EndpointSlice{away}}),
	}
	rules := Rules{
		Detect:        Detector{Mode: DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}},
		NodePortAddrs: []netip.Addr{addr("192.0.2.1")},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		NodeDNS:       []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")},
	}
	const pod, self, node, outside, friend = "10.0.0.9", "10.0.0.1", "192.0.2.1", "192.0.2.9", "192.0.2.200"
	for _, tt := range []struct {
		src, to, proto string
		want           string // verdict, endpoints, m for masquerade, h for hairpin; reasons
	}{
		{pod, "10.96.0.1:80", "tcp", "forward 1:8080 2:8080; cluster-ip session-affinity"},
		{self, "10.96.0.1:80", "tcp", "forward 1:8080 2:8080 h=1:8080; cluster-ip session-affinity masquerade-hairpin"},
		{outside, "10.96.0.1:80", "tcp", "forward 1:8080 2:8080 m; cluster-ip masquerade-off-cluster-source session-affinity"},
		{pod, "10.96.0.1:81", "tcp", "reject; cluster-ip no-such-port"},
		{pod, "10.96.0.1:80", "udp", "reject; cluster-ip no-such-port"},
		{pod, "10.96.0.99:80", "tcp", "drop; unallocated-cluster-ip"},
		{pod, "8.8.8.8:53", "udp", "pass; not-a-service"},
		{pod, "10.96.0.10:53", "udp", "local; node-local-dns"},
		{pod, "10.96.0.3:80", "tcp", "reject; cluster-ip no-endpoints"},
		{pod, "10.96.0.4:80", "tcp", "drop; cluster-ip traffic-policy-local no-local-endpoints"},
		{outside, "203.0.113.1:80", "tcp", "forward 1:8080; external-ip traffic-policy-local session-affinity"},
		{pod, "203.0.113.1:80", "tcp", "forward 1:8080 2:8080; external-ip traffic-policy-local local-policy-short-circuit session-affinity"},
		{node, "203.0.113.1:80", "tcp", "forward 1:8080 2:8080 m; external-ip traffic-policy-local local-policy-short-circuit masquerade-node-source session-affinity"},
		{outside, "198.51.100.1:80", "tcp", "drop; load-balancer-ip source-not-in-range"},
		{pod, "198.51.100.1:80", "tcp", "drop; load-balancer-ip source-not-in-range"},
		{friend, "198.51.100.1:80", "tcp", "forward 1:8080; load-balancer-ip traffic-policy-local session-affinity"},
		{outside, "192.0.2.1:30080", "tcp", "forward 1:8080; node-port traffic-policy-local session-affinity"},
		{outside, "192.0.2.1:30053", "udp", "forward 1:5353 m; node-port masquerade-external"},
		{outside, "192.0.2.1:30053", "tcp", "pass; not-a-service"},
		{outside, "192.0.2.2:30080", "tcp", "pass; not-a-service"},
	} {
		table := NewTable(rules, []netip.Addr{addr(node)}, services)
		proto := catalog.TCP
		if tt.proto == "udp" {
			proto = catalog.UDP
		}
		r := table.Walk(Packet{Src: addr(tt.src), Dst: netip.MustParseAddrPort(tt.to), Protocol: proto, In: "eth0"})
		got := r.Verdict.String()
		if len(r.Endpoints) > 0 {
			got += " " + lists(r.Endpoints)
		}
		if r.Masquerade {
			got += " m"
		}
		if len(r.Hairpin) > 0 {
			got += " h=" + lists(r.Hairpin)
		}
		got += ";"
		for _, why := range r.Reasons {
			got += fmt.Sprint(" ", why)
		}
		if got != tt.want {
			t.Errorf("%s → %s %s\ngot  %s\nwant %s", tt.src, tt.proto, tt.to, got, tt.want)
		}
	}
}

func TestDetector(t *testing.T) {
	cidr := Detector{Mode: DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	bridge := Detector{Mode: DetectInterface, Interface: "cni0"}
	prefix := Detector{Mode: DetectInterfacePrefix, Interface: "cali"}
	for _, tt := range []struct {
		d             Detector
		src, in       string
		works, isLoca bool
	}{
		{cidr, "10.1.2.3", "eth0", true, true},
		{cidr, "192.0.2.1", "eth0", true, false},
		{cidr, "fd00::1", "eth0", false, false}, // no CIDR of the family
		{bridge, "192.0.2.1", "cni0", true, true},
		{bridge, "192.0.2.1", "cni01", true, false},
		{bridge, "192.0.2.1", "", true, false}, // the node itself
		{prefix, "192.0.2.1", "cali123", true, true},
		{prefix, "192.0.2.1", "eth0", true, false},
		{Detector{}, "10.1.2.3", "eth0", false, false},
	} {
		if works, is := tt.d.Works(addr(tt.src).Is6()), tt.d.IsLocal(addr(tt.src), tt.in); works != tt.works || is != tt.isLoca {
			t.Errorf("%+v, %s by %q: works %v, local %v", tt.d, tt.src, tt.in, works, is)
		}
	}
}

// Every verdict has a word.
func TestVerdictWords(t *testing.T) {
	var words []string
	for v := Pass; v <= Local; v++ {
		words = append(words, v.String())
	}
	if got := strings.Join(words, " "); got != "pass forward reject drop local" {
		t.Error(got)
	}
}
