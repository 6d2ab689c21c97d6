package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

// The message made of a parsed query is the one a full parser makes.
func FuzzMessage(f *testing.F) {
	for _, change := range []func(*dns.Msg){
		func(*dns.Msg) {},
		func(m *dns.Msg) { m.SetEdns0(1232, true) },
		func(m *dns.Msg) { m.SetQuestion(".", dns.TypeNS) },
		func(m *dns.Msg) { m.SetQuestion(`a\.b\000.Test.`, dns.TypeA) },
		func(m *dns.Msg) { m.RecursionDesired, m.CheckingDisabled, m.Rcode, m.Zero = false, true, 5, true },
	} {
		m := new(dns.Msg)
		m.SetQuestion("_http._tcp.Svc-1.ns1.svc.cluster.local.", dns.TypeSRV)
		change(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q wire.Query
		if q.Parse(b) != wire.Plain {
			return
		}
		got := message(&q)
		if got == nil {
			return
		}
		want := new(dns.Msg)
		if err := want.Unpack(b); err != nil {
			t.Fatal(err)
		}
		want.Compress, got.Compress = false, false
		for _, m := range []*dns.Msg{want, got} { // what a query's OPT says beyond this is not read
			if o := m.IsEdns0(); o != nil {
				o.Hdr.Rdlength = 0
				do := o.Do()
				o.Hdr.Ttl = 0
				if do {
					o.SetDo()
				}
			}
			if len(m.Answer) == 0 {
				m.Answer = nil
			}
			if len(m.Ns) == 0 {
				m.Ns = nil
			}
			if len(m.Extra) == 0 {
				m.Extra = nil
			}
		}
		if diff := cmp.Diff(want.String(), got.String()); diff != "" || want.Zero != got.Zero {
			t.Errorf("-full parser +message:\n%s", diff)
		}
	})
}
