package plan

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rutter-project/rutter/internal/catalog"
)

var name = catalog.ServiceName{Namespace: "default", Name: "web"}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// endpoint reads "10.0.0.1 here ready zone=a,b node=x": address, node, then
// conditions (ready, serving, draining, down; ready if none is given) and hints.
func endpoint(text string) catalog.Endpoint {
	words := strings.Fields(text)
	e := catalog.Endpoint{Addr: addr(words[0]), Node: words[1], Conditions: catalog.Ready | catalog.Serving}
	for _, w := range words[2:] {
		switch key, value, _ := strings.Cut(w, "="); key {
		case "ready":
		case "ready-terminating": // publishNotReadyAddresses
			e.Conditions = catalog.Ready | catalog.Terminating
		case "serving":
			e.Conditions = catalog.Serving
		case "draining":
			e.Conditions = catalog.Serving | catalog.Terminating
		case "down":
			e.Conditions = 0
		case "gone":
			e.Conditions = catalog.Terminating
		case "extra": // a further address of the endpoint before
			e.Extra = true
		case "zone", "node":
			if e.Hints == nil {
				e.Hints = &catalog.Hints{}
			}
			if key == "zone" {
				e.Hints.Zones = strings.Split(value, ",")
			} else {
				e.Hints.Nodes = strings.Split(value, ",")
			}
		default:
			panic("unknown word " + w)
		}
	}
	return e
}

func lists(list []netip.AddrPort) string {
	var words []string
	for _, ep := range list {
		words = append(words, strings.TrimPrefix(ep.String(), "10.0.0."))
	}
	return strings.Join(words, " ")
}

// A slice labelled as that of a headless service is none of a proxy's.
func TestHeadlessSlice(t *testing.T) {
	s := &catalog.Service{Name: name, ClusterIPs: []netip.Addr{addr("10.96.0.1")}, Ports: []catalog.ServicePort{{Protocol: catalog.TCP, Port: 80}}}
	slice := &catalog.EndpointSlice{Ports: []catalog.EndpointPort{{Protocol: catalog.TCP, Port: 8080}}, Endpoints: []catalog.Endpoint{endpoint("10.0.0.1 here")}}
	pl := Planner{Node: Node{Name: "here"}}
	for headless, want := range map[bool]string{false: "1:8080", true: ""} {
		slice.Headless = headless
		got := pl.Service(name, &catalog.Entry{Service: s, Slices: []*catalog.EndpointSlice{slice}})
		if lists(got.Ports[0].Cluster) != want {
			t.Errorf("headless %v: %q", headless, lists(got.Ports[0].Cluster))
		}
	}
}

// Which endpoints a port leads to on node "here" in zone "a".
func TestEndpoints(t *testing.T) {
	internal := func(s *catalog.Service) { s.InternalLocal = true }
	external := func(s *catalog.Service) {
		s.Type, s.Ports[0].NodePort, s.ExternalLocal = catalog.NodePort, 30000, true
	}
	nodePort := func(s *catalog.Service) { s.Type, s.Ports[0].NodePort = catalog.NodePort, 30000 }
	tests := map[string]struct {
		set            func(*catalog.Service)
		endpoints      []string
		cluster, local string
		unusable       bool
	}{
		"none":                              {nil, nil, "", "", true},
		"ready":                             {nil, []string{"10.0.0.1 here", "10.0.0.2 there"}, "1:8080 2:8080", "", false},
		"not ready":                         {nil, []string{"10.0.0.1 here down", "10.0.0.2 there serving"}, "", "", true},
		"draining only as a last resort":    {nil, []string{"10.0.0.1 here draining", "10.0.0.2 there draining"}, "1:8080 2:8080", "", false},
		"draining beside ready":             {nil, []string{"10.0.0.1 here draining", "10.0.0.2 there"}, "2:8080", "", false},
		"terminating and not serving":       {nil, []string{"10.0.0.1 here gone"}, "", "", true},
		"publishNotReadyAddresses":          {nil, []string{"10.0.0.1 here ready-terminating"}, "1:8080", "", false},
		"further addresses of an endpoint":  {nil, []string{"10.0.0.1 here", "10.0.0.2 here extra"}, "1:8080", "", false},
		"zone hints":                        {nil, []string{"10.0.0.1 x zone=a", "10.0.0.2 x zone=b", "10.0.0.3 x zone=b,a"}, "1:8080 3:8080", "", false},
		"zone hints, none for here":         {nil, []string{"10.0.0.1 x zone=b", "10.0.0.2 x zone=b"}, "1:8080 2:8080", "", false},
		"zone hints, one without":           {nil, []string{"10.0.0.1 x zone=a", "10.0.0.2 x zone=b", "10.0.0.3 x"}, "1:8080 2:8080 3:8080", "", false},
		"an unready one without hints":      {nil, []string{"10.0.0.1 x zone=a", "10.0.0.2 x zone=b", "10.0.0.3 x down"}, "1:8080", "", false},
		"node hints go before zone hints":   {nil, []string{"10.0.0.1 here zone=a node=here", "10.0.0.2 x zone=a node=x"}, "1:8080", "", false},
		"node hints, none for here":         {nil, []string{"10.0.0.1 y zone=a node=y", "10.0.0.2 x zone=b node=x"}, "1:8080", "", false},
		"hints do not hold back draining":   {nil, []string{"10.0.0.1 x draining zone=a", "10.0.0.2 x draining zone=b"}, "1:8080 2:8080", "", false},
		"internal Local":                    {internal, []string{"10.0.0.1 here", "10.0.0.2 there"}, "", "1:8080", false},
		"internal Local ignores hints":      {internal, []string{"10.0.0.1 here zone=b", "10.0.0.2 there zone=a"}, "", "1:8080", false},
		"internal Local, draining here":     {internal, []string{"10.0.0.1 here draining", "10.0.0.2 there"}, "", "1:8080", false},
		"internal Local, nobody here":       {internal, []string{"10.0.0.2 there"}, "", "", false},
		"internal Local, nobody anywhere":   {internal, []string{"10.0.0.2 there down"}, "", "", true},
		"internal Local, draining there":    {internal, []string{"10.0.0.2 there draining"}, "", "", false},
		"external Local":                    {external, []string{"10.0.0.1 here", "10.0.0.2 there"}, "1:8080 2:8080", "1:8080", false},
		"external Local, ready there":       {external, []string{"10.0.0.1 here draining", "10.0.0.2 there"}, "2:8080", "1:8080", false},
		"external Cluster needs no local":   {nodePort, []string{"10.0.0.1 here", "10.0.0.2 there"}, "1:8080 2:8080", "", false},
		"external Local without front ends": {func(s *catalog.Service) { s.ExternalLocal = true }, []string{"10.0.0.1 here", "10.0.0.2 there"}, "1:8080 2:8080", "", false},
		"internal Local with a node port":   {func(s *catalog.Service) { internal(s); nodePort(s) }, []string{"10.0.0.1 here", "10.0.0.2 there"}, "1:8080 2:8080", "1:8080", false},
	}
	pl := Planner{Node: Node{Name: "here", Zone: "a"}}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			s := &catalog.Service{Name: name, ClusterIPs: []netip.Addr{addr("10.96.0.1")}, Ports: []catalog.ServicePort{{Name: "http", Protocol: catalog.TCP, Port: 80}}}
			if tt.set != nil {
				tt.set(s)
			}
			slice := &catalog.EndpointSlice{Ports: []catalog.EndpointPort{{Name: "http", Protocol: catalog.TCP, Port: 8080}}}
			for _, e := range tt.endpoints {
				slice.Endpoints = append(slice.Endpoints, endpoint(e))
			}
			got := pl.Service(name, &catalog.Entry{Service: s, Slices: []*catalog.EndpointSlice{slice}})
			p := got.Ports[0]
			if lists(p.Cluster) != tt.cluster || lists(p.Local) != tt.local || p.Usable == tt.unusable {
				t.Errorf("cluster %q, local %q, usable %v", lists(p.Cluster), lists(p.Local), p.Usable)
			}
		})
	}
}

// Which ports of slices belong to a service port, and what a repeated address
// means.
func TestSlices(t *testing.T) {
	one := func(ip, node string, port uint16, conditions catalog.Condition) *catalog.EndpointSlice {
		return &catalog.EndpointSlice{
			Ports: []catalog.EndpointPort{{Name: "http", Protocol: catalog.TCP, Port: port}, {Name: "http", Protocol: catalog.UDP, Port: 9}, {Name: "x", Protocol: catalog.TCP, Port: 7}},
			IPv6:  addr(ip).Is6() && !addr(ip).Is4In6(), Endpoints: []catalog.Endpoint{{Addr: addr(ip), Node: node, Conditions: conditions}},
		}
	}
	const ready = catalog.Ready | catalog.Serving
	s := &catalog.Service{Name: name, ClusterIPs: []netip.Addr{addr("10.96.0.1"), addr("fd00:96::1")}, Ports: []catalog.ServicePort{{Name: "http", Protocol: catalog.TCP, Port: 80}}}
	tests := map[string]struct {
		slices []*catalog.EndpointSlice
		v4, v6 string
	}{
		"numbers differ between slices":  {[]*catalog.EndpointSlice{one("10.0.0.1", "n", 80, ready), one("10.0.0.2", "n", 81, ready)}, "1:80 2:81", ""},
		"families apart":                 {[]*catalog.EndpointSlice{one("10.0.0.1", "n", 80, ready), one("fd00::1", "n", 80, ready)}, "1:80", "[fd00::1]:80"},
		"IPv4-mapped":                    {[]*catalog.EndpointSlice{one("::ffff:10.0.0.1", "n", 80, ready)}, "1:80", ""},
		"twice, ready wins":              {[]*catalog.EndpointSlice{one("10.0.0.1", "n", 80, catalog.Terminating), one("10.0.0.1", "n", 80, ready)}, "1:80", ""},
		"twice, terminating comes later": {[]*catalog.EndpointSlice{one("10.0.0.1", "n", 80, ready), one("10.0.0.1", "n", 80, catalog.Terminating)}, "1:80", ""},
		"sorted":                         {[]*catalog.EndpointSlice{one("10.0.0.9", "n", 80, ready), one("10.0.0.10", "n", 80, ready), one("10.0.0.9", "n", 79, ready)}, "9:79 9:80 10:80", ""},
		"port 0":                         {[]*catalog.EndpointSlice{one("10.0.0.1", "n", 0, ready)}, "", ""},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			got := (&Planner{}).Service(name, &catalog.Entry{Service: s, Slices: tt.slices})
			if lists(got.Ports[0].Cluster) != tt.v4 || lists(got.Ports[1].Cluster) != tt.v6 {
				t.Errorf("IPv4 %q, IPv6 %q", lists(got.Ports[0].Cluster), lists(got.Ports[1].Cluster))
			}
		})
	}
}

// Front ends, and what is left out with which reason.
func TestFrontEnds(t *testing.T) {
	base := func(change func(*catalog.Service)) *catalog.Service {
		s := &catalog.Service{Name: name, ClusterIPs: []netip.Addr{addr("10.96.0.1")}, Ports: []catalog.ServicePort{{Name: "http", Protocol: catalog.TCP, Port: 80}}}
		change(s)
		return s
	}
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	ingress := func(list ...string) (out []catalog.Ingress) {
		for _, a := range list {
			out = append(out, catalog.Ingress{Addr: addr(a)})
		}
		return out
	}
	tests := map[string]struct {
		service *catalog.Service
		ports   int
		fronts  []External
		skipped []Skip
	}{
		"external name": {base(func(s *catalog.Service) { s.Type = catalog.ExternalName }), 0, nil, []Skip{{"service", ReasonExternalName}}},
		"headless":      {base(func(s *catalog.Service) { s.Headless, s.ClusterIPs = true, nil }), 0, nil, []Skip{{"service", ReasonHeadless}}},
		"another proxy": {base(func(s *catalog.Service) { s.ProxyName = "other" }), 0, nil, []Skip{{"service", ReasonOtherProxy}}},
		"no address":    {base(func(s *catalog.Service) { s.ClusterIPs = nil }), 0, nil, []Skip{{"service", ReasonNoClusterIP}}},
		"no ports":      {base(func(s *catalog.Service) { s.Ports = nil }), 0, nil, []Skip{{"service", ReasonNoPorts}}},
		"port twice": {base(func(s *catalog.Service) {
			s.Ports = append(s.Ports, catalog.ServicePort{Name: "again", Protocol: catalog.TCP, Port: 80}, catalog.ServicePort{Name: "udp", Protocol: catalog.UDP, Port: 80})
		}), 2, nil, []Skip{{"port again", ReasonDuplicate}}},
		"protocol": {base(func(s *catalog.Service) { s.Ports[0].Protocol = 1 }), 0, nil, []Skip{{"port http", ReasonUnsupportedProtocol}}},
		"external IPs": {base(func(s *catalog.Service) {
			s.ExternalIPs = []netip.Addr{addr("192.0.2.1"), addr("fd00::1"), addr("192.0.2.1"), addr("10.96.0.1"), addr("::ffff:192.0.2.2"), addr("127.0.0.1")}
		}), 1, []External{{Addr: addr("192.0.2.1")}, {Addr: addr("192.0.2.2")}},
			[]Skip{{"192.0.2.1", ReasonDuplicate}, {"10.96.0.1", ReasonDuplicate}, {"127.0.0.1", ReasonInvalidAddress}}},
		"load balancer": {base(func(s *catalog.Service) {
			s.LoadBalancer = append(ingress("192.0.2.1", "fd00::1", "192.0.2.2"), catalog.Ingress{Hostname: "lb.example"})
			s.LoadBalancer[2].Proxy = true
			s.ExternalIPs = []netip.Addr{addr("192.0.2.1")}
		}), 1, []External{{Addr: addr("192.0.2.1"), LoadBalancer: true}},
			[]Skip{{"192.0.2.2", ReasonIPModeProxy}, {"192.0.2.1", ReasonDuplicate}}},
		"source ranges": {base(func(s *catalog.Service) {
			s.LoadBalancer, s.SourceRanges = ingress("192.0.2.1"), prefixes("10.1.0.0/16", "10.0.0.0/8", "10.2.0.0/16", "fd00::/8", "11.0.0.0/8")
		}), 1, []External{{Addr: addr("192.0.2.1"), LoadBalancer: true, Sources: prefixes("10.0.0.0/8", "11.0.0.0/8")}}, nil},
		"source range of everybody": {base(func(s *catalog.Service) {
			s.LoadBalancer, s.SourceRanges = ingress("192.0.2.1"), prefixes("10.1.0.0/16", "0.0.0.0/0")
		}), 1, []External{{Addr: addr("192.0.2.1"), LoadBalancer: true}}, nil},
		"the node is in a source range": {base(func(s *catalog.Service) {
			s.LoadBalancer, s.SourceRanges = ingress("192.0.2.1"), prefixes("203.0.113.0/24")
		}), 1, []External{{Addr: addr("192.0.2.1"), LoadBalancer: true, Sources: prefixes("203.0.113.0/24", "192.0.2.1/32")}}, nil},
	}
	pl := Planner{Node: Node{Name: "here", IPs: []netip.Addr{addr("203.0.113.7")}}}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			got := pl.Service(name, &catalog.Entry{Service: tt.service})
			if len(got.Ports) != tt.ports {
				t.Fatalf("%d ports", len(got.Ports))
			}
			if tt.ports > 0 {
				if d := cmp.Diff(tt.fronts, got.Ports[0].External, compare, comparePrefix); d != "" {
					t.Errorf("front ends:\n%s", d)
				}
			}
			if d := cmp.Diff(tt.skipped, got.Skipped); d != "" {
				t.Errorf("skipped:\n%s", d)
			}
		})
	}
	t.Run("external IPs switched off", func(t *testing.T) {
		off := Planner{Options: Options{NoExternalIPs: true}}
		got := off.Service(name, &catalog.Entry{Service: base(func(s *catalog.Service) { s.ExternalIPs = []netip.Addr{addr("192.0.2.1")} })})
		if len(got.Ports[0].External) != 0 || got.Skipped[0].Reason != ReasonDisabled {
			t.Errorf("%+v", got)
		}
	})
}

func TestHealthCheck(t *testing.T) {
	s := &catalog.Service{Name: name, Type: catalog.LoadBalancer, ExternalLocal: true, HealthCheckNodePort: 32000,
		ClusterIPs: []netip.Addr{addr("10.96.0.1")}, LoadBalancer: []catalog.Ingress{{Addr: addr("192.0.2.1")}},
		Ports: []catalog.ServicePort{{Name: "http", Protocol: catalog.TCP, Port: 80}, {Name: "https", Protocol: catalog.TCP, Port: 443}}}
	ports := []catalog.EndpointPort{{Name: "http", Protocol: catalog.TCP, Port: 8080}, {Name: "https", Protocol: catalog.TCP, Port: 8443}}
	slice := &catalog.EndpointSlice{Ports: ports, Endpoints: []catalog.Endpoint{
		endpoint("10.0.0.1 here"), endpoint("10.0.0.2 here"), endpoint("10.0.0.3 here draining"), endpoint("10.0.0.4 there")}}
	again := &catalog.EndpointSlice{Ports: ports, Endpoints: []catalog.Endpoint{endpoint("10.0.0.2 here")}}
	pl := Planner{Node: Node{Name: "here"}}
	got := pl.Service(name, &catalog.Entry{Service: s, Slices: []*catalog.EndpointSlice{slice, again}})
	if want := (&HealthCheck{NodePort: 32000, Local: [2]int{2, 0}, Families: [2]bool{true, false}}); !cmp.Equal(got.HealthCheck, want) {
		t.Errorf("got %+v, want %+v", got.HealthCheck, want)
	}
	for what, change := range map[string]func(*catalog.Service){
		"policy Cluster":   func(s *catalog.Service) { s.ExternalLocal = false },
		"no load balancer": func(s *catalog.Service) { s.Type = catalog.NodePort },
		"no port":          func(s *catalog.Service) { s.HealthCheckNodePort = 0 },
	} {
		other := *s
		change(&other)
		if got := pl.Service(name, &catalog.Entry{Service: &other}); got.HealthCheck != nil {
			t.Errorf("%s: %+v", what, got.HealthCheck)
		}
	}
}

// Odd but legal content: it works, and at a bearable price.
func TestLarge(t *testing.T) {
	s := &catalog.Service{Name: name, ClusterIPs: []netip.Addr{addr("10.96.0.1")}, AffinityTimeout: time.Hour}
	slice := &catalog.EndpointSlice{}
	for i := range 1000 {
		p := uint16(1000 + i)
		s.Ports = append(s.Ports, catalog.ServicePort{Name: strings.Repeat("x", 60) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)), Protocol: catalog.TCP, Port: p})
		slice.Ports = append(slice.Ports, catalog.EndpointPort{Name: s.Ports[i].Name, Protocol: catalog.TCP, Port: p})
	}
	for i := range 300 {
		slice.Endpoints = append(slice.Endpoints, catalog.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Conditions: catalog.Ready})
	}
	got := (&Planner{}).Service(name, &catalog.Entry{Service: s, Slices: []*catalog.EndpointSlice{slice}})
	if len(got.Ports) != 1000 || len(got.Ports[999].Cluster) != 300 || got.Skipped != nil {
		t.Errorf("%d ports, %d endpoints, skipped %v", len(got.Ports), len(got.Ports[999].Cluster), got.Skipped)
	}
}
