package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func parsed(t testing.TB, m *dns.Msg) *Query {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := new(Query)
	if v := q.Parse(b); v != Plain {
		t.Fatalf("verdict %d for %v", v, m)
	}
	return q
}

func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

func TestLabels(t *testing.T) {
	q := parsed(t, question("Web.NS.svc.", dns.TypeA))
	if got := fmt.Sprintf("%d %s %s %q %q %d", q.Labels(), q.Label(0), q.Label(2), q.Suffix(1), q.Suffix(3), q.Offset(3)); got != `3 web svc "\x02ns\x03svc\x00" "\x00" 11` {
		t.Error(got)
	}
	for zone, want := range map[string]int{
		"\x00": 3, "\x03svc\x00": 2, "\x02ns\x03svc\x00": 1, "\x03web\x02ns\x03svc\x00": 0,
		"\x03xyz\x00": -1, "s\x03svc\x00": -1, "\x01a\x03web\x02ns\x03svc\x00": -1,
	} {
		if got := q.Under([]byte(zone)); got != want {
			t.Errorf("under %q: %d, want %d", zone, got, want)
		}
	}
	if got := parsed(t, question(".", dns.TypeA)); got.Labels() != 0 || got.Under([]byte{0}) != 0 {
		t.Error("the root has labels")
	}
}

// What Parse reads of a plain query is what a full parser reads.
func FuzzParse(f *testing.F) {
	seed := func(change func(*dns.Msg)) {
		m := question("svc-1.ns1.svc.cluster.local.", dns.TypeA)
		change(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(func(*dns.Msg) {})
	seed(func(m *dns.Msg) { m.SetEdns0(1232, true) })
	seed(func(m *dns.Msg) {
		m.SetEdns0(4096, false)
		o := m.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "00112233"}, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, Address: []byte{1, 2, 3, 4}}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	})
	seed(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify })
	seed(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(Query)
		switch v := q.Parse(b); v {
		case Plain:
			var m dns.Msg
			if err := m.Unpack(b); err != nil {
				t.Fatalf("plain, but %v", err)
			}
			if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || m.Id != q.ID || m.RecursionDesired != q.RD || m.CheckingDisabled != q.CD || m.AuthenticatedData != q.AD {
				t.Fatalf("header: %+v, read as %+v", m.MsgHdr, q)
			}
			name, _, err := dns.UnpackDomainName(q.Name, 0)
			if err != nil || !strings.EqualFold(name, m.Question[0].Name) || q.Type != m.Question[0].Qtype || q.Class != m.Question[0].Qclass {
				t.Fatalf("question %v, read as %q %d %d", m.Question[0], name, q.Type, q.Class)
			}
			o := m.IsEdns0()
			if (o != nil) != q.EDNS || o != nil && (o.UDPSize() != q.Size || o.Do() != q.DO || o.Version() != 0) {
				t.Fatalf("OPT %v, read as %v %d %v", o, q.EDNS, q.Size, q.DO)
			}
			checkAnswer(t, q, &m)
		case FormErr, NotImp:
			if len(b) < 12 || b[2]&0x80 != 0 {
				t.Fatalf("verdict %d for what is no query", v)
			}
		}
	})
}

// checkAnswer makes an answer to q and reads it back.
func checkAnswer(t *testing.T, q *Query, m *dns.Msg) {
	a := NewAnswer(1)
	var buf [4096]byte
	if !a.Begin(q, buf[:]) {
		return // the options leave no room
	}
	a.Shuffle = true
	a.Addresses([]byte{1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3}, 4, 30)
	reply := a.Finish()
	if len(reply) > q.Limit() {
		t.Fatalf("%d bytes for a client that takes %d", len(reply), q.Limit())
	}
	var got dns.Msg
	if err := got.Unpack(reply); err != nil {
		t.Fatalf("%v in the answer % x", err, reply)
	}
	if got.Question[0] != m.Question[0] || got.Id != m.Id || !got.Response {
		t.Fatalf("answer %v to %v", got.Question, m.Question)
	}
	for _, rr := range got.Answer {
		if rr.Header().Name != m.Question[0].Name || rr.Header().Ttl != 30 {
			t.Fatalf("record %v", rr)
		}
	}
	if got.Truncated != (len(got.Answer) < 3) {
		t.Fatalf("%d records, truncated %v", len(got.Answer), got.Truncated)
	}
}

// addresses returns n distinct IPv4 addresses, packed.
func addresses(n int) []byte {
	var b []byte
	for i := range n {
		b = binary.BigEndian.AppendUint32(b, 10<<24|uint32(i))
	}
	return b
}

func TestTruncation(t *testing.T) {
	const name = "big.test.svc.cluster.local."
	for _, test := range []struct {
		size uint16 // 0: no EDNS
		tcp  bool
		buf  int
		n    int
		want int // records
		tc   bool
	}{
		{0, false, 4096, 29, 29, false},
		{0, false, 4096, 300, 29, true}, // as CoreDNS
		{512, false, 4096, 300, 28, true},
		{100, false, 4096, 300, 28, true}, // sizes under 512 count as 512
		{1232, false, 4096, 300, 73, true},
		{4096, false, 4096, 300, 252, true},
		{0, true, 65535, 300, 300, false},
		{0, true, 65535, 5000, 4093, true},
	} {
		m := question(name, dns.TypeA)
		if test.size > 0 {
			m.SetEdns0(test.size, false)
		}
		q := parsed(t, m)
		q.TCP = test.tcp
		for _, shuffled := range []bool{false, true} {
			a := NewAnswer(7)
			if !a.Begin(q, make([]byte, test.buf)) {
				t.Fatal("no room at all")
			}
			a.Shuffle = shuffled
			a.Addresses(addresses(test.n), 4, 5)
			var got dns.Msg
			if err := got.Unpack(a.Finish()); err != nil {
				t.Fatal(err)
			}
			if len(got.Answer) != test.want || got.Truncated != test.tc {
				t.Errorf("%+v shuffled %v: %d records, truncated %v", test, shuffled, len(got.Answer), got.Truncated)
			}
			seen := make(map[string]bool)
			for _, rr := range got.Answer {
				seen[rr.String()] = true
			}
			if len(seen) != len(got.Answer) {
				t.Errorf("%+v: %d of %d records are different", test, len(seen), len(got.Answer))
			}
		}
	}
}

// A buffer smaller than the client's room is not the client's doing.
func TestOverflow(t *testing.T) {
	m := question("a.", dns.TypeA)
	m.SetEdns0(8192, false)
	a := NewAnswer(0)
	a.Begin(parsed(t, m), make([]byte, 1024))
	if a.Addresses(addresses(300), 4, 5); !a.Overflow() {
		t.Error("300 addresses in 1024 bytes")
	}
	a.Begin(parsed(t, question("a.", dns.TypeA)), make([]byte, 1024))
	if a.Addresses(addresses(300), 4, 5); a.Overflow() {
		t.Error("the client takes 512 bytes, the buffer is larger")
	}
}

// Each order of three addresses comes up about as often as the others, and
// when few fit, each address.
func TestShuffleIsFair(t *testing.T) {
	count := func(n int, key func([]dns.RR) string) map[string]int {
		q := parsed(t, question("big.test.svc.cluster.local.", dns.TypeA))
		a := NewAnswer(42)
		buf := make([]byte, 4096)
		seen := make(map[string]int)
		for range 6000 {
			a.Begin(q, buf)
			a.Shuffle = true
			a.Addresses(addresses(n), 4, 5)
			var m dns.Msg
			if err := m.Unpack(a.Finish()); err != nil {
				t.Fatal(err)
			}
			seen[key(m.Answer)]++
		}
		return seen
	}
	orders := count(3, func(rrs []dns.RR) string { return fmt.Sprint(rrs) })
	firsts := count(60, func(rrs []dns.RR) string { return rrs[0].String() })
	for what, seen := range map[string]map[string]int{"orders": orders, "first addresses": firsts} {
		want := map[string]int{"orders": 6, "first addresses": 60}[what]
		if len(seen) != want {
			t.Fatalf("%d %s of %d", len(seen), what, want)
		}
		mean := 6000 / float64(want)
		for key, n := range seen {
			if math.Abs(float64(n)-mean) > 6*math.Sqrt(mean) { // six sigma, and the seed is fixed
				t.Errorf("%s %s: %d times, %.0f expected", what, key, n, mean)
			}
		}
	}
}

// Addresses behind an alias, as a cache stores them, are shuffled too.
func TestShuffleFindsAddresses(t *testing.T) {
	q := parsed(t, question("a.test.", dns.TypeA))
	a := NewAnswer(3)
	a.Begin(q, make([]byte, 512))
	a.Shuffle = true
	cname := []byte("\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x05\x00\x04\x01b\xc0\x0e")
	at := a.Len() + 12
	if !a.Append(AnswerSection, cname, 1) {
		t.Fatal("no room")
	}
	var rrs []byte
	for i := range 4 {
		rrs = append(rrs, 0xc0, byte(at), 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, byte(i))
	}
	a.Append(AnswerSection, rrs, 4)
	var m dns.Msg
	if err := m.Unpack(a.Finish()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, rr := range m.Answer {
		got = append(got, strings.Join(strings.Fields(rr.String()), " "))
	}
	if got[0] != "a.test. 5 IN CNAME b.test." {
		t.Errorf("first %s", got[0])
	}
	sorted := slices.Clone(got[1:])
	slices.Sort(sorted)
	if want := []string{"b.test. 5 IN A 10.0.0.0", "b.test. 5 IN A 10.0.0.1", "b.test. 5 IN A 10.0.0.2", "b.test. 5 IN A 10.0.0.3"}; !slices.Equal(sorted, want) {
		t.Errorf("%q", got)
	}
	if slices.Equal(sorted, got[1:]) {
		t.Error("not shuffled (the seed is fixed)")
	}
}

func TestNoAllocation(t *testing.T) {
	m := question("svc-1.ns1.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, false)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, a, buf, packed := new(Query), NewAnswer(1), make([]byte, 4096), addresses(10)
	if n := testing.AllocsPerRun(100, func() {
		q.Parse(b)
		a.Begin(q, buf)
		a.Shuffle = true
		a.Addresses(packed, 4, 30)
		a.Finish()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	m := question("svc-1.ns1.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, false)
	raw, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	q, a, buf, packed := new(Query), NewAnswer(1), make([]byte, 4096), addresses(10)
	for b.Loop() {
		q.Parse(raw)
		a.Begin(q, buf)
		a.Shuffle = true
		a.Addresses(packed, 4, 30)
		a.Finish()
	}
}
