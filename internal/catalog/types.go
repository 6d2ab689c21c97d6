package catalog

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Kind is a set of object kinds.
type Kind uint8

// The kinds a catalogue can hold.
const (
	Services Kind = 1 << iota
	EndpointSlices
	Namespaces
	Nodes
	Pods
)

var kindNames = [...]string{"services", "endpointslices", "namespaces", "nodes", "pods"}

// String lists the kinds by their API resource names, separated by commas.
func (k Kind) String() string {
	var names []string
	for i, n := range kindNames {
		if k&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// ServiceName identifies a service. Both strings come from the API server,
// which admits only DNS labels (RFC 1035, lower case).
type ServiceName struct{ Namespace, Name string }

func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols a service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the name the Kubernetes API uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "unknown"
}

// MarshalText writes the name.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the name.
func (p *Protocol) UnmarshalText(text []byte) error {
	for _, known := range []Protocol{TCP, UDP, SCTP} {
		if known.String() == string(text) {
			*p = known
			return nil
		}
	}
	return fmt.Errorf("protocol %q: want TCP, UDP or SCTP", text)
}

// ServiceType is spec.type of a Service.
type ServiceType uint8

// The service types, in the API's order of capability.
const (
	ClusterIP ServiceType = iota
	NodePort
	LoadBalancer
	ExternalName
)

// String is the name the Kubernetes API uses.
func (t ServiceType) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}[t]
}

// Service is a Kubernetes Service reduced to what discovery and load balancing
// need.
type Service struct {
	Name ServiceName
	Type ServiceType
	// Headless is spec.clusterIP: None.
	Headless bool
	// ClusterIPs holds at most one address per family, the primary first;
	// empty for headless and ExternalName services.
	ClusterIPs   []netip.Addr
	Ports        []ServicePort
	ExternalName string
	ExternalIPs  []netip.Addr
	// LoadBalancer lists status.loadBalancer.ingress.
	LoadBalancer []Ingress
	// SourceRanges is spec.loadBalancerSourceRanges, host bits cleared.
	SourceRanges []netip.Prefix
	// AffinityTimeout is zero without session affinity by client IP.
	AffinityTimeout time.Duration
	// InternalLocal and ExternalLocal are the traffic policies: true for Local.
	InternalLocal, ExternalLocal bool
	HealthCheckNodePort          uint16
	PublishNotReady              bool
	// Selected tells that the service has a selector: its slices are written
	// by a controller, and follow the service within moments.
	Selected bool
	// ProxyName is the label service.kubernetes.io/service-proxy-name. A
	// service that has it belongs to another proxy, but is in DNS all the same.
	ProxyName string
	// Labels is kept only when the source was asked to (a DNS server that
	// selects by label needs them); nil otherwise.
	Labels map[string]string
}

// HasClusterIP tells whether the service has a virtual IP.
func (s *Service) HasClusterIP() bool { return len(s.ClusterIPs) > 0 }

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 when none is allocated
}

// Ingress is one entry of a load balancer's status.
type Ingress struct {
	Addr     netip.Addr // invalid for a host name
	Hostname string
	// Proxy is ipMode: Proxy: traffic must go through the real load balancer.
	Proxy bool
}

// EndpointSlice is one slice of a service's endpoints: all of one address
// family and with one list of ports.
type EndpointSlice struct {
	Namespace, Name string
	Service         string // label kubernetes.io/service-name
	IPv6            bool
	Headless        bool // label service.kubernetes.io/headless: not for service proxies
	Ports           []EndpointPort
	Endpoints       []Endpoint
	// ChangeTriggered is the annotation
	// endpoints.kubernetes.io/last-change-trigger-time, zero when absent. The
	// network programming SLI is measured from it.
	ChangeTriggered time.Time
	// Labels is kept under the same condition as Service.Labels.
	Labels map[string]string
}

// EndpointPort is one port of a slice. The API requires a number and a name
// (which may be empty); ports that lack one are not kept.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Condition is a set of endpoint conditions, defaults already applied
// (ready: true, serving: as ready, terminating: false).
type Condition uint8

// The conditions of an endpoint.
const (
	Ready Condition = 1 << iota
	Serving
	Terminating
)

// Endpoint is one address of a slice. Strings that repeat over endpoints (node,
// zone, hints) are interned, the rest share one backing string per slice.
type Endpoint struct {
	Addr       netip.Addr
	Hostname   string // empty when the endpoint has no name of its own
	Pod        string // name of the target pod, empty when it is none
	Node       string
	Zone       string
	Hints      *Hints // nil when there are none
	Conditions Condition
	// Extra marks the second and further addresses of one API endpoint.
	// kube-proxy uses only the first; CoreDNS has records for all.
	Extra bool
}

// Ready tells whether the endpoint takes new traffic.
func (e *Endpoint) Ready() bool { return e.Conditions&Ready != 0 }

// Serving tells whether the endpoint answers, be it terminating or not.
func (e *Endpoint) Serving() bool { return e.Conditions&Serving != 0 }

// Terminating tells whether the endpoint is going away.
func (e *Endpoint) Terminating() bool { return e.Conditions&Terminating != 0 }

// Hints names the zones and nodes that should use an endpoint (KEP-2433,
// KEP-3015). Equal hints are one value.
type Hints struct {
	Zones, Nodes []string
}

// RegisteredByAgent is the annotation behind Node.ByAgent.
const RegisteredByAgent = "rutter.io/registered-by"

// Namespace is a Kubernetes Namespace.
type Namespace struct {
	Name   string
	Labels map[string]string // kept as Service.Labels is
}

// Node is a Kubernetes Node reduced to what routing to it needs.
type Node struct {
	Name        string
	Zone        string       // label topology.kubernetes.io/zone
	InternalIPs []netip.Addr // status.addresses of type InternalIP, in order
	ExternalIPs []netip.Addr
	PodCIDRs    []netip.Prefix
	// ByAgent tells that Rutter's agent registered the node: no kubelet cares
	// for its pods and their network.
	ByAgent  bool
	Deleting bool
	// ToBeDeleted is the cluster autoscaler's taint (KEP-3836).
	ToBeDeleted bool
}

// Pod is a Kubernetes Pod reduced to its identity and addresses.
type Pod struct {
	Namespace, Name string
	Node            string
	IPs             []netip.Addr // status.podIPs, the primary first
	HostNetwork     bool
	Terminating     bool
	// Done is phase Succeeded, Failed or Unknown: the address may already
	// belong to another pod.
	Done   bool
	Labels map[string]string // kept as Service.Labels is
}
