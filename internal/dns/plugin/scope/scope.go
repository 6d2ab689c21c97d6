// Package scope tells on the direct path whether a query's name is in one of
// several zones.
package scope

import (
	"bytes"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// Scope is a set of zones in wire form. The zero value holds none.
type Scope []zone

type zone struct {
	name   []byte
	labels int
}

// Of returns the scope of zones that are valid, lower case and fully qualified.
func Of(zones ...string) Scope {
	s := make(Scope, 0, len(zones))
	for _, z := range zones {
		buf := make([]byte, 256)
		n, err := dns.PackDomainName(z, buf, 0, nil, false)
		if err != nil {
			continue // not a name: nothing is in it
		}
		s = append(s, zone{name: buf[:n:n], labels: dns.CountLabel(z)})
	}
	return s
}

// Has tells whether q asks for a name at or below one of the zones.
func (s Scope) Has(q *wire.Query) bool {
	for i := range s {
		z := &s[i]
		if extra := q.Labels() - z.labels; extra >= 0 && bytes.Equal(q.Suffix(extra), z.name) {
			return true
		}
	}
	return false
}
