package dns

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// difference between two answers, by the part in which they differ.
type difference struct {
	part string // rcode, flags, question, answer, authority, additional, edns, reply
	text string
	// spelling says that only capital letters and TTLs differ.
	spelling bool
}

// compare returns what a client could tell apart. Records are compared as
// sets, for CoreDNS's order is random; that CNAMEs come first is compared.
func compare(core, rutter *dns.Msg) []difference {
	var d []difference
	add := func(part, format string, args ...any) {
		d = append(d, difference{part: part, text: fmt.Sprintf(format, args...)})
	}
	if core.Rcode != rutter.Rcode {
		add("rcode", "%s, not %s", rcode(rutter), rcode(core))
	}
	if c, r := flags(core), flags(rutter); c != r {
		add("flags", "%q, not %q", r, c)
	}
	if c, r := fmt.Sprint(core.Question), fmt.Sprint(rutter.Question); c != r {
		add("question", "%s, not %s", r, c)
	}
	sections := []struct {
		name         string
		core, rutter []dns.RR
	}{
		{"answer", core.Answer, rutter.Answer},
		{"authority", core.Ns, rutter.Ns},
		{"additional", core.Extra, rutter.Extra},
	}
	for _, s := range sections {
		c, r := records(s.core), records(s.rutter)
		switch {
		case core.Truncated && rutter.Truncated:
			// Which records are left is chance, and how many depends on how
			// well the names compress.
			if (len(c) == 0) != (len(r) == 0) {
				add(s.name, "%d records of a truncated answer, not %d", len(r), len(c))
			}
		case !slices.Equal(c, r):
			add(s.name, "%s", diff(c, r))
			d[len(d)-1].spelling = slices.Equal(fold(c), fold(r))
		}
		if cnamesFirst(s.core) != cnamesFirst(s.rutter) {
			add(s.name, "CNAMEs first: %t, not %t", cnamesFirst(s.rutter), cnamesFirst(s.core))
		}
	}
	if c, r := edns(core), edns(rutter); c != r {
		add("edns", "%s, not %s", r, c)
	}
	return d
}

func rcode(m *dns.Msg) string {
	if s, ok := dns.RcodeToString[m.Rcode]; ok {
		return s
	}
	return fmt.Sprint("RCODE", m.Rcode)
}

func flags(m *dns.Msg) string {
	var f []string
	for _, b := range []struct {
		name string
		set  bool
	}{{"qr", m.Response}, {"aa", m.Authoritative}, {"tc", m.Truncated}, {"rd", m.RecursionDesired}, {"ra", m.RecursionAvailable},
		{"z", m.Zero}, {"ad", m.AuthenticatedData}, {"cd", m.CheckingDisabled}} {
		if b.set {
			f = append(f, b.name)
		}
	}
	return fmt.Sprintf("opcode %d %s", m.Opcode, strings.Join(f, " "))
}

// records are the section's records but OPT as text, sorted. The serial of a
// cluster zone's SOA is the time of the last change that the server saw; it is
// compared in so far as it is a recent time. That of k8s_external is 0 until
// the first change after CoreDNS's start; it is not compared.
func records(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		if soa, ok := rr.(*dns.SOA); ok && (strings.HasPrefix(soa.Ns, "ns.dns.") && soa.Serial > 1e9 || strings.HasPrefix(soa.Ns, "ns1.dns.")) {
			soa = dns.Copy(soa).(*dns.SOA)
			soa.Serial = 1
			rr = soa
		}
		out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	slices.Sort(out)
	return out
}

// fold takes TTLs and capital letters out of records.
func fold(records []string) []string {
	var out []string
	for _, r := range records {
		name, rest, _ := strings.Cut(r, " ")
		_, rest, _ = strings.Cut(rest, " ")
		out = append(out, strings.ToLower(name+" "+rest))
	}
	slices.Sort(out)
	return out
}

func diff(core, rutter []string) string {
	var b strings.Builder
	for _, c := range core {
		if !slices.Contains(rutter, c) {
			fmt.Fprintf(&b, "\n    missing: %s", c)
		}
	}
	for _, r := range rutter {
		if !slices.Contains(core, r) {
			fmt.Fprintf(&b, "\n    extra:   %s", r)
		}
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "%d records, not %d, with repetitions", len(rutter), len(core))
	}
	return b.String()
}

func cnamesFirst(rrs []dns.RR) bool {
	other := false
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeCNAME {
			other = true
		} else if other {
			return false
		}
	}
	return true
}

func edns(m *dns.Msg) string {
	var all []string
	for _, rr := range m.Extra {
		o, ok := rr.(*dns.OPT)
		if !ok {
			continue
		}
		s := fmt.Sprintf("version %d, size %d, do %t, flags %#x", o.Version(), o.UDPSize(), o.Do(), o.Hdr.Ttl&0x7fff)
		for _, opt := range o.Option {
			s += fmt.Sprintf(", option %d %q", opt.Option(), opt.String())
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, "; ")
}

// TestCompare proves that the comparison sees each part of an answer.
func TestCompare(t *testing.T) {
	rr := func(s string) dns.RR {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	answer := func() *dns.Msg {
		m := new(dns.Msg).SetQuestion("web.example.org.", dns.TypeA)
		m.Response = true
		m.Answer = []dns.RR{rr("web.example.org. 5 CNAME a.example.org."), rr("a.example.org. 5 A 192.0.2.1"), rr("a.example.org. 5 A 192.0.2.2")}
		m.Ns = []dns.RR{rr("example.org. 5 SOA ns.dns.example.org. hostmaster.example.org. 1700000000 1 2 3 4")}
		m.SetEdns0(1232, false)
		return m
	}
	for _, c := range []struct {
		part   string
		change func(*dns.Msg)
	}{
		{"", func(*dns.Msg) {}},
		{"", func(m *dns.Msg) { slices.Reverse(m.Answer[1:]) }},
		{"", func(m *dns.Msg) { m.Ns[0].(*dns.SOA).Serial++ }},
		{"authority", func(m *dns.Msg) { m.Ns[0].(*dns.SOA).Serial = 0 }},
		{"authority", func(m *dns.Msg) { m.Ns[0].(*dns.SOA).Minttl++ }},
		{"authority", func(m *dns.Msg) { m.Ns = nil }},
		{"rcode", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }},
		{"flags", func(m *dns.Msg) { m.Authoritative = true }},
		{"flags", func(m *dns.Msg) { m.RecursionAvailable = true }},
		{"question", func(m *dns.Msg) { m.Question[0].Name = "WEB.example.org." }},
		{"answer", func(m *dns.Msg) { m.Answer[1].Header().Ttl++ }},
		{"answer", func(m *dns.Msg) { m.Answer[1].Header().Name = "A.example.org." }},
		{"answer", func(m *dns.Msg) { m.Answer = append(m.Answer, m.Answer[2]) }},
		{"answer", func(m *dns.Msg) { slices.Reverse(m.Answer) }},
		{"additional", func(m *dns.Msg) { m.Extra = append(m.Extra, m.Answer[1]) }},
		{"edns", func(m *dns.Msg) { m.IsEdns0().SetUDPSize(512) }},
		{"edns", func(m *dns.Msg) { m.IsEdns0().SetDo() }},
		{"edns", func(m *dns.Msg) { m.Extra = nil }},
	} {
		m := answer()
		c.change(m)
		d := compare(answer(), m)
		switch {
		case c.part == "" && len(d) > 0:
			t.Errorf("%v differ, want no difference", d)
		case c.part != "" && (len(d) != 1 || d[0].part != c.part):
			t.Errorf("%v differ, want one difference in %s", d, c.part)
		}
	}
}
