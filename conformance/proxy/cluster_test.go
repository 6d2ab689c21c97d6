package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// cluster is what the API holds: the same for all proxies.
type cluster struct {
	client   kubernetes.Interface
	services map[string]*service
	markers  int // barriers so far
}

// service is the Service of a scenario, with the addresses it was given by its
// place in the table.
type service struct {
	namespace, name string
	index           int
	options         string
	endpoints       string
	like            int // index of the service whose external addresses it has, or 0

	object  *corev1.Service
	written string // the options that object was made with
	slices  map[string]*discoveryv1.EndpointSlice
}

// option words of a service; without any it is of type ClusterIP.
//
//	nodeport            type NodePort
//	lb                  type LoadBalancer with an address of each family
//	ipmode-proxy        … whose ipMode is Proxy
//	ranges=A,B          … for these sources only: names of places, or prefixes
//	external            an external IP of each family
//	itp-local etp-local the traffic policies
//	affinity=SECONDS    session affinity by client IP
//	proxy-name          the label that hands it to another proxy
//	not-ready           publishNotReadyAddresses
//	port2               a second port: 81, to 8081 of the pods
//	port80=N            the first port is N instead
//	tcp-only, udp-only  no ports of other protocols
//	external-at=PLACE   external IPs that are a place's own
//	ipv4-only ipv6-only single stack
//	unnamed             the port has no name
//	no-nodeport         a load balancer without node ports
//	long                a port name as long as may be
//	ports=N             N further TCP ports, from 2000 on
//	vip-too             external IPs that are also those of the load balancer
//	external-name       type ExternalName
//
// Endpoint words: the name of a place, and after colons what differs from a
// ready endpoint on its own node:
//
//	notready, terminating, notserving, ready (beside terminating)
//	unset (no conditions are given), at=NODE (or none), also=PLACE (a second address)
//	zone=Z, node=N (hints), port=P, slice=K (another slice)
//	headless (its slice is labelled as that of a headless service)
//	no-ports, any-port (its slice has none, or one without a number)
//	many=N (as many endpoints, with addresses that lead to the place: manyPods)
type words []string

func (w words) value(key string) (string, bool) {
	for _, s := range w {
		if k, v, _ := strings.Cut(s, "="); k == key {
			return v, true
		}
	}
	return "", false
}

func (w words) has(key string) bool { _, ok := w.value(key); return ok }

// front is an address of the service: cluster, external or vip.
func (s *service) front(kind string, v6 bool) netip.Addr {
	base := map[string][2]string{
		"cluster":  {"10.96.1.%d", "fd00:96::1%02x"},
		"external": {"203.0.113.%d", "2001:db8:e::%x"},
		"vip":      {"198.51.100.%d", "2001:db8:f::%x"},
	}[kind]
	index := s.index
	if kind != "cluster" {
		index = s.external()
	}
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf(base[1], index))
	}
	return netip.MustParseAddr(fmt.Sprintf(base[0], index))
}

func (s *service) external() int {
	if s.like != 0 {
		return s.like
	}
	return s.index
}

// families tells which of IPv4 and IPv6 the service has.
func (s *service) families() []bool {
	w := words(strings.Fields(s.options))
	switch {
	case w.has("ipv4-only"):
		return []bool{false}
	case w.has("ipv6-only"):
		return []bool{true}
	}
	return []bool{false, true}
}

func (s *service) nodePort() uint16   { return uint16(30000 + s.index) }
func (s *service) healthPort() uint16 { return uint16(31000 + s.index) }

// servicePort is a port of the service and where it leads to.
type servicePort struct {
	name     string
	protocol corev1.Protocol
	port     int32
	target   int32
}

func (s *service) ports() []servicePort {
	w := words(strings.Fields(s.options))
	first, name := int32(80), "tcp"
	if v, ok := w.value("port80"); ok {
		n, _ := strconv.Atoi(v)
		first = int32(n)
	}
	if w.has("long") {
		name = strings.Repeat("p", 63)
	}
	if w.has("unnamed") {
		name = ""
	}
	ports := []servicePort{
		{name, corev1.ProtocolTCP, first, serverPort},
		{"udp", corev1.ProtocolUDP, first, serverPort},
		{"sctp", corev1.ProtocolSCTP, first, serverPort},
	}
	if w.has("tcp-only") {
		ports = ports[:1]
	} else if w.has("udp-only") {
		ports = ports[1:2]
	}
	if w.has("port2") {
		ports = append(ports, servicePort{"tcp2", corev1.ProtocolTCP, 81, serverPort2}, servicePort{"udp2", corev1.ProtocolUDP, 81, serverPort2})
	}
	if v, ok := w.value("ports"); ok {
		n, _ := strconv.Atoi(v)
		for i := range int32(n) {
			ports = append(ports, servicePort{fmt.Sprintf("p%d", i), corev1.ProtocolTCP, 2000 + i, serverPort})
		}
	}
	return ports
}

// build makes the Service object.
func (s *service) build() *corev1.Service {
	w := words(strings.Fields(s.options))
	policy, families := corev1.IPFamilyPolicyRequireDualStack, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	if list := s.families(); len(list) == 1 {
		policy, families = corev1.IPFamilyPolicySingleStack, families[:1]
		if list[0] {
			families = []corev1.IPFamily{corev1.IPv6Protocol}
		}
	}
	o := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name},
		Spec: corev1.ServiceSpec{
			Type:                     corev1.ServiceTypeClusterIP,
			IPFamilyPolicy:           &policy,
			IPFamilies:               families,
			PublishNotReadyAddresses: w.has("not-ready"),
		},
	}
	if w.has("external-name") {
		o.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "elsewhere.example"}
		return o
	}
	for _, v6 := range s.families() {
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, s.front("cluster", v6).String())
		if place, ok := w.value("external-at"); ok {
			o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, address(place, v6).String())
		}
		if w.has("vip-too") {
			o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, s.front("vip", v6).String())
		}
		if w.has("external") {
			o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, s.front("external", v6).String())
		}
	}
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	if w.has("nodeport") {
		o.Spec.Type = corev1.ServiceTypeNodePort
	}
	if w.has("lb") {
		o.Spec.Type = corev1.ServiceTypeLoadBalancer
	}
	if w.has("no-nodeport") {
		no := false
		o.Spec.AllocateLoadBalancerNodePorts = &no
	}
	if w.has("itp-local") {
		p := corev1.ServiceInternalTrafficPolicyLocal
		o.Spec.InternalTrafficPolicy = &p
	}
	if w.has("etp-local") {
		o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		if w.has("lb") {
			o.Spec.HealthCheckNodePort = int32(s.healthPort())
		}
	}
	if v, ok := w.value("affinity"); ok {
		n, _ := strconv.Atoi(v)
		seconds := int32(n)
		o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		o.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	if w.has("proxy-name") {
		o.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
	}
	if v, ok := w.value("ranges"); ok {
		for _, r := range strings.Split(v, ",") {
			if strings.Contains(r, "/") {
				o.Spec.LoadBalancerSourceRanges = append(o.Spec.LoadBalancerSourceRanges, r)
				continue
			}
			o.Spec.LoadBalancerSourceRanges = append(o.Spec.LoadBalancerSourceRanges, address(r, false).String()+"/32", address(r, true).String()+"/128")
		}
	}
	for i, p := range s.ports() {
		sp := corev1.ServicePort{Name: p.name, Protocol: p.protocol, Port: p.port, TargetPort: intstr.FromInt32(p.target)}
		if o.Spec.Type != corev1.ServiceTypeClusterIP && !w.has("no-nodeport") {
			sp.NodePort = int32(s.nodePort())
			if i >= 3 {
				sp.NodePort = int32(s.nodePort()) + 500
			}
		}
		o.Spec.Ports = append(o.Spec.Ports, sp)
	}
	return o
}

// ingress is what a load balancer's controller writes into the status.
func (s *service) ingress() []corev1.LoadBalancerIngress {
	w := words(strings.Fields(s.options))
	if !w.has("lb") {
		return nil
	}
	var list []corev1.LoadBalancerIngress
	for _, v6 := range s.families() {
		mode := corev1.LoadBalancerIPModeVIP
		if w.has("ipmode-proxy") {
			mode = corev1.LoadBalancerIPModeProxy
		}
		list = append(list, corev1.LoadBalancerIngress{IP: s.front("vip", v6).String(), IPMode: &mode})
	}
	return list
}

// buildSlices makes the EndpointSlices, as the endpoint controller would.
func (s *service) buildSlices() map[string]*discoveryv1.EndpointSlice {
	out := make(map[string]*discoveryv1.EndpointSlice)
	for _, e := range strings.Fields(s.endpoints) {
		parts := strings.Split(e, ":")
		name, w := parts[0], words(parts[1:])
		for _, v6 := range s.families() {
			family, kind := "4", discoveryv1.AddressTypeIPv4
			if v6 {
				family, kind = "6", discoveryv1.AddressTypeIPv6
			}
			key := s.name + "-" + family
			if len(key) > 63 {
				key = key[:40] + "-" + family
			}
			port, otherPort := w.value("port")
			if otherPort {
				key += "-" + port
			}
			if k, ok := w.value("slice"); ok {
				key += "-" + k
			}
			for _, word := range []string{"no-ports", "any-port"} {
				if w.has(word) {
					key += "-" + word
				}
			}
			if v, ok := w.value("many"); ok {
				n, _ := strconv.Atoi(v)
				s.many(out, key, n, name, kind)
				continue
			}
			slice := out[key]
			if slice == nil {
				slice = &discoveryv1.EndpointSlice{
					ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: key, Labels: map[string]string{
						discoveryv1.LabelServiceName: s.name, discoveryv1.LabelManagedBy: "conformance.rutter"}},
					AddressType: kind,
				}
				for _, p := range s.ports() {
					target := p.target
					if otherPort {
						n, _ := strconv.Atoi(port)
						target = int32(n)
					}
					slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: &target})
				}
				switch {
				case w.has("no-ports"):
					slice.Ports = nil
				case w.has("any-port"):
					for i := range slice.Ports {
						slice.Ports[i].Port = nil
					}
				}
				out[key] = slice
			}
			if w.has("headless") {
				slice.Labels[corev1.IsHeadlessService] = ""
			}
			slice.Endpoints = append(slice.Endpoints, endpoint(name, w, v6))
		}
	}
	return out
}

// many adds n endpoints, a thousand to a slice, that are all the same pod.
func (s *service) many(out map[string]*discoveryv1.EndpointSlice, key string, n int, pod string, kind discoveryv1.AddressType) {
	v6 := kind == discoveryv1.AddressTypeIPv6
	at := netip.MustParsePrefix(manyPods[v6]).Addr()
	for i := range n {
		at = at.Next()
		k := fmt.Sprintf("%s-many-%d", key, i/1000)
		if out[k] == nil {
			out[k] = &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: s.namespace, Name: k, Labels: map[string]string{discoveryv1.LabelServiceName: s.name}},
				AddressType: kind,
			}
			for _, p := range s.ports() {
				out[k].Ports = append(out[k].Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: &p.target})
			}
		}
		e := endpoint(pod, nil, v6)
		e.Addresses = []string{at.String()}
		out[k].Endpoints = append(out[k].Endpoints, e)
	}
}

func endpoint(name string, w words, v6 bool) discoveryv1.Endpoint {
	terminating := w.has("terminating")
	ready := !w.has("notready") && (!terminating || w.has("ready"))
	serving := !w.has("notready") && !w.has("notserving")
	node := nodeOf(name)
	if at, ok := w.value("at"); ok {
		node = at
	}
	e := discoveryv1.Endpoint{
		Addresses:  []string{address(name, v6).String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
	if node != "" {
		e.NodeName = &node
	}
	if also, ok := w.value("also"); ok {
		e.Addresses = append(e.Addresses, address(also, v6).String())
	}
	if w.has("unset") {
		e.Conditions = discoveryv1.EndpointConditions{}
	}
	for _, h := range w {
		if e.Hints == nil && (strings.HasPrefix(h, "zone=") || strings.HasPrefix(h, "node=")) {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		if zone, ok := strings.CutPrefix(h, "zone="); ok {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: zone})
		}
		if n, ok := strings.CutPrefix(h, "node="); ok {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
	}
	return e
}

// put makes the API hold the service as it is described now.
func (c *cluster) put(ctx context.Context, s *service) error {
	api := c.client.CoreV1().Services(s.namespace)
	want := s.build()
	if s.object == nil {
		o, err := api.Create(ctx, want, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("creating service %s: %w", s.name, err)
		}
		s.object = o
	} else if s.options != s.written {
		old := s.object
		want.ResourceVersion, want.UID = old.ResourceVersion, old.UID
		want.Status = old.Status
		o, err := api.Update(ctx, want, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("changing service %s: %w", s.name, err)
		}
		s.object = o
	}
	if list := s.ingress(); list != nil && s.options != s.written {
		o := s.object.DeepCopy()
		o.Status.LoadBalancer.Ingress = list
		var err error
		if s.object, err = api.UpdateStatus(ctx, o, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("giving service %s its load balancer: %w", s.name, err)
		}
	}
	s.written = s.options
	return c.putSlices(ctx, s, s.buildSlices())
}

func (c *cluster) putSlices(ctx context.Context, s *service, want map[string]*discoveryv1.EndpointSlice) error {
	api := c.client.DiscoveryV1().EndpointSlices(s.namespace)
	if s.slices == nil {
		s.slices = make(map[string]*discoveryv1.EndpointSlice)
	}
	for name, o := range want {
		var err error
		if old := s.slices[name]; old != nil {
			o.ResourceVersion = old.ResourceVersion
			o, err = api.Update(ctx, o, metav1.UpdateOptions{})
		} else {
			o, err = api.Create(ctx, o, metav1.CreateOptions{})
		}
		if err != nil {
			return fmt.Errorf("writing endpoint slice %s: %w", name, err)
		}
		s.slices[name] = o
	}
	for name := range s.slices {
		if want[name] == nil {
			if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("deleting endpoint slice %s: %w", name, err)
			}
			delete(s.slices, name)
		}
	}
	return nil
}

// remove deletes the service, then its slices, as the garbage collector does.
func (c *cluster) remove(ctx context.Context, s *service) error {
	if s.object == nil {
		return nil
	}
	if err := c.client.CoreV1().Services(s.namespace).Delete(ctx, s.name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting service %s: %w", s.name, err)
	}
	s.object, s.written = nil, ""
	return c.putSlices(ctx, s, nil)
}

// text is what the API holds for the service, for a failing row.
func (s *service) text() string {
	var b strings.Builder
	if s.object == nil {
		return "service " + s.name + " is deleted\n"
	}
	o := s.object.DeepCopy()
	o.ManagedFields = nil
	y, _ := yaml.Marshal(map[string]any{"spec": o.Spec, "status": o.Status})
	fmt.Fprintf(&b, "service %s/%s (%s; endpoints %s):\n%s", s.namespace, s.name, s.options, s.endpoints, y)
	for name, slice := range s.slices {
		y, _ := yaml.Marshal(map[string]any{"endpoints": slice.Endpoints, "ports": slice.Ports})
		fmt.Fprintf(&b, "slice %s:\n%s", name, y)
	}
	return b.String()
}

// addNodes registers the two nodes, each in a zone of its own.
func (c *cluster) addNodes(ctx context.Context) error {
	for i, name := range []string{"n1", "n2"} {
		cidrs := []string{fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd00:244:0:%d::/64", i+1)}
		n := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
				corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprintf("z%d", i+1)}},
			Spec: corev1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
		}
		if _, err := c.client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating node %s: %w", name, err)
		}
		status := fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":%q},{"type":"InternalIP","address":%q}]}}`,
			address(name, false), address(name, true))
		if _, err := c.client.CoreV1().Nodes().Patch(ctx, name, "application/strategic-merge-patch+json", []byte(status), metav1.PatchOptions{}, "status"); err != nil {
			return fmt.Errorf("giving node %s its addresses: %w", name, err)
		}
	}
	return nil
}

// mark changes the marker service so that a proxy which serves it as it is now
// has seen everything that was written before: its port is new, which tells of
// the Services, and the port that it leads to alternates, which tells of the
// EndpointSlices.
func (c *cluster) mark(ctx context.Context) (port uint16, answer string, err error) {
	c.markers++
	s := c.services["marker"]
	if s == nil {
		s = &service{namespace: "default", name: "marker", index: 250}
		c.services["marker"] = s
	}
	s.options = fmt.Sprintf("port80=%d", 1000+c.markers)
	s.endpoints = fmt.Sprintf("a1:port=%d", markerPort+c.markers%2)
	return uint16(1000 + c.markers), fmt.Sprintf("marker%d", c.markers%2), c.put(ctx, s)
}
