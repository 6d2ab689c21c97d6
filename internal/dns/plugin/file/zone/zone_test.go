package zone

import (
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/wire"
)

func TestCompare(t *testing.T) {
	// The order of RFC 4034 §6.1.
	names := []string{"example.", "a.example.", "yljkjljk.a.example.", "z.a.example.", "zabc.a.example.", "z.example.", "\\001.z.example.", "*.z.example.", "\\200.z.example."}
	for i, a := range names {
		for j, b := range names {
			wa, _ := wireName(a)
			wb, _ := wireName(b)
			if got := compare(wa, wb); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare(%s, %s) = %d", a, b, got)
			}
		}
	}
}

// FuzzParse: any file is either refused or a zone that answers any question,
// on both paths alike.
func FuzzParse(f *testing.F) {
	soa := "@ 60 IN SOA a b 1 2 3 4 5\n"
	f.Add(soa+"@ 60 IN NS a\nx 60 IN A 192.0.2.1\n*.w 60 IN CNAME x\n", "x.a.test.", uint16(1))
	f.Add(soa+"c 60 IN NS n.c\nn.c 60 IN A 192.0.2.1\nd 60 IN DNAME d.d\n", "y.d.a.test.", uint16(1))
	f.Add(soa+"$GENERATE 1-9 g$ A 192.0.2.$\n$ORIGIN b\n$TTL 5\nx IN TXT \"a\\\"b\"\n", "g1.a.test.", uint16(16))
	f.Add(soa+"a.a 60 IN NSEC b.a.test. A\na.a 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 s. AAAA\n", "b.a.test.", uint16(47))
	f.Add("$INCLUDE /etc/hostname\n"+soa, "a.test.", uint16(6))
	f.Fuzz(func(t *testing.T, text, name string, qtype uint16) {
		if upper := strings.ToUpper(text); strings.Contains(upper, "$INCLUDE") || strings.Contains(upper, "$GENERATE") {
			return // other files, and up to 65,536 records per line
		}
		z, err := Parse(strings.NewReader(text), "a.test.", "file")
		if err != nil {
			return
		}
		w, ok := wireName(name)
		if !ok || !z.within(w) {
			return
		}
		q := Query{Name: canonical(w), Type: qtype, Outside: func(string, uint16) (*dns.Msg, error) { return nil, errors.New("nobody") }}
		res := z.Lookup(q)
		q.DO = true
		z.Lookup(q)

		r := new(dns.Msg)
		r.SetQuestion(canonical(w), qtype)
		raw, err := r.Pack()
		if err != nil {
			return
		}
		wq := new(wire.Query)
		if wq.Parse(raw) != wire.Plain {
			return
		}
		wq.TCP = true
		a := wire.NewAnswer(1)
		if !a.Begin(wq, make([]byte, 65535)) {
			return
		}
		kind, ok := z.Direct(wq, a)
		if !ok {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(a.Finish()); err != nil {
			t.Fatalf("direct answer: %v", err)
		}
		if kind != res.Kind || len(m.Answer) != len(res.Answer) || len(m.Ns) != len(res.Ns) || len(res.Extra) != 0 {
			t.Fatalf("%s %d: direct %d %v, lookup %+v", name, qtype, kind, m, res)
		}
	})
}
