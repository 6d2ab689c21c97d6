package server

import (
	"bytes"
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"
)

// The short way to pack addresses gives the bytes of the long way.
func TestPackAddresses(t *testing.T) {
	const name = "Web.test.svc.cluster.local."
	a := func(owner string, n byte) dns.RR {
		return &dns.A{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: net.IPv4(10, 0, 0, n)}
	}
	aaaa := &dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: 1 << 20}, AAAA: net.ParseIP("2001:db8::1")}
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(1232)
	opt.SetDo()
	withOption := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 3)}}}
	for _, test := range []struct {
		what   string
		change func(*dns.Msg)
		room   int
		short  bool // the short way is taken
	}{
		{"one address", func(m *dns.Msg) { m.Answer = []dns.RR{a(name, 1)} }, 512, true},
		{"flags", func(m *dns.Msg) {
			m.Authoritative, m.Truncated, m.RecursionAvailable, m.AuthenticatedData, m.CheckingDisabled, m.Zero = true, true, true, true, true, true
		}, 512, true},
		{"nothing", func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }, 512, true},
		{"both families and OPT", func(m *dns.Msg) { m.Answer, m.Extra = []dns.RR{a(name, 1), aaaa, a(name, 2)}, []dns.RR{opt} }, 512, true},
		{"another owner", func(m *dns.Msg) { m.Answer = []dns.RR{a("b.", 1)} }, 512, false},
		{"an option", func(m *dns.Msg) { m.Extra = []dns.RR{withOption} }, 512, false},
		{"authority", func(m *dns.Msg) { m.Ns = []dns.RR{a(name, 1)} }, 512, false},
		{"many", func(m *dns.Msg) {
			for i := range 40 {
				m.Answer = append(m.Answer, a(name, byte(i)))
			}
		}, 512, false},
		{"many with room", func(m *dns.Msg) {
			for i := range 40 {
				m.Answer = append(m.Answer, a(name, byte(i)))
			}
		}, 4096, true},
		{"extended rcode", func(m *dns.Msg) { m.Rcode, m.Extra = dns.RcodeBadCookie, []dns.RR{dns.Copy(opt)} }, 512, false},
	} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		m.Response = true
		test.change(m)
		got := packAddresses(m, test.room, make([]byte, 4096))
		if (got != nil) != test.short {
			t.Errorf("%s: packed the short way: %v", test.what, got != nil)
			continue
		}
		if got == nil {
			continue
		}
		m.Compress = true
		want, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", test.what, fmt.Sprintf("% x", got), fmt.Sprintf("% x", want))
		}
	}
}
