package proxy

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// node is what is known of this node: from its Node object, and where there is
// none, from the configuration.
func (p *Proxy) node() plan.Node {
	n := plan.Node{Name: p.cfg.Node}
	var object []netip.Addr
	if o := p.cat.Node(p.cfg.Node); o != nil {
		n.Zone = o.Zone
		object = append(slices.Clone(o.InternalIPs), o.ExternalIPs...)
	}
	for _, v6 := range []bool{false, true} {
		for _, a := range append(slices.Clone(p.cfg.NodeIPs), object...) {
			if a = a.Unmap(); a.IsValid() && a.Is6() == v6 {
				n.IPs = append(n.IPs, a)
				break
			}
		}
	}
	return n
}

// rules is what holds for all services, as the node is now.
func (p *Proxy) rules(n plan.Node) (plan.Rules, error) {
	r := plan.Rules{
		MasqueradeAll: p.cfg.MasqueradeAll,
		Detect:        p.cfg.Detect,
		ServiceCIDRs:  p.serviceCIDRs,
		NodeDNS:       p.cfg.NodeDNS,

		LocalhostNodePorts: p.cfg.LocalhostNodePorts,
	}
	if p.cfg.NodeCIDR {
		r.Detect = plan.Detector{Mode: plan.DetectCIDR}
		if o := p.cat.Node(p.cfg.Node); o != nil {
			r.Detect.CIDRs = o.PodCIDRs
		}
	}
	addrs, err := p.nodePortAddrs(p.cfg.NodePortAddresses, n)
	r.NodePortAddrs = addrs
	return r, err
}

// nodePortAddrs are the addresses that node ports are served on; nil means all
// but loopback.
func (p *Proxy) nodePortAddrs(spec []string, n plan.Node) ([]netip.Addr, error) {
	if slices.Equal(spec, []string{"primary"}) {
		return slices.DeleteFunc(append([]netip.Addr{}, n.IPs...), netip.Addr.IsLoopback), nil
	}
	var wanted []netip.Prefix
	all := [2]bool{true, true} // a family without a CIDR has no restriction
	for _, s := range spec {
		c, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, c)
		if c.Bits() != 0 {
			all[familyIndex(c.Addr())] = false
		}
	}
	if all[0] && all[1] {
		return nil, nil
	}
	local, err := p.localAddrs()
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{}
	for _, a := range local {
		if a.IsLoopback() {
			continue // see LocalhostNodePorts
		}
		if all[familyIndex(a)] || slices.ContainsFunc(wanted, func(c netip.Prefix) bool { return c.Contains(a) }) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

func familyIndex(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// localAddrs are the addresses of this host's interfaces, sorted.
func (p *Proxy) localAddrs() ([]netip.Addr, error) {
	list, err := p.host.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// nodeChanged tells whether a change concerns this node.
func (p *Proxy) nodeChanged(ch *catalog.Changes) bool { return slices.Contains(ch.Nodes, p.cfg.Node) }

// localhostNodePorts lets packets from 127.0.0.0/8 leave the loopback
// interface, which node ports there need.
func (p *Proxy) localhostNodePorts() {
	if !p.cfg.LocalhostNodePorts || !p.cfg.IPv4 {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0); err != nil {
		p.log.Warn("node ports are not served on 127.0.0.1", "err", err)
	}
}
