package corefile

import "net/netip"

// listener is what a zone may be served on only once.
type listener struct{ scheme, zone, port, addr string }

// checkOverlap refuses a zone that two blocks serve on the same listener, and
// one that is served on every address by one block and on chosen addresses by
// another. Blocks with a view are told apart by their expressions, so of those
// only one that comes after a block without a view is refused: no query would
// ever reach it.
//
// Addresses are compared as they are written: which addresses an interface
// has is only known when the listeners open.
func checkOverlap(blocks []ServerBlock) error {
	taken := make(map[listener]Key)
	bound := make(map[listener]Key) // addr empty: the zone has a block with bind
	for _, b := range blocks {
		addrs, view := binds(b), hasView(b)
		for _, k := range b.Keys {
			for _, addr := range addrs {
				l := listener{k.Scheme, k.Zone, k.Port, addr}
				any := listener{k.Scheme, k.Zone, k.Port, ""}
				if old, ok := taken[l]; ok {
					return Errorf(k.Token, "zone %s is already served at %s:%d", on(k, addr), old.Token.File, old.Token.Line)
				}
				old, ok := taken[any]
				if addr == "" {
					old, ok = bound[any]
				}
				if ok {
					return Errorf(k.Token, "zone %s is served on every address by one block and on chosen addresses by another (%s:%d)", k, old.Token.File, old.Token.Line)
				}
				if view {
					continue
				}
				taken[l] = k
				if addr != "" {
					bound[any] = k
				}
			}
		}
	}
	return nil
}

func on(k Key, addr string) string {
	if addr == "" {
		return k.String()
	}
	return k.String() + " on " + addr
}

func hasView(b ServerBlock) bool {
	for _, d := range b.Directives {
		if d.Name.Text == "view" {
			return true
		}
	}
	return false
}

// binds returns the words of the block's bind lines without repeats; one empty
// word when there are none.
func binds(b ServerBlock) []string {
	var addrs []string
	seen := make(map[string]bool)
	for _, d := range b.Directives {
		if d.Name.Text != "bind" {
			continue
		}
		for _, a := range d.Args {
			addr := a.Text
			if ip, err := netip.ParseAddr(addr); err == nil {
				addr = ip.String()
			}
			if !seen[addr] {
				seen[addr] = true
				addrs = append(addrs, addr)
			}
		}
	}
	if len(addrs) == 0 {
		return []string{""}
	}
	return addrs
}
