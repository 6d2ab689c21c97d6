package up

import (
	"fmt"
	"net/netip"
)

// ClusterDNS is the conventional DNS address of each service range: its tenth
// (kubeadm, and most who followed it).
func ClusterDNS(ranges []netip.Prefix) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, r := range ranges {
		a := r.Masked().Addr()
		for range 10 {
			a = a.Next()
		}
		if !r.Contains(a) {
			return nil, fmt.Errorf("--service-cidr %s is too small to hold a DNS address; use at least a /28 (IPv4) or /124 (IPv6), or set --cluster-dns", r)
		}
		out = append(out, a)
	}
	return out, nil
}
