package conntrack

import (
	"net/netip"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

func TestStale(t *testing.T) {
	ap := netip.MustParseAddrPort
	node := Node{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Orphans: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}
	w := Wanted{
		{netip.MustParseAddr("10.96.0.1"), 53, catalog.UDP}: {ap("10.0.0.1:53"), ap("10.0.0.2:53")},
		{netip.MustParseAddr("10.96.0.2"), 53, catalog.UDP}: nil,
		{netip.IPv4Unspecified(), 30053, catalog.UDP}:       {ap("10.0.0.1:53")},
		{netip.IPv6Unspecified(), 30053, catalog.UDP}:       {ap("[fd00::1]:53")},
	}
	for _, tt := range []struct {
		dst, from string
		proto     catalog.Protocol
		stale     bool
	}{
		{"10.96.0.1:53", "10.0.0.1:53", catalog.UDP, false},
		{"10.96.0.1:53", "10.0.0.2:53", catalog.UDP, false},
		{"10.96.0.1:53", "10.0.0.3:53", catalog.UDP, true},   // endpoint gone
		{"10.96.0.1:53", "10.0.0.1:5353", catalog.UDP, true}, // its port changed
		{"10.96.0.1:53", "10.96.0.1:53", catalog.UDP, true},  // before it was a service
		{"10.96.0.2:53", "10.0.0.1:53", catalog.UDP, true},   // no endpoint left
		{"10.96.0.9:53", "10.0.0.1:53", catalog.UDP, true},   // nobody's cluster IP
		{"10.96.0.9:53", "10.96.0.9:53", catalog.UDP, false}, // and never was
		{"10.96.0.1:53", "10.0.0.3:53", catalog.SCTP, true},  // an orphan of another protocol
		{"192.0.2.1:30053", "10.0.0.1:53", catalog.UDP, false},
		{"192.0.2.1:30053", "10.0.0.2:53", catalog.UDP, true},
		{"192.0.2.2:30053", "10.0.0.2:53", catalog.UDP, false}, // another host's port
		{"[2001:db8::1]:30053", "[fd00::2]:53", catalog.UDP, true},
		{"8.8.8.8:53", "8.8.8.8:53", catalog.UDP, false},
	} {
		f := flow{proto: tt.proto, dst: ap(tt.dst), from: ap(tt.from)}
		if got := w.stale(&f, &node); got != tt.stale {
			t.Errorf("%v from %s answered by %s: stale %v", tt.proto, tt.dst, tt.from, got)
		}
	}
}

func tuple(b []byte, typ uint16, src, dst netip.AddrPort, proto catalog.Protocol) []byte {
	outer := len(b)
	b = nfnetlink.AppendNest(b, typ)
	ip := len(b)
	b = nfnetlink.AppendNest(b, ctaTupleIP)
	b = nfnetlink.AppendAttr(b, ctaIPv4Src, src.Addr().AsSlice())
	b = nfnetlink.AppendAttr(b, ctaIPv4Dst, dst.Addr().AsSlice())
	nfnetlink.EndNest(b, ip)
	p := len(b)
	b = nfnetlink.AppendNest(b, ctaTupleProto)
	b = nfnetlink.AppendAttr(b, ctaProtoNum, []byte{byte(proto)})
	b = nfnetlink.AppendAttr(b, ctaProtoSrcPort, []byte{byte(src.Port() >> 8), byte(src.Port())})
	b = nfnetlink.AppendAttr(b, ctaProtoDstPort, []byte{byte(dst.Port() >> 8), byte(dst.Port())})
	nfnetlink.EndNest(b, p)
	nfnetlink.EndNest(b, outer)
	return b
}

// Whatever comes, reading it ends; a flow that is read has both addresses.
func FuzzParseFlow(f *testing.F) {
	client, service, endpoint := netip.MustParseAddrPort("10.0.0.9:4000"), netip.MustParseAddrPort("10.96.0.1:53"), netip.MustParseAddrPort("10.0.0.1:53")
	b := tuple(nil, ctaTupleOrig, client, service, catalog.UDP)
	b = tuple(b, ctaTupleReply, endpoint, client, catalog.UDP)
	if got, ok := parseFlow(b); !ok || got.dst != service || got.from != endpoint || got.proto != catalog.UDP {
		f.Fatalf("%+v", got)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, ok := parseFlow(b); ok && (!got.dst.IsValid() || !got.from.IsValid()) {
			t.Errorf("%+v", got)
		}
	})
}
