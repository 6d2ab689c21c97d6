package ipvs

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
)

// What is written is what is read.
func TestParse(t *testing.T) {
	f := front{netip.MustParseAddr("fd00:96::1"), 80, catalog.SCTP}
	k := &kernel{family: 30}
	var b batch
	s := settings{scheduler: "mh", flags: flagPersistent | flagSourcePort, timeout: 600}
	k.service(&b, cmdNewService, f, &s)
	if l, ok := parseService(b.buf[unix.SizeofNlMsghdr:]); !ok || l.front != f || l.settings != s {
		t.Errorf("%+v, want %+v %+v", l, f, s)
	}
	to := netip.MustParseAddrPort("[fd00:244::9]:8080")
	b.reset()
	k.dest(&b, cmdSetDest, f, to, 7)
	if d, ok := parseDest(b.buf[unix.SizeofNlMsghdr:], true); !ok || d.addr != to || d.weight != 7 {
		t.Errorf("%+v, want %s", d, to)
	}
}

func FuzzParse(f *testing.F) {
	k := &kernel{family: 30}
	v4, v6 := front{netip.MustParseAddr("10.96.0.1"), 80, catalog.TCP}, front{netip.MustParseAddr("fd00:96::1"), 80, catalog.UDP}
	for _, x := range []front{v4, v6} {
		var b batch
		k.service(&b, cmdNewService, x, &settings{scheduler: "rr"})
		f.Add(b.buf[unix.SizeofNlMsghdr:])
		b.reset()
		k.dest(&b, cmdNewDest, x, netip.MustParseAddrPort("10.244.0.1:8080"), 1)
		f.Add(b.buf[unix.SizeofNlMsghdr:])
		b.reset()
		e := elementOf(setLoadBalancerSourceCIDR, x)
		e.with = netip.PrefixFrom(x.addr, 8)
		(&ipsets{}).put(&b, &e, true)
		f.Add(b.buf[unix.SizeofNlMsghdr:])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if l, ok := parseService(p); ok && !l.addr.IsValid() {
			t.Error("a virtual server without an address")
		}
		for _, v6 := range []bool{false, true} {
			if d, ok := parseDest(p, v6); ok && !d.addr.Addr().IsValid() {
				t.Error("a destination without an address")
			}
			for id := range setCount {
				if e, ok := parseElement(id, v6, p); ok && !e.addr.IsValid() && e.port == 0 {
					t.Error("an element of nothing")
				}
			}
		}
	})
}
