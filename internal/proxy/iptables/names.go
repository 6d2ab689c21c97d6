package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/catalog"
)

// The chains are kube-proxy's, by name and meaning, so that who reads
// iptables-save finds what he knows.
const (
	servicesChain    = "KUBE-SERVICES"          // nat: every service address; filter: those without endpoints
	nodePortsChain   = "KUBE-NODEPORTS"         // nat: every node port; filter: health check node ports
	externalChain    = "KUBE-EXTERNAL-SERVICES" // filter: external addresses and node ports without endpoints
	firewallChain    = "KUBE-PROXY-FIREWALL"    // filter: what source ranges left over
	forwardChain     = "KUBE-FORWARD"           // filter
	postroutingChain = "KUBE-POSTROUTING"       // nat: masquerades what is marked
	markChain        = "KUBE-MARK-MASQ"         // nat: marks
	kubeletChain     = "KUBE-FIREWALL"          // filter: kubelet's too, so it is not removed where one runs
	canaryChain      = "KUBE-PROXY-CANARY"      // nat, filter, mangle: empty; gone when somebody flushes
)

// The prefixes of the chains of one service port or endpoint.
const (
	clusterPrefix  = "KUBE-SVC-" // balances over all endpoints
	localPrefix    = "KUBE-SVL-" // balances over those of this node
	outsidePrefix  = "KUBE-EXT-" // what comes by an external front end
	sourcesPrefix  = "KUBE-FW-"  // source ranges of a load balancer's address
	endpointPrefix = "KUBE-SEP-" // one endpoint
)

// isServiceChain tells chains of services from others.
func isServiceChain(name string) bool {
	return slices.ContainsFunc([]string{clusterPrefix, localPrefix, outsidePrefix, sourcesPrefix, endpointPrefix},
		func(p string) bool { return strings.HasPrefix(name, p) })
}

// hash makes a chain's name unique: a name has at most 28 characters.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base32.StdEncoding.EncodeToString(sum[:10]) // 16 characters
}

// portName is how a service port is called in comments: ns/name:port.
func portName(name catalog.ServiceName, port string) string {
	s := name.Namespace + "/" + name.Name
	if port != "" {
		s += ":" + port
	}
	return s
}

func endpointChain(port, protocol string, ep netip.AddrPort) string {
	return endpointPrefix + hash(port+protocol+ep.String())
}

func protocolName(p catalog.Protocol) string {
	switch p {
	case catalog.UDP:
		return "udp"
	case catalog.SCTP:
		return "sctp"
	}
	return "tcp"
}
