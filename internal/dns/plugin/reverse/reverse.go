// Package reverse reads the names that addresses have in in-addr.arpa and
// ip6.arpa.
package reverse

import (
	"net/netip"
	"strings"
)

// Addr returns the address that a name (lower case, fully qualified) is for:
// RFC 1035 §3.5 and RFC 3596 §2.5. It is false for the name of a network, and
// for all other names.
func Addr(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(labels, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa.")
	parts := strings.Split(labels, ".")
	if !ok || len(parts) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		if len(parts[i]) != 1 {
			return netip.Addr{}, false
		}
		b.WriteString(parts[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}
