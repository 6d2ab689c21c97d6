package wire

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// What Reply.Parse calls usual is what a full parser accepts and reads likewise,
// also after Address has made it the reply to a query.
func FuzzReply(f *testing.F) {
	seed := func(compress bool, records ...string) []byte {
		m := new(dns.Msg)
		m.SetReply(question("www.Example.org.", dns.TypeA))
		m.Compress = compress
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: 3, ExtraText: "x"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"}}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		return b
	}
	for _, compress := range []bool{true, false} {
		b := seed(compress, "www.Example.org. 60 IN CNAME a.example.org.", "a.example.org. 60 IN A 192.0.2.1", "a.example.org. 60 IN AAAA 2001:db8::1",
			"example.org. 60 IN SOA ns.example.org. mail.example.org. 1 2 3 4 5", "example.org. 60 IN MX 1 mx.example.org.",
			`example.org. 60 IN TXT "a" "bc"`, "_a._b.example.org. 60 IN SRV 1 2 3 example.org.", "example.org. 60 IN NS ns.example.org.")
		if !new(Reply).Parse(b) {
			f.Error("a common reply is not usual")
		}
	}
	f.Add([]byte("\x00\x01\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x01\x02\x03\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reply
		if !r.Parse(b) {
			return
		}
		var m dns.Msg
		if err := m.Unpack(b); err != nil {
			t.Fatalf("usual, but %v", err)
		}
		if !m.Response || m.Opcode != dns.OpcodeQuery || m.Rcode != int(r.Rcode) || m.Truncated != r.Truncated || len(m.Answer) != r.Answers || len(m.Question) != 1 {
			t.Fatalf("%v, read as %+v", m, r)
		}
		name, _, err := dns.UnpackDomainName(r.Name, 0)
		if err != nil || name != m.Question[0].Name {
			t.Fatalf("question %v, read as %q", m.Question[0], name)
		}
		ask := new(dns.Msg)
		ask.Id, ask.Question = 4711, m.Question
		ask.Question[0].Name = strings.ToLower(name)
		ask.SetEdns0(4096, true)
		raw, err := ask.Pack()
		if err != nil {
			return // a name that a client cannot ask for
		}
		q := new(Query)
		if q.Parse(raw) != Plain {
			return
		}
		if !r.Answering(q) {
			t.Fatalf("%v is no answer to %v", m.Question, ask.Question)
		}
		out := r.Address(q, slices.Grow(slices.Clone(b), 100))
		if out == nil {
			if len(b)+optLen <= 4096 {
				t.Fatal("does not fit")
			}
			return
		}
		var got dns.Msg
		if err := got.Unpack(out); err != nil {
			t.Fatal(err)
		}
		o := got.IsEdns0()
		if got.Id != 4711 || o == nil || o.UDPSize() != 4096 || !o.Do() || len(got.Answer) != len(m.Answer) || len(got.Ns) != len(m.Ns) || got.Rcode != m.Rcode {
			t.Fatalf("%v, from %v", got, m)
		}
	})
}
