package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/header"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes/clustertest"
	"github.com/rutter-project/rutter/internal/dns/plugin/loadbalance"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// testPlugins are the real kubernetes and loadbalance, and plugins that do one
// thing: barrier lets queries pass in the chain only, answer answers with its
// argument as TXT, panic panics, slow waits until released, bind sets the
// address, any opens the door to all classes.
type testPlugins struct {
	store   *kubernetes.Store
	release chan struct{} // closed to let slow queries go on
	waiting atomic.Int32
	started atomic.Int32
	stopped atomic.Int32
}

func newTestPlugins() *testPlugins {
	p := &testPlugins{store: kubernetes.NewStore(nil), release: make(chan struct{})}
	p.store.Now = func() time.Time { return time.Unix(1700000000, 0) }
	cat := clustertest.New()
	sub := cat.Subscribe()
	defer sub.Close()
	p.store.Publish(cat, sub.Take())
	return p
}

type handlerFunc struct {
	name string
	next plugin.Handler
	f    func(ctx context.Context, next plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error)
}

func (h handlerFunc) Name() string { return h.name }

func (h handlerFunc) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return h.f(ctx, h.next, w, r)
}

func (p *testPlugins) order() []plugin.Entry {
	handler := func(name string, f func(arg string, ctx context.Context, next plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error)) plugin.Setup {
		return func(_ *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
			arg := ""
			if len(lines[0].Args) > 0 {
				arg = lines[0].Args[0].Text
			}
			return func(next plugin.Handler) plugin.Handler {
				return handlerFunc{name, next, func(ctx context.Context, next plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error) {
					return f(arg, ctx, next, w, r)
				}}
			}, nil
		}
	}
	pass := func(_ string, ctx context.Context, next plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return plugin.NextOrFailure("test", next, ctx, w, r)
	}
	return []plugin.Entry{
		{Name: "bind", Setup: func(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
			for _, a := range lines[0].Args {
				b.Bind = append(b.Bind, a.Text)
			}
			return nil, nil
		}},
		{Name: "any", Setup: func(b *plugin.Block, _ []corefile.Directive) (plugin.New, error) {
			b.AnyClass = true
			return nil, nil
		}},
		{Name: "hooks", Setup: func(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
			b.OnStart(func(context.Context) error {
				p.started.Add(1)
				if len(lines[0].Args) > 0 {
					return errors.New(lines[0].Args[0].Text)
				}
				return nil
			})
			b.OnShutdown(func() error { p.stopped.Add(1); return nil })
			return nil, nil
		}},
		{Name: "view", Setup: func(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
			b.View = lines[0].Args[0].Text
			b.Filter = func(_ context.Context, _ dns.ResponseWriter, r *dns.Msg) bool {
				return strings.HasPrefix(r.Question[0].Name, b.View)
			}
			return nil, nil
		}},
		{Name: "watch", Setup: handler("watch", pass), Effect: plugin.Observes},
		{Name: "loadbalance", Setup: loadbalance.Setup, Effect: plugin.Changes},
		{Name: "header", Setup: header.Setup, Effect: plugin.Changes},
		{Name: "barrier", Setup: handler("barrier", pass), Effect: plugin.Changes},
		{Name: "panic", Effect: plugin.Local, Setup: handler("panic", func(string, context.Context, plugin.Handler, dns.ResponseWriter, *dns.Msg) (int, error) {
			panic("on purpose")
		})},
		{Name: "kubernetes", Setup: kubernetes.Setup(p.store.ForAll), Effect: plugin.Local},
		{Name: "slow", Effect: plugin.Answers, Setup: handler("slow", func(_ string, ctx context.Context, next plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			if strings.HasPrefix(r.Question[0].Name, "slow.") {
				p.waiting.Add(1)
				<-p.release
			}
			return plugin.NextOrFailure("slow", next, ctx, w, r)
		})},
		{Name: "answer", Effect: plugin.Local, Setup: handler("answer", func(arg string, _ context.Context, _ plugin.Handler, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{arg}}}
			return dns.RcodeSuccess, w.WriteMsg(m)
		})},
		{Name: "absent"},
	}
}

func parse(t testing.TB, text string) []corefile.ServerBlock {
	t.Helper()
	blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{Port: "0"})
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

// start serves the Corefile on a free port of every address.
func start(t testing.TB, p *testPlugins, text string, set ...func(*server.Config)) *server.Server {
	t.Helper()
	cfg := server.Config{Blocks: parse(t, text), Plugins: p.order(), Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()}
	for _, s := range set {
		s(&cfg)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// at is the address of the server on a loopback address.
func at(srv *server.Server, network, host string) string {
	_, port, _ := net.SplitHostPort(srv.LocalAddr(network).String())
	return net.JoinHostPort(host, port)
}

// exchange sends raw bytes and returns the raw reply, nil when none comes.
func exchange(t testing.TB, network, addr string, query []byte) []byte {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := c.Write(query); err != nil {
		t.Fatal(err)
	}
	return receive(t, c, network, 5*time.Second)
}

func receive(t testing.TB, c net.Conn, network string, wait time.Duration) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return nil
		}
		reply := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, reply); err != nil {
			return nil
		}
		return reply
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func query(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.Id = 4711
	return m
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ask(t testing.TB, srv *server.Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	reply := exchange(t, network, at(srv, network, "127.0.0.1"), pack(t, m))
	if reply == nil {
		t.Fatalf("no reply to %v over %s", m.Question, network)
	}
	got := new(dns.Msg)
	if err := got.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	return got
}

// Design §4: the direct path and the chain path give the same bytes, but for
// record order. Bytes of compressed names may differ, so messages are compared.
func TestDirectEqualsChain(t *testing.T) {
	for _, changes := range []string{" loadbalance\n", " loadbalance\n header {\n response set ra\n response clear aa\n }\n"} {
		directEqualsChain(t, changes)
	}
}

func directEqualsChain(t *testing.T, changes string) {
	const options = " {\n pods insecure\n fallthrough in-addr.arpa ip6.arpa\n ttl 30\n}\n"
	p := newTestPlugins()
	direct := start(t, p, ". {\n watch\n"+changes+" kubernetes cluster.local in-addr.arpa ip6.arpa"+options+"}")
	chain := start(t, p, ". {\n"+changes+" barrier\n kubernetes cluster.local in-addr.arpa ip6.arpa"+options+"}")
	compared := 0
	for _, name := range clustertest.Questions() {
		for _, qtype := range clustertest.Types() {
			for _, variant := range []func(*dns.Msg) (network string){
				func(*dns.Msg) string { return "udp" },
				func(m *dns.Msg) string { m.SetEdns0(1232, true); return "udp" },
				func(m *dns.Msg) string {
					m.SetEdns0(65535, false)
					m.RecursionDesired, m.CheckingDisabled = false, true
					o := m.IsEdns0()
					o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}, &dns.EDNS0_PADDING{Padding: make([]byte, 5)})
					return "udp"
				},
				func(*dns.Msg) string { return "tcp" },
			} {
				m := query(name, dns.StringToType[qtype])
				network := variant(m)
				a, b := ask(t, direct, network, m), ask(t, chain, network, m)
				if diff := cmp.Diff(canonical(b), canonical(a)); diff != "" {
					t.Errorf("%s %s over %s, -chain +direct:\n%s", name, qtype, network, diff)
				}
				compared++
			}
		}
	}
	t.Logf("%d compared", compared)
}

// canonical is a message as text, its records in order. Which records of a
// truncated one are left is chance, their number is not.
func canonical(m *dns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v %v\n", m.MsgHdr, m.Question)
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			lines = append(lines, rr.String())
		}
		slices.Sort(lines)
		if m.Truncated {
			lines = []string{fmt.Sprint(len(lines), " records")}
		}
		fmt.Fprintf(&b, "%d %s\n", i, strings.Join(lines, "\n"))
	}
	return b.String()
}

// Each odd message and CoreDNS's reply to it: the header's flags, rcode and
// counts, which is "no reply" for none.
func TestOddMessages(t *testing.T) {
	srv := start(t, newTestPlugins(), ". {\n kubernetes cluster.local\n}")
	name := []byte("\x03web\x04test\x03svc\x07cluster\x05local\x00")
	question := slices.Concat(name, []byte{0, 1, 0, 1})
	head := func(flags uint16, counts ...uint16) []byte {
		b := []byte{1, 2}
		b = binary.BigEndian.AppendUint16(b, flags)
		for i := range 4 {
			n := uint16(0)
			if i < len(counts) {
				n = counts[i]
			}
			b = binary.BigEndian.AppendUint16(b, n)
		}
		return b
	}
	opt := func(version byte, data ...byte) []byte {
		return append([]byte{0, 0, 41, 4, 208, 0, version, 0, 0, 0, byte(len(data))}, data...)
	}
	label := func(n int) []byte { return append([]byte{byte(n)}, bytes.Repeat([]byte("a"), n)...) }
	const rd = 0x0100
	for _, test := range []struct {
		what  string
		query []byte
		want  string // flags and rcode, then the counts
	}{
		{"eleven bytes", head(rd, 1)[:11], "no reply"},
		{"a reply", slices.Concat(head(0x8100, 1), question), "no reply"},
		{"opcode IQUERY", slices.Concat(head(0x0900, 1), question), "8904 0 0 0 0"},
		{"opcode UPDATE", slices.Concat(head(0x2900, 1), question), "a904 0 0 0 0"},
		{"opcode NOTIFY", slices.Concat(head(0x2100, 1), question), "a400 1 1 0 0"},
		{"opcode 15", slices.Concat(head(0x7900, 1), question), "f904 0 0 0 0"},
		{"no question", head(rd, 0), "8101 0 0 0 0"},
		{"two questions", slices.Concat(head(rd, 2), question, question), "8101 0 0 0 0"},
		{"two answers", slices.Concat(head(rd, 1, 2), question), "8101 0 0 0 0"},
		{"two authority records", slices.Concat(head(rd, 1, 0, 2), question), "8101 0 0 0 0"},
		{"three additional records", slices.Concat(head(rd, 1, 0, 0, 3), question), "8101 0 0 0 0"},
		{"a name cut off", slices.Concat(head(rd, 1), name[:3]), "8101 0 0 0 0"},
		{"a name without root", slices.Concat(head(rd, 1), name[:len(name)-1]), "8101 0 0 0 0"},
		{"a compression loop", slices.Concat(head(rd, 1), []byte{0xc0, 12, 0, 1, 0, 1}), "8101 0 0 0 0"},
		{"a forward pointer", slices.Concat(head(rd, 1), []byte{0xc0, 32, 0, 1, 0, 1}, make([]byte, 32)), "8102 1 0 0 0"},
		{"a reserved label type", slices.Concat(head(rd, 1), []byte{0x80, 'a', 0, 0, 1, 0, 1}), "8101 0 0 0 0"},
		{"256 bytes of name", slices.Concat(head(rd, 1), label(63), label(63), label(63), label(62), []byte{0, 0, 1, 0, 1}), "8101 0 0 0 0"},
		{"255 bytes of name", slices.Concat(head(rd, 1), label(63), label(63), label(63), label(61), []byte{0, 0, 1, 0, 1}), "8102 1 0 0 0"},
		{"no question bytes", head(rd, 1), "8102 0 0 0 0"},
		{"no type", slices.Concat(head(rd, 1), name), "8105 1 0 0 0"},
		{"no class", slices.Concat(head(rd, 1), name, []byte{0, 1}), "8105 1 0 0 0"},
		{"half a type", slices.Concat(head(rd, 1), name, []byte{0}), "8101 0 0 0 0"},
		{"a missing answer", slices.Concat(head(rd, 1, 1), question), "8500 1 1 0 0"},
		{"a missing additional record", slices.Concat(head(rd, 1, 0, 0, 1), question), "8500 1 1 0 0"},
		{"trailing bytes", slices.Concat(head(rd, 1), question, []byte("trailing")), "8500 1 1 0 0"},
		{"3000 trailing bytes", slices.Concat(head(rd, 1), question, make([]byte, 3000)), "8500 1 1 0 0"},
		{"110 labels", slices.Concat(head(rd, 1), bytes.Repeat([]byte("\x01a"), 110), []byte("\x07cluster\x05local\x00\x00\x01\x00\x01")), "8503 1 0 1 0"},
		{"odd bytes", slices.Concat(head(rd, 1), []byte("\x06a.b\x00\xff\\\x01\"\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01")), "8503 1 0 1 0"},
		{"class 0", slices.Concat(head(rd, 1), name, []byte{0, 1, 0, 0}), "8105 1 0 0 0"},
		{"class CH", slices.Concat(head(rd, 1), name, []byte{0, 1, 0, 3}), "8105 1 0 0 0"},
		{"class ANY", slices.Concat(head(rd, 1), name, []byte{0, 1, 0, 255}), "8105 1 0 0 0"},
		{"type 0", slices.Concat(head(rd, 1), name, []byte{0, 0, 0, 1}), "8500 1 0 1 0"},
		{"type OPT", slices.Concat(head(rd, 1), name, []byte{0, 41, 0, 1}), "8500 1 0 1 0"},
		{"flags of a reply", slices.Concat(head(0x07ff, 1), question), "8510 1 1 0 0"},
		{"EDNS version 1", slices.Concat(head(rd, 1, 0, 0, 1), question, opt(1)), "8100 1 0 0 1"},
		{"two OPT", slices.Concat(head(rd, 1, 0, 0, 2), question, opt(0), opt(0)), "8500 1 1 0 1"},
		{"OPT as answer", slices.Concat(head(rd, 1, 1), question, opt(0)), "8500 1 1 0 0"},
		{"an option beyond its record", slices.Concat(head(rd, 1, 0, 0, 1), question, opt(0, 0, 10, 0, 32, 'a')), "8101 1 0 0 0"},
		{"half an option", slices.Concat(head(rd, 1, 0, 0, 1), question, opt(0, 0)), "8101 1 0 0 0"},
		{"an unknown option", slices.Concat(head(rd, 1, 0, 0, 1), question, opt(0, 0, 77, 0, 1, 'a')), "8500 1 1 0 1"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			got := "no reply"
			if test.want == got {
				// A query behind it shows that this one is not just late.
				got = replyBefore(t, srv, network, test.query)
			} else if b := exchange(t, network, at(srv, network, "127.0.0.1"), test.query); b != nil {
				got = fmt.Sprintf("%04x %d %d %d %d", b[2:4], binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:]))
				if b[0] != 1 || b[1] != 2 {
					t.Errorf("%s over %s: ID %x", test.what, network, b[:2])
				}
			}
			if got != test.want {
				t.Errorf("%s over %s: %s, want %s", test.what, network, got, test.want)
			}
		}
	}
}

// replyBefore sends odd and then a query, and tells what came back first.
func replyBefore(t *testing.T, srv *server.Server, network string, odd []byte) string {
	t.Helper()
	c, err := net.Dial(network, at(srv, network, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range [][]byte{odd, pack(t, query("cluster.local.", dns.TypeSOA))} {
		if network == "tcp" {
			b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if b := receive(t, c, network, 5*time.Second); len(b) > 2 && binary.BigEndian.Uint16(b) == 4711 {
		return "no reply"
	}
	return "a reply"
}

func TestRouting(t *testing.T) {
	srv := start(t, newTestPlugins(), `
. {
	answer root
}
example.org A.EXAMPLE.org {
	answer example
}
b.example.org {
	answer b
}
empty.org {
}
v.org {
	view one
	answer one
}
v.org {
	view two
	answer two
}
`)
	for _, test := range []struct{ name, qtype, want string }{
		{"example.org.", "TXT", "example"},
		{"EXAMPLE.org.", "TXT", "example"},
		{"x.example.org.", "TXT", "example"},
		{"a.example.org.", "TXT", "example"},
		{"xexample.org.", "TXT", "root"},
		{"x.y.B.example.org.", "TXT", "b"},
		{"b.example.org.", "DS", "example"},
		{"example.org.", "DS", "example"},
		{"other.", "DS", "root"},
		{"org.", "TXT", "root"},
		{".", "TXT", "root"},
		{"x.empty.org.", "TXT", "REFUSED"},
		{"one.v.org.", "TXT", "one"},
		{"two.v.org.", "TXT", "two"},
		{"three.v.org.", "TXT", "root"},
	} {
		m := ask(t, srv, "udp", query(test.name, dns.StringToType[test.qtype]))
		got := dns.RcodeToString[m.Rcode]
		if len(m.Answer) > 0 {
			got = m.Answer[0].(*dns.TXT).Txt[0]
		}
		if got != test.want {
			t.Errorf("%s %s: %s, want %s", test.name, test.qtype, got, test.want)
		}
	}
}

func TestAnyClassOpensTheDoor(t *testing.T) {
	p := newTestPlugins()
	m := query("version.bind.", dns.TypeTXT)
	m.Question[0].Qclass = dns.ClassCHAOS
	for text, want := range map[string]int{". {\n answer x\n}": dns.RcodeRefused, ". {\n any\n answer x\n}": dns.RcodeSuccess} {
		if got := ask(t, start(t, p, text), "udp", m); got.Rcode != want {
			t.Errorf("%q: %s", text, dns.RcodeToString[got.Rcode])
		}
	}
}

// A reply must come from the address the query went to, or the client's
// connected socket drops it.
func TestRepliesFromTheAddressAsked(t *testing.T) {
	srv := start(t, newTestPlugins(), ". {\n slow\n kubernetes cluster.local\n}\nchain.test {\n answer x\n}")
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3", "::1"} {
		if host == "::1" && !hasIPv6() {
			continue
		}
		for _, name := range []string{"web.test.svc.cluster.local.", "chain.test."} { // direct and chain
			if exchange(t, "udp", at(srv, "udp", host), pack(t, query(name, dns.TypeA))) == nil {
				t.Errorf("%s at %s: no reply", name, host)
			}
		}
	}
}

func hasIPv6() bool {
	c, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		return false
	}
	return c.Close() == nil
}

func TestPanicCostsOneServfail(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := start(t, newTestPlugins(), ". {\n panic\n}", func(c *server.Config) { c.Registry = registry })
	for range 2 {
		if m := ask(t, srv, "udp", query("a.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s", dns.RcodeToString[m.Rcode])
		}
	}
	if got := counter(t, registry, "coredns_panics_total"); got != 2 {
		t.Errorf("%v panics counted", got)
	}
}

func counter(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// Queries that hang in the chain do not keep local names from being answered,
// nor others of the same connection.
func TestSlowQueriesDelayNobody(t *testing.T) {
	p := newTestPlugins()
	srv := start(t, p, ". {\n kubernetes cluster.local\n slow\n answer done\n}", func(c *server.Config) { c.MaxChain = 8 })
	slow := query("slow.test.", dns.TypeTXT)
	slow.Id = 1
	c, err := net.Dial("tcp", at(srv, "tcp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, m := range []*dns.Msg{slow, query("web.test.svc.cluster.local.", dns.TypeA)} {
		b := pack(t, m)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
	}
	if b := receive(t, c, "tcp", 5*time.Second); b == nil || binary.BigEndian.Uint16(b) != 4711 {
		t.Error("the local name was not answered before the slow one")
	}
	// Fill the chain from another address, then more: they are shed.
	u, err := net.Dial("udp", at(srv, "udp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 50 {
		if _, err := u.Write(pack(t, slow)); err != nil {
			t.Fatal(err)
		}
	}
	if m := ask(t, srv, "udp", query("web.test.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("with a full chain: %v", m)
	}
	if n := p.waiting.Load(); n > 8 {
		t.Errorf("%d queries in a chain for 8", n)
	}
	close(p.release)
	if b := receive(t, c, "tcp", 5*time.Second); b == nil || binary.BigEndian.Uint16(b) != 1 {
		t.Error("the slow query was not answered in the end")
	}
}

func TestReload(t *testing.T) {
	p := newTestPlugins()
	srv := start(t, p, ". {\n hooks\n answer old\n}")
	addr := at(srv, "udp", "127.0.0.1")
	u, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	expect := func(want string) {
		t.Helper()
		if _, err := u.Write(pack(t, query("a.", dns.TypeTXT))); err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(receive(t, u, "udp", 5*time.Second)); err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.TXT).Txt[0] != want {
			t.Fatalf("want %s, got %v %v", want, m, err)
		}
	}
	expect("old")
	for text, want := range map[string]string{
		". {\n hooks broken\n answer new\n}": "broken",
		". {\n absent\n}":                    `Corefile:2: plugin "absent" is one that CoreDNS has and Rutter does not; remove the line`,
		". {\n anwser\n}":                    `Corefile:2: unknown plugin "anwser"; did you mean "answer"?`,
		". {\n answer x\n}\nb.:1 {\n bind 192.0.2.1\n answer x\n}": "listen udp 192.0.2.1:1: this host does not have the address; correct the bind line, or add the address first",
	} {
		if err := srv.Reload(parse(t, text)); err == nil || err.Error() != want {
			t.Errorf("reload of %q: %v", text, err)
		}
		expect("old")
	}
	if err := srv.Reload(parse(t, ". {\n hooks\n answer new\n}")); err != nil {
		t.Fatal(err)
	}
	expect("new")
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a, b := p.started.Load(), p.stopped.Load(); a != 3 || b != 3 {
		t.Errorf("%d start hooks and %d shutdown hooks ran", a, b)
	}
	if err := srv.Reload(parse(t, ". {\n answer x\n}")); err == nil {
		t.Error("reloaded after the end")
	}
}

func TestPortInUse(t *testing.T) {
	p := newTestPlugins()
	first := start(t, p, ". {\n bind 127.0.0.1\n answer x\n}")
	_, port, _ := net.SplitHostPort(first.LocalAddr("udp").String())
	text := strings.ReplaceAll(".:PORT {\n bind 127.0.0.1\n hooks\n answer x\n}", "PORT", port)
	srv, err := server.New(server.Config{Blocks: parse(t, text), Plugins: p.order(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	err = srv.Start(context.Background())
	want := fmt.Sprintf("listen udp 127.0.0.1:%s: address already in use: another DNS server has it (ss -ulpn 'sport = :%s' shows which); stop it, or choose another port with -dns.port or another address with the bind plugin", port, port)
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	if a, b := p.started.Load(), p.stopped.Load(); a != 1 || b != 1 {
		t.Errorf("%d start hooks and %d shutdown hooks ran", a, b)
	}
}

// A connection that sends nothing, or half a query, is closed; one client does
// not get them all.
func TestTCPLimits(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := start(t, newTestPlugins(), ". {\n answer x\n}", func(c *server.Config) { c.MaxTCP, c.Registry = 8, registry })
	var conns []net.Conn
	for range 2 { // a quarter of eight
		c, err := net.Dial("tcp", at(srv, "tcp", "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := pack(t, query("a.", dns.TypeTXT))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
		if receive(t, c, "tcp", 5*time.Second) == nil {
			t.Fatal("no reply")
		}
		conns = append(conns, c)
	}
	c, err := net.Dial("tcp", at(srv, "tcp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the third connection was served: %d %v", n, err)
	}
	if got := counter(t, registry, "rutter_dns_shed_total"); got != 1 {
		t.Errorf("%v connections shed", got)
	}
	_ = conns
}

func TestAddrs(t *testing.T) {
	srv, err := server.New(server.Config{
		Blocks:  parse(t, "example.org:1053 {\n bind 127.0.0.1 ::1\n}\n.:53 {\n}\n10.0.0.0/8 {\n}"),
		Plugins: newTestPlugins().order(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{".:53", "10.in-addr.arpa.:0", "example.org.:1053 on 127.0.0.1", "example.org.:1053 on ::1"}
	if diff := cmp.Diff(want, srv.Addrs()); diff != "" {
		t.Error(diff)
	}
}

// Whatever bytes come, the next query is answered, and nothing piles up.
func TestRandomBytes(t *testing.T) {
	srv := start(t, newTestPlugins(), ". {\n barrier\n kubernetes cluster.local\n}")
	rng := rand.New(rand.NewPCG(3, 4))
	base := pack(t, query("web.test.svc.cluster.local.", dns.TypeA))
	u, err := net.Dial("udp", at(srv, "udp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for i := range 20_000 {
		b := slices.Clone(base)
		if i%2 == 0 { // all random, or a query with a few bytes changed
			b = make([]byte, rng.IntN(80))
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
		}
		for range rng.IntN(4) {
			if len(b) > 0 {
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
		}
		_, _ = u.Write(b) // a full buffer drops
	}
	// The flood may have filled the socket's buffer: ask until there is room.
	answered := false
	for range 50 {
		c, err := net.Dial("udp", at(srv, "udp", "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(base)
		answered = receive(t, c, "udp", 200*time.Millisecond) != nil
		_ = c.Close()
		if answered {
			break
		}
	}
	if !answered {
		t.Error("no reply over UDP after random bytes")
	}
	if m := ask(t, srv, "tcp", query("web.test.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("after random bytes: %v", m)
	}
}

// Shutdown answers what has arrived, and waits for what is under way.
func TestShutdownLosesNothing(t *testing.T) {
	p := newTestPlugins()
	srv := start(t, p, ". {\n slow\n answer done\n}")
	u, err := net.Dial("udp", at(srv, "udp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c, err := net.Dial("tcp", at(srv, "tcp", "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := pack(t, query("slow.test.", dns.TypeTXT))
	if _, err := u.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		t.Fatal(err)
	}
	for p.waiting.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Shutdown(context.Background()) }()
	close(p.release)
	if receive(t, u, "udp", 5*time.Second) == nil || receive(t, c, "tcp", 5*time.Second) == nil {
		t.Error("a query under way was not answered")
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", c.RemoteAddr().String()); err == nil {
		t.Error("still listening")
	}
}

// A reload that needs a plugin's port again finds it open, and the port is
// closed with its last user.
func TestPluginPortsSurviveReload(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan string, 1)
	listening := plugin.Entry{Name: "listening", Setup: func(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
		var l net.Listener
		b.OnStart(func(context.Context) (err error) {
			if l, err = b.Env.Listen("tcp", addr); err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					accepted <- lines[0].Args[0].Text
					_ = c.Close()
				}
			}()
			return nil
		})
		b.OnShutdown(func() error { return l.Close() })
		return nil, nil
	}}
	srv := start(t, newTestPlugins(), ". {\n listening one\n}", func(c *server.Config) { c.Plugins = append(c.Plugins, listening) })
	for _, name := range []string{"two", "three"} {
		if err := srv.Reload(parse(t, ". {\n listening "+name+"\n}")); err != nil {
			t.Fatal(err)
		}
		for got := ""; got != name; { // the one before may still accept
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got = <-accepted
		}
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("still open after the end")
	}
}
