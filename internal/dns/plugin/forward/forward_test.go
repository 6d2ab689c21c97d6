package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "forward", Setup: Setup, Effect: plugin.Answers}}

// answer replies to A questions with ip.
func answer(ip string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A "+ip))
	}
}

func rcodeOnly(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(plugintest.Reply(r, rcode)) }
}

func ask(t *testing.T, s *plugintest.Server, question string) string {
	t.Helper()
	m, err := s.Ask(question)
	if err != nil {
		t.Fatal(err)
	}
	return plugintest.Text(m)
}

func want(t *testing.T, s *plugintest.Server, question, reply string) {
	t.Helper()
	if diff := cmp.Diff(reply, ask(t, s, question)); diff != "" {
		t.Errorf("%s: -want +got:\n%s", question, diff)
	}
}

func TestForwardsAsIs(t *testing.T) {
	var mu sync.Mutex
	var seen *dns.Msg
	var network string
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		mu.Lock()
		seen, network = r.Copy(), w.RemoteAddr().Network()
		mu.Unlock()
		m := plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.7")
		m.Authoritative, m.AuthenticatedData = true, true
		_ = w.WriteMsg(m)
	})
	s := plugintest.Start(t, ". {\nforward . "+addr+"\n}\n", order...)
	for _, proto := range []string{"udp", "tcp"} {
		word := ""
		if proto == "tcp" {
			word = " tcp"
		}
		r, c, err := plugintest.ParseQuestion("ExAmple.org. A do ad cd nord" + word)
		if err != nil {
			t.Fatal(err)
		}
		r.Id = 4711
		m := s.Query(c, r)
		if m == nil || m.Id != 4711 {
			t.Fatalf("%s: reply %v has not the query's ID", proto, m)
		}
		if got, want := plugintest.Text(m), "NOERROR aa ra ad\nExAmple.org. 60 IN A 192.0.2.7\n"; got != want {
			t.Errorf("%s: got %q, want %q", proto, got, want)
		}
		mu.Lock()
		if network != proto {
			t.Errorf("asked over %s, want %s", network, proto)
		}
		if seen.RecursionDesired || !seen.CheckingDisabled || !seen.AuthenticatedData || seen.IsEdns0() == nil || !seen.IsEdns0().Do() || seen.Question[0].Name != "ExAmple.org." {
			t.Errorf("%s: the query was changed on its way: %v", proto, seen)
		}
		mu.Unlock()
	}
}

func TestZonesAndExceptions(t *testing.T) {
	one, two := plugintest.Upstream(t, answer("192.0.2.1")), plugintest.Upstream(t, answer("192.0.2.2"))
	s := plugintest.Start(t, ". {\nforward example.org "+one+" {\nexcept sub.Example.org\n}\nforward org "+two+"\n}\n", order...)
	want(t, s, "a.example.org. A", "NOERROR ra\na.example.org. 60 IN A 192.0.2.1\n")
	want(t, s, "EXAMPLE.org. A", "NOERROR ra\nEXAMPLE.org. 60 IN A 192.0.2.1\n")
	want(t, s, "a.sub.example.org. A", "NOERROR ra\na.sub.example.org. 60 IN A 192.0.2.2\n")
	want(t, s, "badexample.org. A", "NOERROR ra\nbadexample.org. 60 IN A 192.0.2.2\n")
	want(t, s, "example.net. A", "SERVFAIL\n")
}

// TestDeadUpstreams: refused ports are passed over, counted, and after
// max_fails checks not tried any more.
func TestDeadUpstreams(t *testing.T) {
	dead := closedPort(t)
	live := plugintest.Upstream(t, answer("192.0.2.1"))
	s := plugintest.Start(t, ". {\nforward . "+dead+" "+live+" {\npolicy sequential\nhealth_check 5ms\n}\n}\n", order...)
	want(t, s, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	want(t, s, "a. A tcp", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	h := s.Block.Handler(name).(*handler)
	waitFor(t, func() bool { return h.upstreams[0].down(2) })
	before := s.Metric(t, "coredns_proxy_conn_cache_misses_total", "to", dead)
	want(t, s, "b. A", "NOERROR ra\nb. 60 IN A 192.0.2.1\n")
	if after := s.Metric(t, "coredns_proxy_conn_cache_misses_total", "to", dead); after != before {
		t.Errorf("a query went to the upstream that is down (%v dials, then %v)", before, after)
	}
	if h.upstreams[1].down(2) {
		t.Error("the live upstream is down")
	}
	if n := s.Metric(t, "coredns_proxy_healthcheck_failures_total", "proxy_name", "forward", "to", dead); n < 2 {
		t.Errorf("healthcheck_failures_total is %v, want at least 2", n)
	}
}

// TestAllDown: with failfast the client is told at once; without, any upstream
// is tried, and a check that succeeds brings the upstream back.
func TestAllDown(t *testing.T) {
	dead := closedPort(t)
	for _, failfast := range []string{"", "failfast_all_unhealthy_upstreams"} {
		s := plugintest.Start(t, ". {\nforward . "+dead+" {\nmax_fails 1\nhealth_check 5ms\n"+failfast+"\n}\n}\n", order...)
		h := s.Block.Handler(name).(*handler)
		want(t, s, "a. A", "SERVFAIL\n")
		waitFor(t, func() bool { return h.upstreams[0].down(1) })
		want(t, s, "a. A", "SERVFAIL\n")
		if s.Metric(t, "coredns_forward_healthcheck_broken_total") < 1 {
			t.Errorf("%q: healthcheck_broken_total was not counted", failfast)
		}
	}
}

func TestUpstreamComesBack(t *testing.T) {
	addr := closedPort(t)
	s := plugintest.Start(t, ". {\nforward . "+addr+" {\nmax_fails 1\nhealth_check 5ms\n}\n}\n", order...)
	h := s.Block.Handler(name).(*handler)
	want(t, s, "a. A", "SERVFAIL\n")
	waitFor(t, func() bool { return h.upstreams[0].down(1) })
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: answer("192.0.2.9")}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
	waitFor(t, func() bool { return !h.upstreams[0].down(1) })
	want(t, s, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.9\n")
}

func TestNextAndFailover(t *testing.T) {
	nx, refused := plugintest.Upstream(t, rcodeOnly(dns.RcodeNameError)), plugintest.Upstream(t, rcodeOnly(dns.RcodeRefused))
	empty, good := plugintest.Upstream(t, rcodeOnly(dns.RcodeSuccess)), plugintest.Upstream(t, answer("192.0.2.1"))
	tests := []struct{ lines, want string }{
		{"forward . " + nx + "\nforward . " + good, "NXDOMAIN ra\n"},
		{"forward . " + nx + " {\nnext NXDOMAIN\n}\nforward . " + good, "NOERROR ra\na. 60 IN A 192.0.2.1\n"},
		{"forward . " + nx + " {\nnext NXDOMAIN\n}", "NXDOMAIN ra\n"},
		{"forward . " + empty + " {\nnext_on_nodata\n}\nforward . " + good, "NOERROR ra\na. 60 IN A 192.0.2.1\n"},
		{"forward . " + refused + " " + good + " {\npolicy sequential\nfailover REFUSED SERVFAIL\n}", "NOERROR ra\na. 60 IN A 192.0.2.1\n"},
		{"forward . " + refused + " " + nx + " {\npolicy sequential\n}", "REFUSED ra\n"},
		{"forward . " + refused + " {\nfailover REFUSED\n}", "REFUSED ra\n"},
	}
	for _, tt := range tests {
		s := plugintest.Start(t, ". {\n"+tt.lines+"\n}\n", order...)
		want(t, s, "a. A", tt.want)
	}
}

func TestTruncation(t *testing.T) {
	big := func(w dns.ResponseWriter, r *dns.Msg) {
		m := plugintest.Reply(r, dns.RcodeSuccess)
		udp := w.RemoteAddr().Network() == "udp"
		if udp && r.Question[0].Name == "tc." {
			m.Truncated = true
		} else {
			for i := range 60 {
				rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 192.0.2.%d", r.Question[0].Name, i))
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	}
	addr := plugintest.Upstream(t, big)
	plain := plugintest.Start(t, ". {\nforward . "+addr+"\n}\n", order...)
	prefer := plugintest.Start(t, ". {\nforward . "+addr+" {\nprefer_udp\n}\n}\n", order...)
	force := plugintest.Start(t, ". {\nforward . "+addr+" {\nprefer_udp\nforce_tcp\n}\n}\n", order...)
	want(t, plain, "tc. A", "NOERROR tc ra\n")
	want(t, plain, "big. A", "NOERROR tc ra\n") // larger than 512 and not marked
	for name, s := range map[string]*plugintest.Server{"prefer_udp": prefer, "force_tcp": force} {
		if got := strings.Count(ask(t, s, "tc. A edns"), "192.0.2."); got != 60 {
			t.Errorf("%s: %d records, want 60", name, got)
		}
	}
}

// TestWrongReplies: a reply to another question is FORMERR; one with another ID
// is not looked at.
func TestWrongReplies(t *testing.T) {
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1")
		switch r.Question[0].Name {
		case "question.":
			m.Question[0].Name = "other."
		case "query.":
			m.Response = false
		case "id.":
			forged := m.Copy()
			forged.Id++
			forged.Answer = nil
			_ = w.WriteMsg(forged)
		case "junk.":
			_, _ = w.Write([]byte("short"))
		}
		_ = w.WriteMsg(m)
	})
	s := plugintest.Start(t, ". {\nforward . "+addr+"\n}\n", order...)
	want(t, s, "question. A", "FORMERR\n")
	want(t, s, "query. A", "FORMERR\n")
	want(t, s, "id. A", "NOERROR ra\nid. 60 IN A 192.0.2.1\n")
	want(t, s, "junk. A", "NOERROR ra\njunk. 60 IN A 192.0.2.1\n")
}

// TestManyAtOnce: queries of many clients share few sockets, each gets its own
// reply, and what does not answer holds up nobody.
func TestManyAtOnce(t *testing.T) {
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if strings.HasPrefix(r.Question[0].Name, "silent") {
			return
		}
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	for _, proto := range []string{"", " tcp"} {
		t.Run("proto"+proto, func(t *testing.T) {
			t.Parallel()
			s := plugintest.Start(t, ". {\nforward . "+addr+" {\nread_timeout 3s\nmax_connect_attempts 1\n}\n}\n", order...)
			var wg sync.WaitGroup
			for i := range 120 { // few enough for the upstream's receive buffer
				wg.Go(func() {
					name, reply := fmt.Sprintf("n%d.", i), fmt.Sprintf("NOERROR ra\nn%d. 60 IN A 192.0.2.1\n", i)
					if i%20 == 0 {
						name, reply = fmt.Sprintf("silent%d.", i), "SERVFAIL\n"
					}
					m, err := s.Ask(name + " A" + proto)
					if got := plugintest.Text(m); err != nil || got != reply {
						t.Errorf("%s: got %q, want %q (%v)", name, got, reply, err)
					}
				})
			}
			wg.Wait()
			p := s.Block.Handler(name).(*handler).upstreams[0].udp
			p.mu.Lock()
			n := len(p.conns)
			p.mu.Unlock()
			if n > datagrams.conns {
				t.Errorf("%d sockets are open, want at most %d", n, datagrams.conns)
			}
		})
	}
}

// TestClosedConnections: an upstream that closes idle TCP connections costs no
// query.
func TestClosedConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go func() { // one query per connection
				defer c.Close()
				dc := &dns.Conn{Conn: c}
				r, err := dc.ReadMsg()
				if err == nil {
					_ = dc.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1"))
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	s := plugintest.Start(t, ". {\nforward . "+l.Addr().String()+" {\nforce_tcp\n}\n}\n", order...)
	for i := range 50 {
		want(t, s, fmt.Sprintf("n%d. A", i), fmt.Sprintf("NOERROR ra\nn%d. 60 IN A 192.0.2.1\n", i))
	}
	if accepted.Load() < 50 {
		t.Errorf("%d connections for 50 queries of which each closes one", accepted.Load())
	}
}

func TestMaxConcurrent(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{}, 8)
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		entered <- struct{}{}
		<-release
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess))
	})
	s := plugintest.Start(t, ". {\nforward . "+addr+" {\nmax_concurrent 1\n}\n}\n", order...)
	done := make(chan string)
	go func() {
		m, _ := s.Ask("a. A")
		done <- plugintest.Text(m)
	}()
	<-entered
	want(t, s, "b. A", "REFUSED\n")
	close(release)
	if got := <-done; got != "NOERROR ra\n" {
		t.Errorf("the query within the limit got %q", got)
	}
	if n := s.Metric(t, "coredns_forward_max_concurrent_rejects_total"); n != 1 {
		t.Errorf("max_concurrent_rejects_total is %v, want 1", n)
	}
}

func TestRoomForOthers(t *testing.T) {
	s := plugintest.Start(t, ". {\nforward . "+plugintest.Upstream(t, answer("192.0.2.1"))+"\n}\n", order...)
	h := s.Block.Handler(name).(*handler)
	h.everywhere.Add(maxEverywhere)
	want(t, s, "a. A", "SERVFAIL\n")
	h.everywhere.Add(-1)
	want(t, s, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	if n := h.everywhere.Load(); n != maxEverywhere-1 {
		t.Errorf("%d queries are counted, want %d", n, maxEverywhere-1)
	}
}

func TestUpstreamSpellings(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{
		"resolv.conf": "# comment\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a b\nnameserver 192.0.2.1\n",
		"stub.conf":   "nameserver 127.0.0.53\noptions edns0\n",
	})
	tests := []struct{ to, want string }{
		{"192.0.2.1", "192.0.2.1:53"},
		{"192.0.2.1:54 192.0.2.1 192.0.2.1:53", "192.0.2.1:54 192.0.2.1:53"},
		{"2001:db8::1 [2001:db8::2]:54 [2001:db8::3]", "[2001:db8::1]:53 [2001:db8::2]:54 [2001:db8::3]:53"},
		{"fe80::1%eth0", "[fe80::1%eth0]:53"},
		{"dns://192.0.2.1", "192.0.2.1:53"},
		{"tls://192.0.2.1 tls://[2001:db8::1]:54", "tls://192.0.2.1:853/192.0.2.1 tls://[2001:db8::1]:54/2001:db8::1"},
		{"tls://192.0.2.1%dns.test tls://192.0.2.2%dns.test:54 tls://2001:db8::1%dns.test", "tls://192.0.2.1:853/dns.test tls://192.0.2.2:54/dns.test tls://[2001:db8::1]:853/dns.test"},
		{"https://192.0.2.1 https://192.0.2.2:444", "https://192.0.2.1:443/192.0.2.1 https://192.0.2.2:444/192.0.2.2"},
		{dir + "/resolv.conf", "192.0.2.1:53 [2001:db8::1]:53"},
	}
	for _, tt := range tests {
		env, _ := plugintest.NewEnv()
		sb, err := plugintest.Parse(". {\nforward . "+tt.to+"\n}\n", order)
		if err != nil {
			t.Fatal(err)
		}
		h, err := parse(&plugin.Block{Env: env}, sb.Directives[0])
		if err != nil {
			t.Errorf("%s: %v", tt.to, err)
			continue
		}
		var got []string
		for _, u := range h.upstreams {
			text := u.addr
			if u.transport != plain {
				text = map[transport]string{overTLS: "tls://", overHTTP: "https://"}[u.transport] + text + "/" + u.tls.ServerName
			}
			got = append(got, text)
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.to, diff)
		}
	}
}

func TestNameOfUpstream(t *testing.T) {
	resolver := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if r.Question[0].Qtype == dns.TypeA {
			_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 127.0.0.1"))
			return
		}
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess))
	})
	up := plugintest.Upstream(t, answer("192.0.2.1"))
	_, port, _ := net.SplitHostPort(up)
	s := plugintest.Start(t, ". {\nforward . dns.example.org:"+port+" {\nresolver "+resolver+"\n}\n}\n", order...)
	want(t, s, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
}

func TestRefuses(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"empty": "search a\n", "junk.pem": "junk"})
	block := func(property string) string { return "forward . 192.0.2.1 {\n" + property + "\n}" }
	many := "forward ."
	for i := range 16 {
		many += fmt.Sprintf(" 192.0.2.%d", i)
	}
	cases := [][2]string{
		{"forward", "wrong arguments"},
		{"forward .", "wrong arguments"},
		{many, "at most 15"},
		{"forward a..b 192.0.2.1", "empty label"},
		{"forward . grpc://192.0.2.1", "unknown transport"},
		{"forward . https://192.0.2.1/dns-query", "has a path"},
		{"forward . " + dir + "/none", "no such file"},
		{"forward . " + dir + "/empty", "has no nameserver"},
		{"forward . not/a/host", "no such file"},
		{"forward . a:b", "no upstream"},
		{"forward . tls://192.0.2.1%a {\ntls_servername b\n}", "both give a TLS name"},
		{block("forcetcp"), `did you mean "force_tcp"?`},
		{block("force_tcp yes"), "no argument"},
		{block("prefer_udp yes"), "no argument"},
		{block("next_on_nodata yes"), "no argument"},
		{block("failfast_all_unhealthy_upstreams yes"), "no argument"},
		{block("expire 10"), "not a duration"},
		{block("expire -1s"), "too short"},
		{block("max_age 1s"), "shorter than expire"},
		{block("max_idle_conns -1"), "at least 0"},
		{block("read_timeout 0s"), "too short"},
		{block("max_fails -1"), "at least 0"},
		{block("max_fails"), "wrong arguments"},
		{block("max_connect_attempts x"), "at least 0"},
		{block("policy roundrobin"), `did you mean "round_robin"?`},
		{block("policy"), "wrong arguments"},
		{block("health_check x"), "not a duration"},
		{block("health_check 1s norec"), `did you mean "no_rec"?`},
		{block("health_check 1s domain"), "wrong arguments"},
		{block("health_check 1s domain a..b"), "no domain name"},
		{block("max_concurrent -1"), "at least 0"},
		{block("next NXDOMIAN"), `did you mean "NXDOMAIN"?`},
		{block("next"), "wrong arguments"},
		{block("failover NOERROR"), "failover on NOERROR"},
		{block("tls a b c d"), "wrong arguments"},
		{block("tls " + dir + "/none"), "no such file"},
		{block("tls " + dir + "/junk.pem"), "no certificate"},
		{block("tls a b"), "client certificate"},
		{block("tls_servername"), "wrong arguments"},
		{block("doh_method PUT"), "unknown HTTP method"},
		{block("source_address x"), "no IP address"},
		{block("resolver x"), "no IP address"},
		{block("except a..b"), "empty label"},
	}
	plugintest.Refuses(t, order, cases)
	plugintest.Accepts(t, order,
		block("except a b\nexcept c\nforce_tcp\nprefer_udp\nexpire 5s\nmax_age 10s\nmax_idle_conns 3\nread_timeout 1s\nmax_fails 0\nmax_connect_attempts 0"),
		block("policy sequential\nhealth_check 1s no_rec domain example.org\nmax_concurrent 10\nnext NXDOMAIN servfail\nfailover REFUSED\ntls\ntls_servername a"),
		block("doh_method get\nsource_address 127.0.0.1\nresolver 192.0.2.1 [2001:db8::1]:54 192.0.2.1:54"),
		"forward 10.0.0.0/15 192.0.2.1",
	)
}

func TestResolvConf(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		file string
		want []netip.Addr
		stub bool
	}{
		{"", nil, false},
		{"nameserver 127.0.0.53\n", []netip.Addr{addr("127.0.0.53")}, true},
		{"nameserver 127.0.0.53\nnameserver 192.0.2.1", []netip.Addr{addr("127.0.0.53"), addr("192.0.2.1")}, false},
		{"; nameserver 1.1.1.1\n#nameserver 1.1.1.1\n\tnameserver\t fe80::1%eth0 # x\r\n", []netip.Addr{addr("fe80::1%eth0")}, false},
		{"nameserver\nnameserver x\nnameservers 1.1.1.1\n", nil, false},
	}
	for _, tt := range tests {
		got := nameservers([]byte(tt.file))
		if fmt.Sprint(got) != fmt.Sprint(tt.want) || systemdStub(got) != tt.stub {
			t.Errorf("%q: got %v (stub %t), want %v (%t)", tt.file, got, systemdStub(got), tt.want, tt.stub)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nsearch a\nnameserver fe80::1%eth0 # x\n"))
	f.Add([]byte("nameserver"))
	f.Fuzz(func(t *testing.T, file []byte) {
		var again strings.Builder
		list := nameservers(file)
		for _, a := range list {
			if !a.IsValid() || strings.ContainsAny(a.Zone(), " \t\n") {
				t.Fatalf("address %q", a)
			}
			fmt.Fprintf(&again, "nameserver %s\n", a)
		}
		if got := nameservers([]byte(again.String())); fmt.Sprint(got) != fmt.Sprint(list) {
			t.Fatalf("written and read again: %v, want %v", got, list)
		}
	})
}

func closedPort(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().String()
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("did not happen within 5 s")
}

func TestErrorTexts(t *testing.T) {
	dead := closedPort(t)
	s := plugintest.Start(t, ". {\nforward . "+dead+" {\nmax_fails 0\n}\n}\n", order...)
	r, c, _ := plugintest.ParseQuestion("a. A")
	_, err := s.Block.First().ServeDNS(t.Context(), &plugintest.Writer{Client: plugintest.Client{Remote: netip.MustParseAddrPort("192.0.2.1:1"), TCP: c.TCP}}, r)
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want connection refused", err)
	}
	if !errors.Is(&net.OpError{Err: os.ErrDeadlineExceeded}, os.ErrDeadlineExceeded) {
		t.Error("time-outs are not recognised")
	}
}
