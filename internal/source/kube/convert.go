package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/rutter-project/rutter/internal/catalog"
)

// converter turns API objects into catalogue values. It interns the strings
// that repeat over many objects (namespaces, nodes, zones, port names, hints),
// so it must be used by one goroutine at a time.
type converter struct {
	keepLabels bool
	strings    map[string]string
	hints      map[string]*catalog.Hints
}

func newConverter(keepLabels bool) *converter {
	return &converter{keepLabels: keepLabels, strings: map[string]string{}, hints: map[string]*catalog.Hints{}}
}

// maxInterned bounds the tables against clusters whose node names never
// repeat; forgetting only means that later copies are not shared with earlier.
const maxInterned = 1 << 16

func (c *converter) intern(s string) string {
	if s == "" {
		return ""
	}
	if t, ok := c.strings[s]; ok {
		return t
	}
	if len(c.strings) >= maxInterned {
		clear(c.strings)
	}
	c.strings[s] = s
	return s
}

func (c *converter) labels(m map[string]string) map[string]string {
	if !c.keepLabels || len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[c.intern(k)] = c.intern(v)
	}
	return out
}

func protocol(p corev1.Protocol) (catalog.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "": // the API's default
		return catalog.TCP, true
	case corev1.ProtocolUDP:
		return catalog.UDP, true
	case corev1.ProtocolSCTP:
		return catalog.SCTP, true
	}
	return 0, false
}

// addr parses an address as kube-proxy does: IPv4 mapped into IPv6 is IPv4,
// zones have no meaning in the API, and leading zeros (which older API servers
// admitted) are not accepted.
func addr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func addrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, ok := addr(s); ok {
			out = append(out, a)
		}
	}
	return out
}

func (c *converter) service(s *corev1.Service) *catalog.Service {
	out := &catalog.Service{
		Name:            catalog.ServiceName{Namespace: c.intern(s.Namespace), Name: s.Name},
		ExternalIPs:     addrs(s.Spec.ExternalIPs),
		InternalLocal:   s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal:   s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		PublishNotReady: s.Spec.PublishNotReadyAddresses,
		Selected:        len(s.Spec.Selector) > 0,
		ProxyName:       s.Labels["service.kubernetes.io/service-proxy-name"],
		Labels:          c.labels(s.Labels),
	}
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		out.Type = catalog.NodePort
	case corev1.ServiceTypeLoadBalancer:
		out.Type = catalog.LoadBalancer
		out.HealthCheckNodePort = uint16(s.Spec.HealthCheckNodePort)
	case corev1.ServiceTypeExternalName:
		out.Type = catalog.ExternalName
		out.ExternalName = s.Spec.ExternalName
	}
	out.Headless = out.Type != catalog.ExternalName && s.Spec.ClusterIP == corev1.ClusterIPNone
	if !out.Headless && out.Type != catalog.ExternalName {
		ips := s.Spec.ClusterIPs
		if len(ips) == 0 && s.Spec.ClusterIP != "" {
			ips = []string{s.Spec.ClusterIP}
		}
		out.ClusterIPs = addrs(ips)
	}
	for _, p := range s.Spec.Ports {
		proto, ok := protocol(p.Protocol)
		if !ok {
			continue
		}
		out.Ports = append(out.Ports, catalog.ServicePort{Name: c.intern(p.Name), Protocol: proto, Port: uint16(p.Port), NodePort: uint16(p.NodePort)})
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		i := catalog.Ingress{Hostname: in.Hostname, Proxy: in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy}
		i.Addr, _ = addr(in.IP)
		if i.Addr.IsValid() || i.Hostname != "" {
			out.LoadBalancer = append(out.LoadBalancer, i)
		}
	}
	for _, r := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			out.SourceRanges = append(out.SourceRanges, p.Masked())
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.AffinityTimeout = 10800 * time.Second // the API's default
		if a := s.Spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
			out.AffinityTimeout = time.Duration(*a.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	return out
}

func (c *converter) endpointSlice(s *discoveryv1.EndpointSlice) *catalog.EndpointSlice {
	out := &catalog.EndpointSlice{
		Namespace: c.intern(s.Namespace),
		Name:      s.Name,
		Service:   s.Labels[discoveryv1.LabelServiceName],
		IPv6:      s.AddressType == discoveryv1.AddressTypeIPv6,
		Labels:    c.labels(s.Labels),
	}
	_, out.Headless = s.Labels[corev1.IsHeadlessService]
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		out.Service = "" // deprecated and without meaning to DNS or proxies
		return out
	}
	if t, err := time.Parse(time.RFC3339Nano, s.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		out.ChangeTriggered = t
	}
	for _, p := range s.Ports {
		// A port without a name (not: an empty one) or number says nothing; a
		// zero number was admitted by old API servers.
		if p.Name == nil || p.Port == nil || *p.Port <= 0 {
			continue
		}
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if proto, ok := protocol(proto); ok {
			out.Ports = append(out.Ports, catalog.EndpointPort{Name: c.intern(*p.Name), Protocol: proto, Port: uint16(*p.Port)})
		}
	}
	if len(s.Endpoints) == 0 {
		return out
	}
	out.Endpoints = make([]catalog.Endpoint, 0, len(s.Endpoints))
	var names strings.Builder // host and pod names of the whole slice: one allocation, not two an endpoint
	total := 0
	for i := range s.Endpoints {
		total += len(hostname(&s.Endpoints[i])) + len(podName(&s.Endpoints[i]))
	}
	names.Grow(total)
	share := func(s string) string {
		if s == "" {
			return ""
		}
		from := names.Len()
		names.WriteString(s)
		return names.String()[from:]
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		host, pod := share(hostname(e)), share(podName(e))
		// The API allows up to 100 addresses but defines no meaning for more
		// than the first, see catalog.Endpoint.Extra.
		for j, text := range e.Addresses {
			a, ok := addr(text)
			if !ok || a.Is6() != out.IPv6 {
				continue
			}
			ep := catalog.Endpoint{
				Addr:       a,
				Conditions: conditions(e.Conditions),
				Hints:      c.hintsOf(e.Hints),
				Hostname:   host,
				Pod:        pod,
				Extra:      j > 0,
			}
			if e.NodeName != nil {
				ep.Node = c.intern(*e.NodeName)
			}
			if e.Zone != nil {
				ep.Zone = c.intern(*e.Zone)
			}
			out.Endpoints = append(out.Endpoints, ep)
		}
	}
	return out
}

func hostname(e *discoveryv1.Endpoint) string {
	if e.Hostname == nil {
		return ""
	}
	return *e.Hostname
}

func podName(e *discoveryv1.Endpoint) string {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return e.TargetRef.Name
}

// conditions applies the API's defaults: ready nil is true, serving nil is as
// ready, terminating nil is false.
func conditions(c discoveryv1.EndpointConditions) catalog.Condition {
	var out catalog.Condition
	ready := c.Ready == nil || *c.Ready
	if ready {
		out |= catalog.Ready
	}
	if c.Serving == nil && ready || c.Serving != nil && *c.Serving {
		out |= catalog.Serving
	}
	if c.Terminating != nil && *c.Terminating {
		out |= catalog.Terminating
	}
	return out
}

func (c *converter) hintsOf(h *discoveryv1.EndpointHints) *catalog.Hints {
	if h == nil || len(h.ForZones)+len(h.ForNodes) == 0 {
		return nil
	}
	var zones, nodes []string
	for _, z := range h.ForZones {
		zones = append(zones, c.intern(z.Name))
	}
	for _, n := range h.ForNodes {
		nodes = append(nodes, c.intern(n.Name))
	}
	slices.Sort(zones)
	slices.Sort(nodes)
	key := strings.Join(zones, ",") + "/" + strings.Join(nodes, ",") // neither can occur in a name
	if known, ok := c.hints[key]; ok {
		return known
	}
	if len(c.hints) >= maxInterned {
		clear(c.hints)
	}
	out := &catalog.Hints{Zones: zones, Nodes: nodes}
	c.hints[key] = out
	return out
}

func (c *converter) namespace(n *corev1.Namespace) *catalog.Namespace {
	return &catalog.Namespace{Name: c.intern(n.Name), Labels: c.labels(n.Labels)}
}

func (c *converter) node(n *corev1.Node) *catalog.Node {
	out := &catalog.Node{
		Name:     c.intern(n.Name),
		Zone:     c.intern(n.Labels[corev1.LabelTopologyZone]),
		ByAgent:  n.Annotations[catalog.RegisteredByAgent] != "",
		Deleting: n.DeletionTimestamp != nil,
	}
	for _, a := range n.Status.Addresses {
		ip, ok := addr(a.Address)
		if !ok {
			continue
		}
		switch a.Type {
		case corev1.NodeInternalIP:
			out.InternalIPs = append(out.InternalIPs, ip)
		case corev1.NodeExternalIP:
			out.ExternalIPs = append(out.ExternalIPs, ip)
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p.Masked())
		}
	}
	for _, t := range n.Spec.Taints {
		out.ToBeDeleted = out.ToBeDeleted || t.Key == "ToBeDeletedByClusterAutoscaler"
	}
	return out
}

func (c *converter) pod(p *corev1.Pod) *catalog.Pod {
	out := &catalog.Pod{
		Namespace:   c.intern(p.Namespace),
		Name:        p.Name,
		Node:        c.intern(p.Spec.NodeName),
		HostNetwork: p.Spec.HostNetwork,
		Terminating: p.DeletionTimestamp != nil,
	}
	switch p.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown:
		out.Done = true
	}
	if c.keepLabels {
		out.Labels = maps.Clone(p.Labels)
	}
	for _, ip := range p.Status.PodIPs {
		if a, ok := addr(ip.IP); ok {
			out.IPs = append(out.IPs, a)
		}
	}
	if a, ok := addr(p.Status.PodIP); ok && len(out.IPs) == 0 {
		out.IPs = []netip.Addr{a}
	}
	return out
}
