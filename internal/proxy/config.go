package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/ipvs"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Config is what a Proxy is made with. The zero value of a field is its
// default, if not said otherwise.
type Config struct {
	// Node is the name of this node's Node object. Required.
	Node string
	// NodeIPs stand in for the Node object's addresses, at most one per family.
	NodeIPs []netip.Addr
	// Mode is one of the modes; empty: the best that this host can do.
	Mode string
	// ReplacesKubeProxy removes what kube-proxy left in the kernel, or this
	// proxy in another mode, once everything is in place.
	ReplacesKubeProxy bool
	// IPv4 and IPv6 are the families to program. Neither: those that this host
	// has.
	IPv4, IPv6 bool

	// IPVS are the options of mode ipvs.
	IPVS ipvs.Options

	MasqueradeAll bool
	// MasqueradeBit is the bit of the packet mark that tells packets to
	// masquerade. Nil: 14.
	MasqueradeBit *uint
	// Detect tells local pods from other sources. Use NodeCIDR to have the
	// node's pod CIDRs filled in.
	Detect   plan.Detector
	NodeCIDR bool
	// NodePortAddresses are CIDRs, or the single word primary (the default):
	// where node ports are served.
	NodePortAddresses []string
	// ServiceCIDRs are the ranges of cluster IPs; what is in them and belongs to
	// no service is dropped.
	ServiceCIDRs  []netip.Prefix
	NoExternalIPs bool
	// LocalhostNodePorts serves node ports on 127.0.0.1 too, if
	// NodePortAddresses include it. It sets net.ipv4.conf.all.route_localnet,
	// and keeps other hosts from reaching 127.0.0.0/8 by that (CVE-2020-8558).
	LocalhostNodePorts bool

	// NodeDNS are the addresses at which this node's DNS server answers itself,
	// UDP and TCP. They pass by connection tracking for as long as NodeDNSAlive
	// says true; then, within NodeDNSTimeout (3 s), the kernel treats them as
	// any other service address.
	NodeDNS      []netip.AddrPort
	NodeDNSAlive func() bool // nil: always
	// DNSService is whose endpoints then answer at those of NodeDNS that are no
	// cluster IP (kube-system/kube-dns).
	DNSService     catalog.ServiceName
	NodeDNSTimeout time.Duration

	// NoCounters switches the counting of connections by service and endpoint
	// off: a set lookup per new connection. CountBytes counts packets and bytes
	// too: one per packet.
	NoCounters, CountBytes bool

	// SyncPeriod is the time within which changes must be programmed for the
	// proxy to count as healthy, twice (30 s).
	SyncPeriod time.Duration
	// Event is called with what operators should see at an API object. It must
	// not wait. Nil: nobody is told.
	Event func(Event)

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: no metrics are exported
}

func (c *Config) complete() error {
	if c.Node == "" {
		return errors.New("proxy: the node's name is empty: set --hostname-override or the host's name")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MasqueradeBit == nil {
		bit := uint(14)
		c.MasqueradeBit = &bit
	}
	if *c.MasqueradeBit > 31 {
		return fmt.Errorf("proxy: masqueradeBit is %d: must be 0 to 31", *c.MasqueradeBit)
	}
	if c.Detect.Mode == plan.DetectNone && len(c.Detect.CIDRs) > 0 {
		c.Detect.Mode = plan.DetectCIDR
	}
	if c.DNSService == (catalog.ServiceName{}) {
		c.DNSService = catalog.ServiceName{Namespace: "kube-system", Name: "kube-dns"}
	}
	if c.SyncPeriod == 0 {
		c.SyncPeriod = 30 * time.Second
	}
	if c.NodeDNSTimeout == 0 {
		c.NodeDNSTimeout = 3 * time.Second
	}
	if !c.IPv4 && !c.IPv6 {
		c.IPv4, c.IPv6 = true, hostHasIPv6()
	}
	if len(c.NodePortAddresses) == 0 {
		c.NodePortAddresses = []string{"primary"}
	}
	for _, a := range c.NodePortAddresses {
		if a == "primary" {
			if len(c.NodePortAddresses) > 1 {
				return errors.New(`proxy: nodePortAddresses has "primary" beside CIDRs: give one or the other`)
			}
			continue
		}
		if _, err := netip.ParsePrefix(a); err != nil {
			return fmt.Errorf("proxy: nodePortAddresses: %q is neither a CIDR nor the word primary", a)
		}
	}
	return nil
}

// hostHasIPv6 tells whether the kernel has IPv6 and it is not switched off.
func hostHasIPv6() bool {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return false
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err != nil || strings.TrimSpace(string(off)) != "1"
}
