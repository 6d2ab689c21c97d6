package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// parseRanges reads one range, or two of different families.
func parseRanges(flag, s string, check func(netip.Prefix) error) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s: %q is not an address range; give one such as 10.96.0.0/16", flag, part)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s: %s has host bits set; did you mean %s?", flag, part, p.Masked())
		}
		if a := p.Addr(); a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
			return nil, fmt.Errorf("%s: %s is not a range of unicast addresses; give one such as 10.96.0.0/16", flag, p)
		}
		if err := check(p); err != nil {
			return nil, fmt.Errorf("%s: %s %w", flag, p, err)
		}
		out = append(out, p)
	}
	switch {
	case len(out) > 2:
		return nil, fmt.Errorf("%s has %d ranges; give one, or one IPv4 and one IPv6 range", flag, len(out))
	case len(out) == 2 && out[0].Addr().Is6() == out[1].Addr().Is6():
		return nil, fmt.Errorf("%s has two ranges of one family (%s, %s); for dual stack give one IPv4 and one IPv6 range", flag, out[0], out[1])
	}
	return out, nil
}

// checkServiceRange follows the API server: at least 8 addresses
// (pkg/controlplane/apiserver/options, ServiceIPRange), IPv6 no larger than
// /64 (pkg/registry/core/service/ipallocator, NewIPAllocator). Loopback ranges
// are allowed: they serve userspace mode.
func checkServiceRange(p netip.Prefix) error {
	if p.Addr().BitLen()-p.Bits() < 3 {
		return errors.New("is too small; a service range needs at least 8 addresses (/29 or /125)")
	}
	if p.Addr().Is6() && p.Bits() < 64 {
		return errors.New("is too large; the API server allocates from IPv6 ranges of /64 or smaller, such as /108")
	}
	return nil
}

// checkPodRange makes sure that NodeMask has an answer for the range.
func checkPodRange(p netip.Prefix) error {
	switch {
	case p.Addr().IsLoopback():
		return errors.New("is loopback; pod addresses become endpoint addresses, and those may not be loopback")
	case p.Addr().Is4() && p.Bits() > 24:
		return errors.New("is too small; each node gets a /24 out of it, so it must be /24 or larger")
	case p.Addr().Is6() && p.Bits() > 112:
		return errors.New("is too small; it must be /112 or larger")
	}
	return nil
}

// checkTogether compares service and pod ranges.
func checkTogether(services, pods []netip.Prefix) error {
	for _, s := range services {
		for _, p := range pods {
			if s.Overlaps(p) {
				return fmt.Errorf("--service-cidr %s and --pod-cidr %s overlap; a cluster IP could then also be a pod's address, choose disjoint ranges", s, p)
			}
		}
	}
	if services[0].Addr().Is6() != pods[0].Addr().Is6() {
		return fmt.Errorf("--service-cidr begins with %s and --pod-cidr with %s; put the same IP family first in both", services[0], pods[0])
	}
	return nil
}

// defaultPodCIDRs gives each family of the service ranges a default pod range,
// in the same order.
func defaultPodCIDRs(services []netip.Prefix) string {
	var out []string
	for _, s := range services {
		if s.Addr().Is6() {
			out = append(out, defaultPodCIDR6)
		} else {
			out = append(out, defaultPodCIDR4)
		}
	}
	return strings.Join(out, ",")
}

// NodeMask is the prefix length of the part of pods that each node gets.
// IPv4: /24, as everywhere. IPv6: /64 where it fits (RFC 4291 section 2.5.1),
// else 256 addresses' worth below it; the allocator's bitmap holds at most
// 2^16 nodes (pkg/controller/nodeipam/ipam/cidrset, clusterSubnetMaxDiff).
func NodeMask(pods netip.Prefix) int {
	switch bits := pods.Bits(); {
	case pods.Addr().Is4():
		return 24
	case bits < 48:
		return bits + 16
	case bits <= 56:
		return 64
	default:
		return bits + 8
	}
}

// FirstAddr is the first usable address of a service range: the address of
// the `kubernetes` Service.
func FirstAddr(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }
