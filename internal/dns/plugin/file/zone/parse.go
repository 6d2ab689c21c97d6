package zone

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/miekg/dns"
)

// Parse reads a master file (RFC 1035 §5, with $TTL, $GENERATE and $INCLUDE).
// The path is for errors and for files that it includes.
func Parse(r io.Reader, origin, path string) (*Zone, error) {
	z := &Zone{Origin: strings.ToLower(dns.Fqdn(origin)), nodes: make(map[string]*node)}
	var ok bool
	if z.origin, ok = wireName(z.Origin); !ok {
		return nil, fmt.Errorf("zone %q is no domain name", origin)
	}
	z.labels = dns.CountLabel(z.Origin)
	z.apex = z.node(z.origin)
	zp := dns.NewZoneParser(r, z.Origin, path)
	zp.SetIncludeAllowed(true)
	seen := make(map[string]bool)
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		if err := z.add(rr, seen); err != nil {
			return nil, fmt.Errorf("zone file %s: %w", path, err)
		}
	}
	if err := zp.Err(); err != nil {
		// The parser begins its errors with the path or with its own name.
		text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), path+": "), "dns: ")
		return nil, fmt.Errorf("zone file %s: %s", path, text)
	}
	if z.SOA == nil {
		return nil, fmt.Errorf("zone file %s: there is no SOA record for %s", path, z.Origin)
	}
	z.finish()
	return z, nil
}

// errNSEC3 is for zones signed with NSEC3, which are not served: denials would
// have to be made of hashes.
var errNSEC3 = errors.New("NSEC3 zones are not supported; sign it with NSEC")

// add puts a record into the zone. The caller's seen remembers which are there.
func (z *Zone) add(rr dns.RR, seen map[string]bool) error {
	h := rr.Header()
	wire, ok := wireName(h.Name)
	if !ok {
		return fmt.Errorf("%q is no domain name", h.Name)
	}
	if h.Rrtype != dns.TypeSRV { // service names keep their spelling, as in CoreDNS
		h.Name = canonical(wire)
	}
	switch rr := rr.(type) {
	case *dns.NSEC3, *dns.NSEC3PARAM:
		return errNSEC3
	case *dns.SOA:
		rr.Ns, rr.Mbox = strings.ToLower(rr.Ns), strings.ToLower(rr.Mbox)
		if wire != z.origin {
			return fmt.Errorf("SOA record for %s in the zone %s", h.Name, z.Origin)
		}
		z.SOA = rr
		z.apex.sets[dns.TypeSOA] = []dns.RR{rr}
		return nil
	case *dns.NS:
		rr.Ns = strings.ToLower(rr.Ns)
	case *dns.CNAME:
		rr.Target = strings.ToLower(rr.Target)
	case *dns.MX:
		rr.Mx = strings.ToLower(rr.Mx)
	case *dns.SVCB:
		rr.Target = strings.ToLower(rr.Target)
	case *dns.HTTPS:
		rr.Target = strings.ToLower(rr.Target)
	}
	key := wire + rr.String()[len(h.String()):] + dns.Type(h.Rrtype).String()
	if seen[key] {
		return nil // a set has no record twice (RFC 2181 §5)
	}
	seen[key] = true
	n := z.node(wire)
	n.sets[h.Rrtype] = append(n.sets[h.Rrtype], rr)
	return nil
}

// node returns the node of a name, made with all names between it and the
// origin: those exist too (RFC 4592 §2.2.2).
func (z *Zone) node(wire string) *node {
	n := z.nodes[wire]
	if n != nil {
		return n
	}
	n = &node{name: wire, sets: make(map[uint16][]dns.RR)}
	z.nodes[wire] = n
	if wire != z.origin && z.within(wire) {
		z.node(parent(wire))
	}
	return n
}

// canonical is the text of a name in wire form.
func canonical(wire string) string {
	name, _, err := dns.UnpackDomainName([]byte(wire), 0)
	if err != nil {
		return "." // wire came from a packed name
	}
	return name
}
