// Package zone holds the records of one zone and finds what answers a question
// (RFC 1034 §4.3.2, RFC 4592, RFC 6672, RFC 4035 for zones that are signed).
//
// A Zone does not change once it is parsed; a new version is a new Zone.
package zone

import (
	"bytes"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Zone is one version of a zone.
type Zone struct {
	Origin string // lower case, fully qualified
	SOA    *dns.SOA

	origin string // in wire form
	labels int    // of the origin
	apex   *node
	// nodes are the names that exist, by their wire form in lower case: those
	// with records and those that only have names below them.
	nodes map[string]*node
	// secured are the nodes that have NSEC records, in canonical order.
	secured []*node
}

// node is one name of a zone.
type node struct {
	name   string // wire form, lower case
	sets   map[uint16][]dns.RR
	packed map[uint16]*packed // see direct.go
}

func (n *node) rrs(t uint16) []dns.RR {
	if n == nil {
		return nil
	}
	return n.sets[t]
}

// signed returns the records of type t, with their signatures if do.
func (n *node) signed(t uint16, do bool) []dns.RR {
	list := slices.Clone(n.rrs(t))
	if do {
		list = append(list, n.signatures(t)...)
	}
	return list
}

func (n *node) signatures(t uint16) []dns.RR {
	var list []dns.RR
	for _, rr := range n.rrs(dns.TypeRRSIG) {
		if sig, ok := rr.(*dns.RRSIG); ok && sig.TypeCovered == t {
			list = append(list, rr)
		}
	}
	return list
}

// wireName packs a name and puts it in lower case; ok is false when it is none.
func wireName(name string) (wire string, ok bool) {
	var buf [256]byte
	n, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	if err != nil {
		return "", false
	}
	return lower(buf[:n]), true
}

// lower returns a name in lower case. Length octets are at most 63 and so no
// letters.
func lower(wire []byte) string {
	b := bytes.Clone(wire)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// parent is the name without its first label.
func parent(wire string) string { return wire[1+int(wire[0]):] }

// within tells whether a name is the zone's origin or below it.
func (z *Zone) within(wire string) bool {
	for {
		if wire == z.origin {
			return true
		}
		if len(wire) <= len(z.origin) {
			return false
		}
		wire = parent(wire)
	}
}

// Has tells whether a name (wire form, lower case) exists in the zone.
func (z *Zone) Has(wire []byte) bool { return z.nodes[string(wire)] != nil }

// Records returns the number of records.
func (z *Zone) Records() int {
	n := 0
	for _, nd := range z.nodes {
		for _, set := range nd.sets {
			n += len(set)
		}
	}
	return n
}

// compare orders names canonically (RFC 4034 §6.1): by labels from the right.
func compare(a, b string) int {
	la, lb := labelsOf(a), labelsOf(b)
	for i := 1; i <= min(len(la), len(lb)); i++ {
		if c := strings.Compare(la[len(la)-i], lb[len(lb)-i]); c != 0 {
			return c
		}
	}
	return len(la) - len(lb)
}

func labelsOf(wire string) []string {
	var list []string
	for len(wire) > 0 && wire[0] != 0 {
		n := 1 + int(wire[0])
		list = append(list, wire[1:n])
		wire = wire[n:]
	}
	return list
}
