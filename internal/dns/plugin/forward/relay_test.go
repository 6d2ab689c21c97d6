package forward_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/cache"
	"github.com/rutter-project/rutter/internal/dns/plugin/forward"
	"github.com/rutter-project/rutter/internal/dns/plugin/header"
	"github.com/rutter-project/rutter/internal/dns/plugin/loadbalance"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// barrier is a plugin that queries pass in the chain only.
type barrier struct{ next plugin.Handler }

func (b barrier) Name() string { return "barrier" }

func (b barrier) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure("barrier", b.next, ctx, w, r)
}

var relayOrder = []plugin.Entry{
	{Name: "barrier", Effect: plugin.Changes, Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
		return func(next plugin.Handler) plugin.Handler { return barrier{next} }, nil
	}},
	{Name: "loadbalance", Effect: plugin.Changes, Setup: loadbalance.Setup},
	{Name: "cache", Effect: plugin.Answers, Setup: cache.Setup},
	{Name: "header", Effect: plugin.Changes, Setup: header.Setup},
	{Name: "forward", Effect: plugin.Answers, Setup: forward.Setup},
}

// relayServer is a server on a port of its own.
type relayServer struct {
	*server.Server
	registry *prometheus.Registry
}

func startServer(t testing.TB, text string) *relayServer {
	t.Helper()
	blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{Port: "0"})
	if err != nil {
		t.Fatal(err)
	}
	r := &relayServer{registry: prometheus.NewRegistry()}
	if r.Server, err = server.New(server.Config{Blocks: blocks, Plugins: relayOrder, Log: slog.New(slog.DiscardHandler), Registry: r.registry}); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// counter is the value of a metric with a label, over all other labels.
func (r *relayServer) counter(t testing.TB, metric, label, value string) (sum float64) {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == metric && l.GetName() == label && l.GetValue() == value {
					sum += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	return sum
}

func (r *relayServer) relayed(t testing.TB) int {
	return int(r.counter(t, "rutter_dns_queries_total", "path", "relay"))
}

func (r *relayServer) ask(t testing.TB, m *dns.Msg) *dns.Msg {
	t.Helper()
	port := r.LocalAddr("udp").(*net.UDPAddr).Port
	c := dns.Client{Timeout: time.Minute, UDPSize: 65535}
	reply, _, err := c.Exchange(m, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("%v: %v", m.Question, err)
	}
	return reply
}

// oddUpstream answers each name in a way of its own.
func oddUpstream(t testing.TB) string {
	return plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		q := r.Question[0]
		m := plugintest.Reply(r, dns.RcodeSuccess)
		if o := r.IsEdns0(); o != nil {
			m.SetEdns0(1400, o.Do())
		}
		m.Compress = true
		add := func(records ...string) {
			for _, text := range records {
				rr, err := dns.NewRR(text)
				if err != nil {
					t.Error(err)
					return
				}
				m.Answer = append(m.Answer, rr)
			}
		}
		pack := func() []byte {
			b, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			return b
		}
		switch kind, _, _ := strings.Cut(strings.ToLower(q.Name), "."); kind {
		case "one":
			add(q.Name + " 60 IN A 192.0.2.1")
		case "many":
			for i := range 20 {
				add(fmt.Sprintf("%s 60 IN A 192.0.2.%d", q.Name, i))
			}
		case "flags":
			m.Authoritative, m.AuthenticatedData, m.Zero, m.RecursionAvailable = true, true, true, false
			add(q.Name + " 60 IN A 192.0.2.1")
		case "plainnames":
			m.Compress = false
			add(q.Name+" 60 IN CNAME target.example.org.", "target.example.org. 60 IN A 192.0.2.1")
		case "kinds":
			add(q.Name+" 60 IN CNAME target.example.org.", "target.example.org. 60 IN AAAA 2001:db8::1", q.Name+" 60 IN MX 10 mx.example.org.",
				q.Name+` 60 IN TXT "a" "b"`, q.Name+" 60 IN SRV 1 2 53 srv.example.org.", q.Name+" 60 IN NS ns.example.org.", q.Name+" 60 IN PTR ptr.example.org.")
		case "caa": // a type that the relay does not know
			add(q.Name + ` 60 IN CAA 0 issue "example.org"`)
		case "nxdomain":
			m = plugintest.Reply(r, dns.RcodeNameError, "example.org. 60 IN SOA ns.example.org. mail.example.org. 1 2 3 4 5")
		case "servfail":
			m.Rcode = dns.RcodeServerFailure
		case "refused":
			m.Rcode = dns.RcodeRefused
		case "badvers":
			m.SetEdns0(1400, false)
			m.Rcode = dns.RcodeBadVers
		case "ede":
			if o := m.IsEdns0(); o != nil {
				o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: 3, ExtraText: "stale"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"})
			}
		case "subnet":
			if o := m.IsEdns0(); o != nil {
				o.Option = append(o.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)})
			}
		case "unasked": // EDNS that nobody asked for
			m.SetEdns0(1400, false)
		case "noedns":
			m.Extra = nil
			add(q.Name + " 60 IN A 192.0.2.1")
		case "optfirst":
			rr, _ := dns.NewRR("extra.example.org. 60 IN A 192.0.2.1")
			m.Extra = append(m.Extra, rr)
		case "large":
			for i := range 60 {
				add(fmt.Sprintf("%s 60 IN AAAA 2001:db8::%x", q.Name, i))
			}
		case "huge":
			for i := range 300 {
				add(fmt.Sprintf("%s 60 IN AAAA 2001:db8::%x", q.Name, i))
			}
		case "truncated":
			m.Truncated = true
		case "case":
			m.Question[0].Name = strings.ToUpper(q.Name)
			add(strings.ToUpper(q.Name) + " 60 IN A 192.0.2.1")
		case "othername":
			m.Question[0].Name = "other."
		case "othertype":
			m.Question[0].Qtype = dns.TypeSRV
		case "noquestion":
			m.Question = nil
		case "garbage":
			add(q.Name + " 60 IN A 192.0.2.1")
			_, _ = w.Write(append(pack(), 1, 2, 3))
			return
		case "shorta":
			add(q.Name + " 60 IN A 192.0.2.1")
			m.Extra = nil
			b := pack()
			binary.BigEndian.PutUint16(b[len(b)-6:], 3)
			_, _ = w.Write(b[:len(b)-1])
			return
		case "otherid": // a forged reply first
			m.Id++
			add(q.Name + " 60 IN A 198.51.100.1")
			_, _ = w.Write(pack())
			m.Id--
			m.Answer = nil
			add(q.Name + " 60 IN A 192.0.2.1")
		case "twice":
			add(q.Name + " 60 IN A 192.0.2.1")
			_, _ = w.Write(pack())
		}
		_, _ = w.Write(pack())
	})
}

// What the relay answers is what the chain answers, however the upstream
// replies; and common replies are relayed.
func TestRelayEqualsChain(t *testing.T) {
	up := oddUpstream(t)
	kinds := strings.Fields("one many flags plainnames kinds caa nxdomain servfail refused badvers ede subnet unasked noedns optfirst large huge " +
		"truncated case othername othertype noquestion garbage shorta otherid twice nodata")
	const flags = "header {\nresponse set ra\nresponse clear aa\n}"
	for _, c := range [][2]string{{"", ""}, {"prefer_udp", ""}, {"next NXDOMAIN", ""}, {"failover SERVFAIL REFUSED", ""}, {"next_on_nodata", ""},
		{"", flags}, {"", "cache 30"}, {"", "cache 30 {\nkeepttl\n}\n" + flags}} {
		options, others := c[0], c[1]
		cached := strings.HasPrefix(others, "cache")
		text := ". {\n%s\nloadbalance\n" + others + "\nforward . " + up + " {\n" + options + "\nread_timeout 10s\n}\nforward . " + up + "\n}\n"
		options += others
		relay, chain := startServer(t, fmt.Sprintf(text, "")), startServer(t, fmt.Sprintf(text, "barrier"))
		asked := 0
		for _, kind := range kinds {
			for i, variant := range []func(*dns.Msg){
				func(*dns.Msg) {},
				func(m *dns.Msg) { m.SetEdns0(1232, true); m.AuthenticatedData = true },
				func(m *dns.Msg) {
					m.SetEdns0(4096, false)
					m.RecursionDesired, m.CheckingDisabled = false, true
					o := m.IsEdns0()
					o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
				},
			} {
				m := new(dns.Msg)
				m.SetQuestion(kind+".Example.ORG.", dns.TypeA)
				variant(m)
				got, want := relay.ask(t, m), chain.ask(t, m)
				if diff := cmp.Diff(canonical(want), canonical(got)); diff != "" {
					t.Errorf("%q, %s, variant %d: -chain +relay:\n%s", options, kind, i, diff)
				}
				asked++
				if !cached {
					continue
				}
				// What a cache keeps for seconds may have gone in one of
				// them on a busy machine: then both have it anew.
				diff := "none"
				for tries := 0; diff != "" && tries < 5; tries++ {
					diff = cmp.Diff(withoutTTLs(chain.ask(t, m)), withoutTTLs(relay.ask(t, m)))
				}
				if diff != "" {
					t.Errorf("%q, %s, variant %d, once more: -chain +relay:\n%s", options, kind, i, diff)
				}
			}
		}
		if cached {
			for _, metric := range []string{"coredns_cache_requests_total", "coredns_cache_drops_total"} {
				a, b := relay.counter(t, metric, "zones", "."), chain.counter(t, metric, "zones", ".")
				if a != b {
					t.Errorf("%q: %s is %v, the chain's %v", options, metric, a, b)
				}
			}
			lookups := func(s *relayServer) float64 {
				return s.counter(t, "coredns_cache_misses_total", "zones", ".") + s.counter(t, "coredns_cache_hits_total", "zones", ".")
			}
			if all := relay.counter(t, "coredns_cache_requests_total", "zones", "."); all != lookups(relay) || all < float64(asked) {
				t.Errorf("%q: %v queries of %d, but %v hits and misses", options, all, asked, lookups(relay))
			}
		}
		// With a cache, also those that it does not keep when asked once more.
		if n := relay.relayed(t); n < asked || n > asked && !cached {
			t.Errorf("%q: the relay had %d of %d queries", options, n, asked)
		}
		if n := chain.relayed(t); n != 0 {
			t.Errorf("%q: %d queries were relayed past the barrier", options, n)
		}
		// The upstream's durations are counted once for each reply, on both ways.
		for _, rcode := range []string{"NOERROR", "NXDOMAIN", "SERVFAIL"} {
			a, b := relay.counter(t, "coredns_proxy_request_duration_seconds", "rcode", rcode), chain.counter(t, "coredns_proxy_request_duration_seconds", "rcode", rcode)
			if a != b {
				t.Errorf("%q: %v durations with %s, the chain has %v", options, a, rcode, b)
			}
		}
	}
}

func withoutTTLs(m *dns.Msg) string {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				rr.Header().Ttl = 0
			}
		}
	}
	return canonical(m)
}

// canonical is a message as text, its records in order, but for how much a
// truncated one holds.
func canonical(m *dns.Msg) string {
	var b strings.Builder
	m.Id = 0
	fmt.Fprintf(&b, "%+v %v\n", m.MsgHdr, m.Question)
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			lines = append(lines, rr.String())
		}
		slices.Sort(lines)
		if m.Truncated && i == 0 {
			lines = []string{fmt.Sprint(len(lines), " records")}
		}
		fmt.Fprintf(&b, "%d %s\n", i, strings.Join(lines, "\n"))
	}
	return b.String()
}

// A query whose upstream does not reply, or whose port is closed, goes on to
// the next one, and the upstream's health is looked after.
func TestRelayGoesOn(t *testing.T) {
	var silent atomic.Bool
	silent.Store(true)
	mute := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if !silent.Load() {
			_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1"))
		}
	})
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := closed.LocalAddr().String()
	closed.Close()
	live := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.2"))
	})
	for name, first := range map[string]string{"mute": mute, "dead": dead} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, ". {\nforward . "+first+" "+live+" {\npolicy sequential\nread_timeout 500ms\nhealth_check 10ms\nmax_fails 1\n}\n}\n")
			ask := func() string {
				m := new(dns.Msg)
				m.SetQuestion("a.example.org.", dns.TypeA)
				r := s.ask(t, m)
				if len(r.Answer) != 1 {
					t.Fatalf("%v", r)
				}
				return r.Answer[0].(*dns.A).A.String()
			}
			if got := ask(); got != "192.0.2.2" {
				t.Errorf("answer %s, want that of the second upstream", got)
			}
			if s.relayed(t) != 1 {
				t.Error("the first attempt was not relayed")
			}
			// Checks fail until the upstream is down: then nothing is relayed to it.
			deadline := time.Now().Add(time.Minute)
			for n := s.relayed(t); ; n = s.relayed(t) {
				if got := ask(); got != "192.0.2.2" {
					t.Fatalf("answer %s", got)
				}
				if s.relayed(t) == n {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the upstream does not go down")
				}
			}
			if name == "mute" {
				silent.Store(false)
				for ask() != "192.0.2.1" {
					if time.Now().After(deadline) {
						t.Fatal("the upstream does not come up again")
					}
				}
			}
		})
	}
}

// Many clients at once get their own answers, over more sockets than one, and
// a configuration that is replaced ends with its sockets.
func TestRelayManyAtOnce(t *testing.T) {
	up := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		var n int
		_, _ = fmt.Sscanf(r.Question[0].Name, "n%d.", &n)
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, fmt.Sprintf("%s 60 IN A 10.0.%d.%d", r.Question[0].Name, n>>8, n&0xff)))
	})
	text := ". {\nforward . " + up + "\n}\n"
	s := startServer(t, text)
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := range 250 {
				n := c*250 + i
				m := new(dns.Msg)
				m.SetQuestion(fmt.Sprintf("n%d.example.org.", n), dns.TypeA)
				r := s.ask(t, m)
				if want := fmt.Sprintf("10.0.%d.%d", n>>8, n&0xff); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != want {
					t.Errorf("%s: %v", m.Question[0].Name, r.Answer)
				}
				if i == 100 && c == 0 {
					blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{Port: "0"})
					if err == nil {
						err = s.Reload(blocks)
					}
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	clients.Wait()
	if n := s.relayed(t); n < 1900 { // a few meet the reload
		t.Errorf("%d of 2,000 queries were relayed", n)
	}
}
