package proxy

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Where pods hang on a bridge, what they send each other passes by the tables
// unless the kernel is told otherwise: a reply from a pod to another one on the
// same bridge would keep the pod's address in the place of the service's, and
// be refused. And a bridge sends nothing back to the port that it came from,
// unless the port is told to.

// bridgeProblems tells, a line each, why services do not work between pods of
// this host that hang on a bridge with an address out of pods. filtered tells
// whether bridged packets of a family come into the tables.
func bridgeProblems(host *netlink.Handle, pods []netip.Prefix, filtered func(v6 bool) bool) ([]string, error) {
	links, err := host.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var problems []string
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		families, err := podFamilies(host, l, pods)
		if err != nil {
			return nil, err
		}
		for _, v6 := range families {
			if !filtered(v6) {
				problems = append(problems, fmt.Sprintf("pods on bridge %s cannot reach each other through a service: load br_netfilter and set %s=1", l.Attrs().Name, bridgeSetting(v6)))
			}
		}
		if len(families) == 0 || !filtered(families[0]) || l.Attrs().Promisc > 0 {
			continue // a promiscuous bridge sees to hairpins itself
		}
		var ports []string
		for _, port := range links {
			if port.Attrs().MasterIndex != l.Attrs().Index {
				continue
			}
			if info, err := host.LinkGetProtinfo(port); err == nil && !info.Hairpin {
				ports = append(ports, port.Attrs().Name)
			}
		}
		if len(ports) > 0 {
			slices.Sort(ports)
			problems = append(problems, fmt.Sprintf("pods behind %s of bridge %s cannot reach themselves through a service: set hairpin mode (bridge link set dev %s hairpin on; hairpinMode of the network plugin)",
				few(ports), l.Attrs().Name, ports[0]))
		}
	}
	return problems, nil
}

// podFamilies tells in which families a bridge has an address among the pods'.
func podFamilies(host *netlink.Handle, bridge netlink.Link, pods []netip.Prefix) (v6 []bool, err error) {
	addrs, err := host.AddrList(bridge, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", bridge.Attrs().Name, err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if ok && !slices.Contains(v6, addr.Is6()) && slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			v6 = append(v6, addr.Is6())
		}
	}
	return v6, nil
}

func bridgeSetting(v6 bool) string {
	if v6 {
		return "net.bridge.bridge-nf-call-ip6tables"
	}
	return "net.bridge.bridge-nf-call-iptables"
}

// bridgeFiltered tells whether bridged packets come into the tables.
func bridgeFiltered(v6 bool) bool {
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(bridgeSetting(v6), ".", "/"))
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

func few(names []string) string {
	if more := len(names) - 3; more > 0 {
		return fmt.Sprintf("%s and %d more ports", strings.Join(names[:3], ", "), more)
	}
	return strings.Join(names, ", ")
}

// warnOfBridges logs what bridgeProblems finds, each once.
func (p *Proxy) warnOfBridges() {
	problems, err := bridgeProblems(p.host, p.rulesNow.Detect.CIDRs, bridgeFiltered)
	if err != nil {
		p.log.Warn("cannot look for bridges that pods hang on", "err", err)
	}
	for _, text := range problems {
		if !slices.Contains(p.bridgesWarned, text) {
			p.bridgesWarned = append(p.bridgesWarned, text)
			p.log.Warn(text)
		}
	}
}
