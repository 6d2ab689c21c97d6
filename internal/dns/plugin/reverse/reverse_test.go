package reverse

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestAddr(t *testing.T) {
	for _, a := range []string{"192.0.2.1", "2001:db8::1", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		addr := netip.MustParseAddr(a)
		name, err := dns.ReverseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := Addr(name); !ok || got != addr {
			t.Errorf("%s: got %v", name, got)
		}
	}
	for _, name := range []string{"in-addr.arpa.", "2.0.192.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa.", "x.2.0.192.in-addr.arpa.", "ip6.arpa.", "example.org.", "256.0.0.1.in-addr.arpa.", strings.Repeat("g.", 32) + "ip6.arpa."} {
		if got, ok := Addr(name); ok {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
