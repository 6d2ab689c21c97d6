// Package plan decides what a node must hold for a service: which addresses
// are captured, which endpoints they lead to, and what traffic without
// endpoints gets. It is pure: the same catalogue entry and the same node give
// the same plan. Dataplanes make the kernel hold a plan; Table walks a packet
// through one, and says why.
//
// The semantics are kube-proxy's (v1.36).
package plan

import (
	"net/netip"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// Node is what a plan depends on besides the service itself.
type Node struct {
	Name string
	Zone string // label topology.kubernetes.io/zone
	// IPs are the node's own addresses, at most one per family.
	IPs []netip.Addr
}

// IP returns the node's address of a family; it is invalid if there is none.
func (n *Node) IP(v6 bool) netip.Addr {
	for _, a := range n.IPs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Options are the operator's choices that change what is captured.
type Options struct {
	// NoExternalIPs ignores spec.externalIPs (feature gate
	// AllowServiceExternalIPs off; CVE-2020-8554).
	NoExternalIPs bool
}

// Service is what a node must hold for one service.
type Service struct {
	Name catalog.ServiceName
	// Ports has one entry per service port and address family, in the order of
	// the Service's ports, IPv4 first.
	Ports []Port
	// LocalAddrs are the addresses of endpoints on this node that a port leads
	// to, without repetition: traffic from one of them to itself must be
	// masqueraded.
	LocalAddrs []netip.Addr
	// HealthCheck is nil unless the service has a health check node port.
	HealthCheck *HealthCheck
	// Skipped tells which parts of the service were left out.
	Skipped []Skip
}

// HealthCheck is what a healthCheckNodePort server answers with.
type HealthCheck struct {
	NodePort uint16
	// Local counts the distinct addresses of ready endpoints on this node, by
	// family: IPv4, IPv6.
	Local [2]int
	// Families tells in which families the service has an address.
	Families [2]bool
}

// Skip names a part of a service that is not programmed.
type Skip struct {
	What   string // the part, as a field path or an address
	Reason Reason
}

// Port is a service port in one address family.
type Port struct {
	Name     string
	Protocol catalog.Protocol
	// ClusterIP identifies the port within its family and protocol, whatever
	// front end traffic comes in by.
	ClusterIP netip.AddrPort
	NodePort  uint16 // 0 when there is none
	External  []External
	// InternalLocal and ExternalLocal are the traffic policies: true for Local.
	// ExternalLocal is false on a port without external front ends.
	InternalLocal, ExternalLocal bool
	Affinity                     time.Duration // 0 for none
	// Cluster and Local are the endpoints that traffic is spread over, sorted,
	// without repetition. A list that no front end uses is nil.
	Cluster, Local []netip.AddrPort
	// Usable tells whether any endpoint in the cluster could take the traffic.
	// It decides between refusing and dropping when Local is empty.
	Usable bool
	// Serving are all endpoints that may still answer, ready or terminating,
	// whatever policy and topology say; only for UDP and SCTP, whose flows must
	// be cleaned when the endpoint they go to is gone.
	Serving []netip.AddrPort
}

// Is6 tells the port's address family.
func (p *Port) Is6() bool { return p.ClusterIP.Addr().Is6() }

// ExternallyAccessible tells whether the port has a front end besides its
// cluster IP.
func (p *Port) ExternallyAccessible() bool { return p.NodePort != 0 || len(p.External) > 0 }

// Internal is the list that traffic to the cluster IP is spread over.
func (p *Port) Internal() []netip.AddrPort {
	if p.InternalLocal {
		return p.Local
	}
	return p.Cluster
}

// External is a front end of a port besides cluster IP and node port.
type External struct {
	Addr netip.Addr
	// LoadBalancer tells an address of the load balancer's status from one of
	// spec.externalIPs.
	LoadBalancer bool
	// Sources limits who may connect: nil for everybody. Prefixes do not
	// overlap.
	Sources []netip.Prefix
}

// Verdict is what happens to a packet.
type Verdict uint8

// The verdicts.
const (
	// Pass: the packet is none of the proxy's business.
	Pass Verdict = iota
	// Forward: it goes to one of the endpoints.
	Forward
	// Reject: refused at once with ICMP port unreachable.
	Reject
	// Drop: silence, so that a load balancer's health check, not the client,
	// notices.
	Drop
	// Local: a DNS server on this node answers.
	Local
)

func (v Verdict) String() string {
	return [...]string{"pass", "forward", "reject", "drop", "local"}[v]
}

// Reason says why a packet gets its verdict or why a part of a service is not
// programmed.
type Reason string

// The reasons.
const (
	ReasonNotAService         Reason = "not-a-service"
	ReasonClusterIP           Reason = "cluster-ip"
	ReasonNodePort            Reason = "node-port"
	ReasonExternalIP          Reason = "external-ip"
	ReasonLoadBalancer        Reason = "load-balancer-ip"
	ReasonNoEndpoints         Reason = "no-endpoints"
	ReasonNoLocalEndpoints    Reason = "no-local-endpoints"
	ReasonLocalPolicy         Reason = "traffic-policy-local"
	ReasonShortCircuit        Reason = "local-policy-short-circuit"
	ReasonSourceRange         Reason = "source-not-in-range"
	ReasonUnknownPort         Reason = "no-such-port"
	ReasonUnallocated         Reason = "unallocated-cluster-ip"
	ReasonAffinity            Reason = "session-affinity"
	ReasonNodeDNS             Reason = "node-local-dns"
	ReasonMasqueradeAll       Reason = "masquerade-all"
	ReasonMasqueradeOff       Reason = "masquerade-off-cluster-source"
	ReasonMasqueradeExternal  Reason = "masquerade-external"
	ReasonMasqueradeNode      Reason = "masquerade-node-source"
	ReasonHairpin             Reason = "masquerade-hairpin"
	ReasonExternalName        Reason = "external-name"
	ReasonHeadless            Reason = "headless"
	ReasonNoClusterIP         Reason = "no-cluster-ip"
	ReasonOtherProxy          Reason = "other-service-proxy"
	ReasonNoPorts             Reason = "no-ports"
	ReasonDuplicate           Reason = "duplicate"
	ReasonConflict            Reason = "claimed-by-another-service"
	ReasonUnsupportedProtocol Reason = "unsupported-protocol"
	ReasonInvalidAddress      Reason = "invalid-address"
	ReasonIPModeProxy         Reason = "ip-mode-proxy"
	ReasonDisabled            Reason = "disabled-by-configuration"
)
