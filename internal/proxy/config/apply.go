package config

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/ipvs"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Proxy makes of a valid configuration what package proxy understands. Node,
// families, logger and metrics are the caller's to fill in.
func (c *Config) Proxy() proxy.Config {
	all, bit, period, _, _ := c.block()
	mark := uint(*bit)
	out := proxy.Config{
		ReplacesKubeProxy: true,
		MasqueradeAll:     all,
		MasqueradeBit:     &mark,
		NodePortAddresses: c.NodePortAddresses,
		SyncPeriod:        period.Value(),
		IPVS: ipvs.Options{
			Scheduler:     c.IPVS.Scheduler,
			StrictARP:     c.IPVS.StrictARP,
			SyncPeriod:    c.IPVS.SyncPeriod.Value(),
			TCPTimeout:    c.IPVS.TCPTimeout.Value(),
			TCPFinTimeout: c.IPVS.TCPFinTimeout.Value(),
			UDPTimeout:    c.IPVS.UDPTimeout.Value(),
		},
	}
	for _, s := range c.IPVS.ExcludeCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.IPVS.ExcludeCIDRs = append(out.IPVS.ExcludeCIDRs, p.Masked())
		}
	}
	if slices.Contains(proxy.Modes(), c.Mode) {
		out.Mode = c.Mode
	}
	if len(out.NodePortAddresses) == 0 {
		// In the modes where nothing means everywhere.
		out.NodePortAddresses = []string{"0.0.0.0/0", "::/0"}
	}
	if (c.Mode == ModeIPTables || c.Mode == "") && *c.IPTables.LocalhostNodePorts {
		out.LocalhostNodePorts = slices.ContainsFunc(out.NodePortAddresses, func(s string) bool {
			p, err := netip.ParsePrefix(s)
			return err == nil && p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		})
	}
	if on, set := c.FeatureGates["AllowServiceExternalIPs"]; set {
		out.NoExternalIPs = !on
	}
	if a, err := netip.ParseAddr(c.BindAddress); err == nil && !a.IsUnspecified() {
		out.NodeIPs = []netip.Addr{a}
	}
	switch c.DetectLocalMode {
	case LocalByClusterCIDR:
		out.Detect.Mode = plan.DetectCIDR
		for _, part := range strings.Split(c.ClusterCIDR, ",") {
			if p, err := netip.ParsePrefix(strings.TrimSpace(part)); err == nil {
				out.Detect.CIDRs = append(out.Detect.CIDRs, p.Masked())
			}
		}
	case LocalByNodeCIDR:
		out.NodeCIDR = true
	case LocalByBridge:
		out.Detect = plan.Detector{Mode: plan.DetectInterface, Interface: c.DetectLocal.BridgeInterface}
	case LocalByPrefix:
		out.Detect = plan.Detector{Mode: plan.DetectInterfacePrefix, Interface: c.DetectLocal.InterfaceNamePrefix}
	}
	return out
}
