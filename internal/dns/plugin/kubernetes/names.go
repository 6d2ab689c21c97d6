package kubernetes

import (
	"net/netip"
	"strings"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// hostname returns the label of an endpoint: its host name, with
// endpoint_pod_names its pod's name, else its address with dashes. The buffer
// takes the address.
func (k *Kubernetes) hostname(ep *catalog.Endpoint, buf *[64]byte) (name string, dashed []byte) {
	switch {
	case ep.Hostname != "":
		return ep.Hostname, nil
	case k.endpointPodNames && ep.Pod != "" && len(ep.Pod) < 64:
		return ep.Pod, nil
	}
	b := ep.Addr.AppendTo(buf[:0])
	for i, c := range b {
		if c == '.' || c == ':' {
			b[i] = '-'
		}
	}
	if b[len(b)-1] == '-' { // a label must not end in a dash (RFC 1123)
		b = append(b, '0')
	}
	return "", b
}

// named tells whether the endpoint has the label, which is in lower case.
func (k *Kubernetes) named(ep *catalog.Endpoint, label []byte) bool {
	var buf [64]byte
	name, dashed := k.hostname(ep, &buf)
	if dashed != nil {
		return string(dashed) == string(label)
	}
	return len(name) == len(label) && (name == string(label) || strings.EqualFold(name, string(label)))
}

// appendEndpoint appends the labels of EP.SVC.NS.svc, or of SVC.NS.svc when ep
// is nil; the zone is still to follow.
func (k *Kubernetes) appendEndpoint(b []byte, s *slot, ep *catalog.Endpoint) []byte {
	if ep != nil {
		var buf [64]byte
		name, dashed := k.hostname(ep, &buf)
		if dashed != nil {
			b = append(b, byte(len(dashed)))
			b = append(b, dashed...)
		} else {
			// The name of a pod may be several labels.
			for more := true; more; {
				var label string
				label, name, more = strings.Cut(name, ".")
				b = appendLabel(b, label)
			}
		}
	}
	b = appendLabel(b, s.name.Name)
	b = appendLabel(b, s.name.Namespace)
	return append(b, "\x03svc"...)
}

// dashedAddr reads the label of a pod: dashes for dots if there are three and
// no two in a row, else for colons.
func dashedAddr(label []byte) (netip.Addr, bool) {
	dashes, double := 0, false
	for i, c := range label {
		if c == '-' {
			dashes++
			double = double || i > 0 && label[i-1] == '-'
		}
	}
	if dashes == 3 && !double {
		return parseIPv4(label, '-')
	}
	if len(label) > 45 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(string(label), "-", ":"))
	return addr, err == nil && addr.Is6() && addr.Zone() == ""
}

// parseIPv4 reads four decimal numbers without leading zeros.
func parseIPv4(b []byte, separator byte) (netip.Addr, bool) {
	var ip [4]byte
	field, digits, value := 0, 0, 0
	for i := 0; i <= len(b); i++ {
		if i == len(b) || b[i] == separator {
			if digits == 0 || field > 3 {
				return netip.Addr{}, false
			}
			ip[field] = byte(value)
			field, digits, value = field+1, 0, 0
			continue
		}
		c := b[i]
		if c < '0' || c > '9' || digits > 0 && value == 0 {
			return netip.Addr{}, false
		}
		value = value*10 + int(c-'0')
		if digits++; value > 255 {
			return netip.Addr{}, false
		}
	}
	return netip.AddrFrom4(ip), field == 4
}

// reverseAddr returns the address that a complete name below in-addr.arpa or
// ip6.arpa stands for (RFC 1035 §3.5, RFC 3596 §2.5).
func reverseAddr(q *wire.Query) (netip.Addr, bool) {
	n := q.Labels()
	if n != 6 && n != 34 || string(q.Label(n-1)) != "arpa" {
		return netip.Addr{}, false
	}
	switch string(q.Label(n - 2)) {
	case "in-addr":
		if n != 6 {
			return netip.Addr{}, false
		}
		var ip [4]byte
		for i := range 4 {
			value := 0
			label := q.Label(3 - i)
			for j, c := range label {
				if c < '0' || c > '9' || j > 0 && value == 0 {
					return netip.Addr{}, false
				}
				if value = value*10 + int(c-'0'); value > 255 {
					return netip.Addr{}, false
				}
			}
			ip[i] = byte(value)
		}
		return netip.AddrFrom4(ip), true
	case "ip6":
		if n != 34 {
			return netip.Addr{}, false
		}
		var ip [16]byte
		for i := range 32 {
			label := q.Label(31 - i)
			if len(label) != 1 {
				return netip.Addr{}, false
			}
			v, ok := nibble(label[0])
			if !ok {
				return netip.Addr{}, false
			}
			ip[i/2] = ip[i/2]<<4 | v
		}
		return netip.AddrFrom16(ip).Unmap(), true
	}
	return netip.Addr{}, false
}

func nibble(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
