package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/proxy/userspace"
)

// Config says how the agent works on this node.
type Config struct {
	Kubeconfig string
	NodeName   string
	// NodeIPs are this node's addresses, at most one per family; empty: those
	// that the default routes use.
	NodeIPs []netip.Addr
	// RunDir holds sockets, locks and the state of pods; DataDir the saved
	// catalogue.
	RunDir, DataDir string
	// Corefile is a path; empty means DefaultCorefile.
	Corefile string
	// ProxyConfig is the path of a KubeProxyConfiguration; empty means the
	// defaults, without kube-proxy's ports.
	ProxyConfig   string
	ClusterDomain string
	// ClusterDNS are the addresses that pods have in their resolv.conf, at most
	// one per family; NodeLocalDNS is a further one, the same on every node.
	// The agent answers on all of them.
	ClusterDNS   []netip.Addr
	NodeLocalDNS netip.Addr
	// ClusterCIDRs are the ranges of all pods of the cluster.
	ClusterCIDRs []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// PodCIDRs are the ranges of this node's pods; empty: what the Node object
	// says.
	PodCIDRs []netip.Prefix
	// Loopback does without privilege: services are served on their addresses
	// themselves, which must be of 127.0.0.0/8, and pods are plain processes
	// with the node's addresses.
	Loopback bool
	// NoCounters and CountBytes are as in proxy.Config.
	NoCounters, CountBytes bool
	Log                    *slog.Logger
}

// DefaultRunDir is where all commands look unless told otherwise.
const DefaultRunDir = "/run/rutter"

// DefaultConfig has the conventional ranges and addresses of a cluster.
func DefaultConfig() Config {
	return Config{
		RunDir:        DefaultRunDir,
		DataDir:       "/var/lib/rutter",
		ClusterDomain: "cluster.local",
		NodeLocalDNS:  netip.MustParseAddr("169.254.20.10"),
		ClusterCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}
}

// Complete fills in what can be found and checks the rest.
func (c *Config) Complete() error {
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host name (or set --node-name): %w", err)
		}
		c.NodeName = name
	}
	c.NodeName = strings.ToLower(strings.TrimSpace(c.NodeName)) // as the kubelet does
	c.Kubeconfig = kubeapi.Path(c.Kubeconfig, c.RunDir)
	if c.ClusterDNS == nil {
		c.ClusterDNS = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	}
	return Disjoint("--service-cidr", c.ServiceCIDRs, "--cluster-cidr", c.ClusterCIDRs)
}

// Disjoint says no if ranges of service addresses and of pods overlap, by the
// names of the flags that gave them.
func Disjoint(serviceFlag string, services []netip.Prefix, podFlag string, pods []netip.Prefix) error {
	for _, s := range services {
		for _, p := range pods {
			if s.Overlaps(p) {
				return fmt.Errorf("%s %s overlaps %s %s: service addresses and pods need ranges of their own", serviceFlag, s, podFlag, p)
			}
		}
	}
	return nil
}

func (c *Config) snapshot() string { return filepath.Join(c.DataDir, "catalogue") }

func (c *Config) localDNS() []netip.Addr {
	out := append([]netip.Addr(nil), c.ClusterDNS...)
	if c.Loopback {
		return append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if c.NodeLocalDNS.IsValid() {
		out = append(out, c.NodeLocalDNS)
	}
	return out
}

// DNSPort is where DNS is answered: 53, or 1053 for who may not listen there.
func (c *Config) DNSPort() uint16 {
	if c.Loopback && userspace.LowestPort() > 53 {
		return 1053
	}
	return 53
}
