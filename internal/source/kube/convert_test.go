package kube

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/rutter-project/rutter/internal/catalog"
)

// equal compares with addresses by value; absent and empty lists are the same.
var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestService(t *testing.T) {
	name := catalog.ServiceName{Namespace: "shop", Name: "web"}
	for _, tc := range []struct {
		name, yaml string
		want       catalog.Service
	}{
		{"dual-stack cluster IP", `
spec:
  type: ClusterIP
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:96::7"]
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP}
  - {name: diameter, port: 3868, protocol: SCTP}
`, catalog.Service{ClusterIPs: []netip.Addr{ip("10.96.0.7"), ip("fd00:96::7")}, Ports: []catalog.ServicePort{
			{Name: "http", Protocol: catalog.TCP, Port: 80}, {Name: "dns", Protocol: catalog.UDP, Port: 53}, {Name: "diameter", Protocol: catalog.SCTP, Port: 3868}}}},
		{"an object from before clusterIPs existed", `
spec: {clusterIP: 10.96.0.7}
`, catalog.Service{ClusterIPs: []netip.Addr{ip("10.96.0.7")}}},
		{"headless", `
spec: {clusterIP: None, clusterIPs: [None], selector: {app: db}, publishNotReadyAddresses: true, ports: [{port: 5432}]}
`, catalog.Service{Headless: true, PublishNotReady: true, Selected: true, Ports: []catalog.ServicePort{{Protocol: catalog.TCP, Port: 5432}}}},
		{"external name; ports and addresses mean nothing", `
spec: {type: ExternalName, externalName: db.example.com, clusterIP: ""}
`, catalog.Service{Type: catalog.ExternalName, ExternalName: "db.example.com"}},
		{"node port with Local policies", `
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  ports: [{port: 80, nodePort: 30080}]
`, catalog.Service{Type: catalog.NodePort, ClusterIPs: []netip.Addr{ip("10.96.0.7")}, InternalLocal: true, ExternalLocal: true,
			Ports: []catalog.ServicePort{{Protocol: catalog.TCP, Port: 80, NodePort: 30080}}}},
		{"load balancer; what cannot be parsed is left out", `
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.7
  externalIPs: [203.0.113.9, "::ffff:203.0.113.10", bogus]
  loadBalancerSourceRanges: [" 198.51.100.7/24 ", bogus]
  healthCheckNodePort: 32000
status:
  loadBalancer:
    ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: Proxy}, {hostname: lb.example.com}, {}]
`, catalog.Service{Type: catalog.LoadBalancer, ClusterIPs: []netip.Addr{ip("10.96.0.7")}, HealthCheckNodePort: 32000,
			ExternalIPs:  []netip.Addr{ip("203.0.113.9"), ip("203.0.113.10")},
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
			LoadBalancer: []catalog.Ingress{{Addr: ip("203.0.113.1")}, {Addr: ip("203.0.113.2"), Proxy: true}, {Hostname: "lb.example.com"}}}},
		{"affinity with the default timeout", `
spec: {clusterIP: 10.96.0.7, sessionAffinity: ClientIP}
`, catalog.Service{ClusterIPs: []netip.Addr{ip("10.96.0.7")}, AffinityTimeout: 3 * time.Hour}},
		{"affinity with its own timeout", `
spec: {clusterIP: 10.96.0.7, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}
`, catalog.Service{ClusterIPs: []netip.Addr{ip("10.96.0.7")}, AffinityTimeout: time.Minute}},
		{"another proxy's service", `
metadata: {labels: {service.kubernetes.io/service-proxy-name: mesh}}
spec: {clusterIP: 10.96.0.7}
`, catalog.Service{ClusterIPs: []netip.Addr{ip("10.96.0.7")}, ProxyName: "mesh"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s corev1.Service
			decode(t, tc.yaml, &s)
			s.Namespace, s.Name = name.Namespace, name.Name
			tc.want.Name = name
			if d := cmp.Diff(&tc.want, newConverter(false).service(&s), equal); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestEndpointSlice(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		want       catalog.EndpointSlice
	}{
		{"conditions and their defaults", `
addressType: IPv4
endpoints:
- {addresses: [10.244.0.1]}
- {addresses: [10.244.0.2], conditions: {ready: true, serving: true, terminating: false}}
- {addresses: [10.244.0.3], conditions: {ready: false}}
- {addresses: [10.244.0.4], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.5], conditions: {ready: true, serving: false}}
`, catalog.EndpointSlice{Endpoints: []catalog.Endpoint{
			{Addr: ip("10.244.0.1"), Conditions: catalog.Ready | catalog.Serving},
			{Addr: ip("10.244.0.2"), Conditions: catalog.Ready | catalog.Serving},
			{Addr: ip("10.244.0.3")},
			{Addr: ip("10.244.0.4"), Conditions: catalog.Serving | catalog.Terminating},
			{Addr: ip("10.244.0.5"), Conditions: catalog.Ready},
		}}},
		{"names, places and hints", `
addressType: IPv6
endpoints:
- addresses: ["fd00::1"]
  hostname: db-0
  nodeName: n1
  zone: z1
  targetRef: {kind: Pod, name: db-0-pod}
  hints: {forZones: [{name: z2}, {name: z1}], forNodes: [{name: n1}]}
- {addresses: ["fd00::2"], targetRef: {kind: VM, name: other}}
`, catalog.EndpointSlice{IPv6: true, Endpoints: []catalog.Endpoint{
			{Addr: ip("fd00::1"), Hostname: "db-0", Pod: "db-0-pod", Node: "n1", Zone: "z1", Conditions: catalog.Ready | catalog.Serving,
				Hints: &catalog.Hints{Zones: []string{"z1", "z2"}, Nodes: []string{"n1"}}},
			{Addr: ip("fd00::2"), Conditions: catalog.Ready | catalog.Serving},
		}}},
		{"ports without a name or number say nothing", `
addressType: IPv4
ports: [{name: "", port: 80}, {name: dns, port: 53, protocol: UDP}, {port: 81}, {name: x}, {name: zero, port: 0}]
`, catalog.EndpointSlice{Ports: []catalog.EndpointPort{{Protocol: catalog.TCP, Port: 80}, {Name: "dns", Protocol: catalog.UDP, Port: 53}}}},
		{"several addresses of one endpoint, and wrong ones", `
addressType: IPv4
endpoints:
- {addresses: [10.244.0.1, 10.244.0.2], hostname: a}
- {addresses: []}
- {addresses: ["fd00::1"]}
- {addresses: [bogus]}
`, catalog.EndpointSlice{Endpoints: []catalog.Endpoint{
			{Addr: ip("10.244.0.1"), Hostname: "a", Conditions: catalog.Ready | catalog.Serving},
			{Addr: ip("10.244.0.2"), Hostname: "a", Conditions: catalog.Ready | catalog.Serving, Extra: true},
		}}},
		{"a wrong address before a right one", `
addressType: IPv4
endpoints: [{addresses: [010.244.0.1, 10.244.0.2], hostname: a, targetRef: {kind: Pod, name: p}}]
`, catalog.EndpointSlice{Endpoints: []catalog.Endpoint{
			{Addr: ip("10.244.0.2"), Hostname: "a", Pod: "p", Conditions: catalog.Ready | catalog.Serving, Extra: true},
		}}},
		{"change trigger time", `
metadata: {annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05.6Z"}}
addressType: IPv4
`, catalog.EndpointSlice{ChangeTriggered: time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s discoveryv1.EndpointSlice
			decode(t, tc.yaml, &s)
			s.Namespace, s.Name = "shop", "web-x"
			s.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
			tc.want.Namespace, tc.want.Name, tc.want.Service = "shop", "web-x", "web"
			if d := cmp.Diff(&tc.want, newConverter(false).endpointSlice(&s), equal); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	fqdn := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeFQDN}
	fqdn.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	if s := newConverter(false).endpointSlice(fqdn); s.Service != "" {
		t.Error("an FQDN slice counts for its service")
	}
}

// TestOneCopy shows that what repeats over endpoints is stored once.
func TestOneCopy(t *testing.T) {
	c := newConverter(false)
	convert := func() *catalog.EndpointSlice {
		var s discoveryv1.EndpointSlice
		decode(t, `
addressType: IPv4
endpoints:
- {addresses: [10.244.0.1], nodeName: node-1, zone: zone-1, hints: {forZones: [{name: zone-1}]}, targetRef: {kind: Pod, name: pod-1}}
- {addresses: [10.244.0.2], nodeName: node-1, zone: zone-1, hints: {forZones: [{name: zone-1}]}, targetRef: {kind: Pod, name: pod-2}}
`, &s)
		return c.endpointSlice(&s)
	}
	a, b := convert().Endpoints, convert().Endpoints
	if unsafe.StringData(a[0].Node) != unsafe.StringData(b[1].Node) || unsafe.StringData(a[0].Zone) != unsafe.StringData(b[1].Zone) {
		t.Error("node or zone names are stored more than once")
	}
	if a[0].Hints != b[1].Hints {
		t.Error("equal hints are stored more than once")
	}
	if p, q := uintptr(unsafe.Pointer(unsafe.StringData(a[0].Pod))), uintptr(unsafe.Pointer(unsafe.StringData(a[1].Pod))); q != p+uintptr(len("pod-1")) {
		t.Error("the pod names of a slice do not share one string")
	}
}

func TestNode(t *testing.T) {
	var n corev1.Node
	decode(t, `
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]
status:
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 192.0.2.7}
  - {type: InternalIP, address: "fd00::7"}
  - {type: ExternalIP, address: 203.0.113.7}
`, &n)
	want := &catalog.Node{Name: "n1", Zone: "z1", ToBeDeleted: true,
		InternalIPs: []netip.Addr{ip("192.0.2.7"), ip("fd00::7")}, ExternalIPs: []netip.Addr{ip("203.0.113.7")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}
	if d := cmp.Diff(want, newConverter(false).node(&n), equal); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestPod(t *testing.T) {
	var p corev1.Pod
	decode(t, `
metadata: {name: p, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, hostNetwork: true}
status: {phase: Succeeded, podIP: 10.244.0.9, podIPs: [{ip: 10.244.0.9}, {ip: "fd00::9"}]}
`, &p)
	want := &catalog.Pod{Namespace: "shop", Name: "p", Node: "n1", HostNetwork: true, Done: true,
		IPs: []netip.Addr{ip("10.244.0.9"), ip("fd00::9")}, Labels: map[string]string{"app": "web"}}
	if d := cmp.Diff(want, newConverter(true).pod(&p), equal); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
