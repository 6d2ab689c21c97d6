package zone

import (
	"slices"

	"github.com/miekg/dns"
)

// finish prepares what lookups need beside the nodes.
func (z *Zone) finish() {
	for _, n := range z.nodes {
		if len(n.rrs(dns.TypeNSEC)) > 0 {
			z.secured = append(z.secured, n)
		}
	}
	slices.SortFunc(z.secured, func(a, b *node) int { return compare(a.name, b.name) })
	z.pack()
}

// before returns the last secured node that is not after name: its NSEC record
// says that name, or a type at it, does not exist. Nil in a zone that is not
// signed.
func (z *Zone) before(name string) *node {
	i, found := slices.BinarySearchFunc(z.secured, name, func(n *node, name string) int { return compare(n.name, name) })
	if found {
		return z.secured[i]
	}
	if i == 0 {
		return nil
	}
	return z.secured[i-1]
}

// deny adds the proof that name does not exist, and that no wildcard at
// encloser could have stood for it; encloser may be empty (RFC 4035 §3.1.3).
func (z *Zone) deny(ns []dns.RR, name, encloser string) []dns.RR {
	p := z.before(name)
	if p == nil {
		return ns
	}
	ns = append(ns, p.signed(dns.TypeNSEC, true)...)
	if encloser == "" {
		return ns
	}
	if w := z.before("\x01*" + encloser); w != nil && w != p {
		ns = append(ns, w.signed(dns.TypeNSEC, true)...)
	}
	return ns
}
