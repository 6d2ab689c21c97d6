package plugin

import (
	"strings"

	"github.com/miekg/dns"
)

// Zones is a list of zone names, lower case and fully qualified.
type Zones []string

// Matches returns the longest zone that name (lower case, fully qualified) is
// in or equal to, or "".
func (z Zones) Matches(name string) string {
	best := ""
	for _, zone := range z {
		if len(zone) > len(best) && InZone(name, zone) {
			best = zone
		}
	}
	return best
}

// InZone tells whether name is zone or below it. Both are lower case and fully
// qualified.
func InZone(name, zone string) bool {
	if zone == "." {
		return true
	}
	if !strings.HasSuffix(name, zone) {
		return false
	}
	return len(name) == len(zone) || endsLabel(name[:len(name)-len(zone)])
}

// endsLabel tells whether s, which is followed by a zone, ends in a dot that
// separates labels; an escaped dot is a part of one.
func endsLabel(s string) bool {
	if !strings.HasSuffix(s, ".") {
		return false
	}
	backslashes := 0
	for i := len(s) - 2; i >= 0 && s[i] == '\\'; i-- {
		backslashes++
	}
	return backslashes%2 == 0
}

// Fall is the parsed fallthrough property: the zones whose names may go on to
// the next plugin.
type Fall struct{ Zones Zones }

// Through tells whether name (lower case) goes on.
func (f Fall) Through(name string) bool { return f.Zones.Matches(name) != "" }

// NormalizeZone returns s in lower case and fully qualified; ok is false when
// it is no valid name.
func NormalizeZone(s string) (zone string, ok bool) {
	if _, valid := dns.IsDomainName(s); !valid || s == "" {
		return "", false
	}
	return strings.ToLower(dns.Fqdn(s)), true
}
