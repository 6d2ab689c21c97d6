package hosts

import (
	"bytes"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// table is what hosts files say: addresses by name and names by address.
type table struct {
	names   map[string]*addresses // by name in wire form, lower case
	reverse map[netip.Addr][]string
	entries int
}

// addresses of a name, packed one after the other as records carry them.
type addresses struct{ v4, v6 []byte }

func newTable() *table {
	return &table{names: make(map[string]*addresses), reverse: make(map[netip.Addr][]string)}
}

// add reads lines of the form "address name...", comments beginning with #.
// What makes no sense is passed over, as the C library does, and so are names
// outside zones.
func (t *table) add(file []byte, zones plugin.Zones, reverse bool) {
	for line := range bytes.Lines(file) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		words := bytes.Fields(line)
		if len(words) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(string(words[0]))
		if err != nil {
			continue
		}
		addr = addr.WithZone("").Unmap()
		for _, w := range words[1:] {
			name, ok := plugin.NormalizeZone(string(w))
			if ok && zones.Matches(name) != "" {
				t.entry(name, addr, reverse)
			}
		}
	}
}

func (t *table) entry(name string, addr netip.Addr, reverse bool) {
	key, ok := wireName(name)
	if !ok {
		return
	}
	a := t.names[key]
	if a == nil {
		a = &addresses{}
		t.names[key] = a
	}
	if addr.Is4() {
		a.v4 = append(a.v4, addr.AsSlice()...)
	} else {
		a.v6 = append(a.v6, addr.AsSlice()...)
	}
	t.entries++
	if reverse {
		t.reverse[addr] = append(t.reverse[addr], name)
	}
}

// find returns the addresses of a name in wire form: its own, or those of the
// wildcard that stands for exactly its first label.
func (t *table) find(name []byte) *addresses {
	if a := t.names[string(name)]; a != nil {
		return a
	}
	if len(name) < 2 {
		return nil // the root has no first label
	}
	var buf [256]byte
	rest := name[1+int(name[0]):]
	n := copy(buf[:], "\x01*")
	n += copy(buf[n:], rest)
	return t.names[string(buf[:n])]
}

// wireName packs a name without compression.
func wireName(name string) (string, bool) {
	var buf [256]byte
	n, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	return string(buf[:n]), err == nil
}
