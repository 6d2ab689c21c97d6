package cache

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const soa = "example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5"

// upstream answers by the first label of the name, with the number of the
// query it is as the last octet of addresses.
type upstream struct {
	queries atomic.Int32
	reply   atomic.Pointer[func(n int32, r *dns.Msg) *dns.Msg]
	local   bool // has data of its own
	source  string
}

func (u *upstream) Source() string { return u.source }

func (*upstream) Name() string { return "upstream" }

func (u *upstream) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	n := u.queries.Add(1)
	if f := u.reply.Load(); f != nil {
		m := (*f)(n, r)
		if m == nil {
			return dns.RcodeServerFailure, nil
		}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	return dns.RcodeSuccess, w.WriteMsg(byLabel(n, r))
}

func (u *upstream) answer(f func(n int32, r *dns.Msg) *dns.Msg) { u.reply.Store(&f) }

func byLabel(n int32, r *dns.Msg) *dns.Msg {
	name := r.Question[0].Name
	label, _, _ := strings.Cut(strings.ToLower(name), ".")
	rr := func(format string) string { return fmt.Sprintf("%s "+format, name, n%250) }
	switch label {
	case "nx":
		return plugintest.Reply(r, dns.RcodeNameError, soa)
	case "nxnosoa":
		return plugintest.Reply(r, dns.RcodeNameError)
	case "nodata":
		return plugintest.Reply(r, dns.RcodeSuccess, soa)
	case "empty":
		return plugintest.Reply(r, dns.RcodeSuccess)
	case "dangling":
		return plugintest.Reply(r, dns.RcodeSuccess, name+" 60 IN CNAME target.example.org.")
	case "danglingsoa":
		return plugintest.Reply(r, dns.RcodeSuccess, name+" 60 IN CNAME target.example.org.", soa)
	case "alias":
		return plugintest.Reply(r, dns.RcodeSuccess, name+" 60 IN CNAME target.example.org.", fmt.Sprintf("Target.example.org. 300 IN A 192.0.2.%d", n%250))
	case "refused":
		return plugintest.Reply(r, dns.RcodeRefused)
	case "servfail":
		return plugintest.Reply(r, dns.RcodeServerFailure)
	case "notimp":
		return plugintest.Reply(r, dns.RcodeNotImplemented)
	case "tc":
		m := plugintest.Reply(r, dns.RcodeSuccess, rr("60 IN A 192.0.2.%d"))
		m.Truncated = true
		return m
	case "wrong":
		m := plugintest.Reply(r, dns.RcodeSuccess, "other. 60 IN A 192.0.2.1")
		m.Question[0].Name = "other."
		return m
	case "zero":
		return plugintest.Reply(r, dns.RcodeSuccess, rr("0 IN A 192.0.2.%d"))
	case "long":
		return plugintest.Reply(r, dns.RcodeSuccess, rr("90000 IN A 192.0.2.%d"))
	case "mixed":
		return plugintest.Reply(r, dns.RcodeSuccess, rr("300 IN A 192.0.2.%d"), rr("40 IN A 192.0.3.%d"))
	case "ad":
		m := plugintest.Reply(r, dns.RcodeSuccess, rr("60 IN A 192.0.2.%d"))
		m.AuthenticatedData = r.AuthenticatedData
		return m
	case "opt":
		m := plugintest.Reply(r, dns.RcodeSuccess, rr("60 IN A 192.0.2.%d"))
		m.SetEdns0(1232, true)
		return m
	}
	return plugintest.Reply(r, dns.RcodeSuccess, rr("60 IN A 192.0.2.%d"))
}

type fixture struct {
	*plugintest.Server
	upstream *upstream
	handler  *handler
	clock    *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) get() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func orderWith(u *upstream) []plugin.Entry {
	effect := plugin.Answers
	if u.local {
		effect = plugin.Local
	}
	return []plugin.Entry{
		{Name: name, Setup: Setup, Effect: plugin.Answers},
		{Name: "upstream", Effect: effect, Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
			return func(plugin.Handler) plugin.Handler { return u }, nil
		}},
	}
}

func start(t *testing.T, line string) *fixture { return startWith(t, line, &upstream{}) }

func startWith(t *testing.T, line string, u *upstream) *fixture {
	t.Helper()
	s := plugintest.Start(t, ". {\n"+line+"\nupstream\n}\n", orderWith(u)...)
	f := &fixture{Server: s, upstream: u, handler: s.Block.Handler(name).(*handler), clock: &clock{now: time.Now()}}
	f.handler.now = f.clock.get
	return f
}

func (f *fixture) want(t *testing.T, question, reply string) {
	t.Helper()
	m, err := f.Ask(question)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(reply, plugintest.Text(m)); diff != "" {
		t.Errorf("%s: -want +got:\n%s", question, diff)
	}
}

func (f *fixture) count(t *testing.T, metric string, labels ...string) int {
	t.Helper()
	return int(f.Metric(t, metric, append(labels, "server", "dns://:53")...))
}

// TestWhatIsCached asks twice, five seconds apart, for each kind of reply.
func TestWhatIsCached(t *testing.T) {
	tests := []struct {
		question    string
		first, next string
	}{
		{"a.example.org. A", "NOERROR ra\na.example.org. 60 IN A 192.0.2.1\n", "NOERROR aa ra\na.example.org. 55 IN A 192.0.2.1\n"},
		{"nx.example.org. A", "NXDOMAIN ra\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n", "NXDOMAIN aa ra\nauthority example.org. 15 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n"},
		{"nodata. A", "NOERROR ra\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n", "NOERROR aa ra\nauthority example.org. 15 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n"},
		{"mixed. A", "NOERROR ra\nmixed. 40 IN A 192.0.2.1\nmixed. 40 IN A 192.0.3.1\n", "NOERROR aa ra\nmixed. 35 IN A 192.0.2.1\nmixed. 35 IN A 192.0.3.1\n"},
		{"long. A", "NOERROR ra\nlong. 3600 IN A 192.0.2.1\n", "NOERROR aa ra\nlong. 3595 IN A 192.0.2.1\n"},
		{"alias. A", "NOERROR ra\nalias. 60 IN CNAME target.example.org.\nTarget.example.org. 60 IN A 192.0.2.1\n", "NOERROR aa ra\nalias. 55 IN CNAME target.example.org.\nTarget.example.org. 55 IN A 192.0.2.1\n"},
		{"danglingsoa. A", "NOERROR ra\ndanglingsoa. 20 IN CNAME target.example.org.\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n", "NOERROR aa ra\ndanglingsoa. 15 IN CNAME target.example.org.\nauthority example.org. 15 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n"},
		{"opt. A", "NOERROR ra\nopt. 60 IN A 192.0.2.1\n", "NOERROR aa ra\nopt. 55 IN A 192.0.2.1\n"},
		// Kept for five seconds at least: gone after five.
		{"zero. A", "NOERROR ra\nzero. 5 IN A 192.0.2.1\n", "NOERROR ra\nzero. 5 IN A 192.0.2.2\n"},
		// Not kept.
		{"nxnosoa. A", "NXDOMAIN ra\n", "NXDOMAIN ra\n"},
		{"dangling. A", "NOERROR ra\ndangling. 60 IN CNAME target.example.org.\n", "NOERROR ra\ndangling. 60 IN CNAME target.example.org.\n"},
		{"refused. A", "REFUSED ra\n", "REFUSED ra\n"},
		{"tc. A", "NOERROR tc ra\ntc. 60 IN A 192.0.2.1\n", "NOERROR tc ra\ntc. 60 IN A 192.0.2.2\n"},
		// Authenticated data only for who asks.
		{"ad. A", "NOERROR ra\nad. 60 IN A 192.0.2.1\n", "NOERROR aa ra\nad. 55 IN A 192.0.2.1\n"},
		{"ad. A ad", "NOERROR ra ad\nad. 60 IN A 192.0.2.1\n", "NOERROR aa ra ad\nad. 55 IN A 192.0.2.1\n"},
		{"ad. A do", "NOERROR ra ad\nad. 60 IN A 192.0.2.1\n", "NOERROR aa ra ad\nad. 55 IN A 192.0.2.1\n"},
	}
	for _, tt := range tests {
		f := start(t, "cache")
		f.want(t, tt.question, tt.first)
		f.clock.advance(5 * time.Second)
		f.want(t, tt.question, tt.next)
	}
}

func TestKeys(t *testing.T) {
	f := start(t, "cache")
	for i, question := range []string{"a. A", "a. AAAA", "a. A do", "a. A cd", "a. A do cd", "b. A"} {
		f.want(t, question, fmt.Sprintf("NOERROR ra\n%s. 60 IN A 192.0.2.%d\n", question[:1], i+1))
	}
	// The owner's spelling is the asker's.
	f.want(t, "A. A", "NOERROR aa ra\nA. 60 IN A 192.0.2.1\n")
	if n := f.count(t, "coredns_cache_hits_total", "type", "success"); n != 1 {
		t.Errorf("%d hits, want 1", n)
	}
	if n := f.count(t, "coredns_cache_misses_total"); n != 6 {
		t.Errorf("%d misses, want 6", n)
	}
	if n := f.count(t, "coredns_cache_requests_total"); n != 7 {
		t.Errorf("%d requests, want 7", n)
	}
	if n := f.count(t, "coredns_cache_entries", "type", "success", "zones", "."); n != 0 {
		// An AAAA question with an A answer is not one.
		if n != 5 {
			t.Errorf("%d entries, want 5", n)
		}
	}
}

func TestDropsForeignReplies(t *testing.T) {
	f := start(t, "cache")
	_, _ = f.Ask("wrong. A")
	if n := f.count(t, "coredns_cache_drops_total"); n != 1 {
		t.Errorf("%d drops, want 1", n)
	}
	if n := f.handler.stores.success.entries.Load(); n != 0 {
		t.Errorf("%d entries", n)
	}
}

func TestTTLOptions(t *testing.T) {
	tests := []struct{ line, question, want string }{
		{"cache 30", "a. A", "a. 30 IN A"},
		{"cache 30", "nx. A", "example.org. 20 IN SOA"},
		{"cache 10", "nx. A", "example.org. 10 IN SOA"},
		{"cache {\nsuccess 100 7\n}", "a. A", "a. 7 IN A"},
		{"cache {\nsuccess 100 100 80\n}", "a. A", "a. 80 IN A"},
		{"cache {\nsuccess 100 100 0\n}", "zero. A", "zero. 0 IN A"},
		{"cache {\ndenial 100 9\n}", "nx. A", "example.org. 9 IN SOA"},
		{"cache {\ndenial 100 100 50\n}", "nodata. A", "example.org. 50 IN SOA"},
		{"cache 30 example.net", "a. A", "a. 60 IN A"}, // not a zone of the cache
	}
	for _, tt := range tests {
		f := start(t, tt.line)
		m, err := f.Ask(tt.question)
		if got := plugintest.Text(m); err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%s, %s: got %q, want %q (%v)", tt.line, tt.question, got, tt.want, err)
		}
	}
	f := start(t, "cache {\nkeepttl\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.clock.advance(50 * time.Second)
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.1\n")
	f.clock.advance(10 * time.Second)
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.2\n")
}

func TestServfail(t *testing.T) {
	tests := []struct {
		line    string
		after   time.Duration
		queries int32
	}{
		{"cache", 4 * time.Second, 1},
		{"cache", 5 * time.Second, 2},
		{"cache {\nservfail 1m\n}", 59 * time.Second, 1},
		{"cache {\nservfail 0s\n}", 0, 2},
	}
	for _, tt := range tests {
		for _, label := range []string{"servfail", "notimp"} {
			f := start(t, tt.line)
			_, _ = f.Ask(label + ". A")
			f.clock.advance(tt.after)
			_, _ = f.Ask(label + ". A")
			if got := f.upstream.queries.Load(); got != tt.queries {
				t.Errorf("%q, %s after %s: %d queries, want %d", tt.line, label, tt.after, got, tt.queries)
			}
		}
	}
}

// TestFailureDoesNotHideAnswer: a cached SERVFAIL yields to an entry that is
// still there.
func TestFailureDoesNotHideAnswer(t *testing.T) {
	f := start(t, "cache {\nserve_stale\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	q := question{name: "\x01a\x00", qtype: dns.TypeA, qclass: dns.ClassINET}
	r, _, _ := plugintest.ParseQuestion("a. A")
	f.handler.stores.denial.put(newEntry(q, plugintest.Reply(r, dns.RcodeServerFailure), 5, f.clock.get()))
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.1\n")
}

func TestDisable(t *testing.T) {
	f := start(t, "cache {\ndisable success a.example.org\ndisable denial\n}")
	for question, cached := range map[string]bool{
		"x.A.example.org. A": false, "b.example.org. A": true, "nx.example.org. A": false,
	} {
		before := f.upstream.queries.Load()
		_, _ = f.Ask(question)
		_, _ = f.Ask(question)
		if got := f.upstream.queries.Load()-before == 1; got != cached {
			t.Errorf("%s: cached %t, want %t", question, got, cached)
		}
	}
}

func TestServeStaleImmediate(t *testing.T) {
	f := start(t, "cache {\nserve_stale 1h immediate 7s\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.clock.advance(10 * time.Minute)
	f.want(t, "a. A", "NOERROR aa ra\na. 7 IN A 192.0.2.1\n")
	f.handler.tasks.Wait()
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.2\n")
	if n := f.count(t, "coredns_cache_served_stale_total"); n != 1 {
		t.Errorf("%d served stale, want 1", n)
	}
	// A refresh that fails leaves the entry, until it is too old.
	f.upstream.answer(func(int32, *dns.Msg) *dns.Msg { return nil })
	f.clock.advance(10 * time.Minute)
	f.want(t, "a. A", "NOERROR aa ra\na. 7 IN A 192.0.2.2\n")
	f.handler.tasks.Wait()
	f.want(t, "a. A", "NOERROR aa ra\na. 7 IN A 192.0.2.2\n")
	f.handler.tasks.Wait()
	f.clock.advance(time.Hour)
	f.want(t, "a. A", "SERVFAIL\n")
}

func TestServeStaleVerify(t *testing.T) {
	f := start(t, "cache {\nserve_stale 1h verify\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.clock.advance(10 * time.Minute)
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.2\n")
	f.upstream.answer(func(_ int32, r *dns.Msg) *dns.Msg { return plugintest.Reply(r, dns.RcodeServerFailure) })
	f.clock.advance(10 * time.Minute)
	f.want(t, "a. A", "NOERROR aa ra\na. 0 IN A 192.0.2.2\n")
	f.upstream.answer(func(_ int32, r *dns.Msg) *dns.Msg { return plugintest.Reply(r, dns.RcodeNameError, soa) })
	f.want(t, "a. A", "NXDOMAIN ra\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n")
}

func TestServeStaleVerifyTimeout(t *testing.T) {
	release := make(chan struct{})
	f := start(t, "cache {\nserve_stale 1h verify 1ms 9s 1m\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.upstream.answer(func(n int32, r *dns.Msg) *dns.Msg {
		<-release
		return byLabel(n, r)
	})
	f.clock.advance(10 * time.Minute)
	f.want(t, "a. A", "NOERROR aa ra\na. 9 IN A 192.0.2.1\n")
	f.want(t, "a. A", "NOERROR aa ra\na. 9 IN A 192.0.2.1\n") // one is enough
	close(release)
	f.handler.tasks.Wait()
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.2\n")
	// After a failure there is no other try within a minute.
	f.upstream.answer(func(int32, *dns.Msg) *dns.Msg { return nil })
	f.clock.advance(10 * time.Minute)
	for range 3 {
		f.want(t, "a. A", "NOERROR aa ra\na. 9 IN A 192.0.2.2\n")
		f.handler.tasks.Wait()
	}
	if got := f.upstream.queries.Load(); got != 3 {
		t.Errorf("%d queries, want 3", got)
	}
	f.clock.advance(time.Minute)
	f.want(t, "a. A", "NOERROR aa ra\na. 9 IN A 192.0.2.2\n")
	f.handler.tasks.Wait()
	if got := f.upstream.queries.Load(); got != 4 {
		t.Errorf("%d queries, want 4", got)
	}
}

// TestPreferPositive: an answer is served stale rather than a denial or an
// empty reply that came later.
func TestPreferPositive(t *testing.T) {
	f := start(t, "cache {\nserve_stale 1h verify\nserve_stale_policy prefer_positive\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	for _, reply := range []func(int32, *dns.Msg) *dns.Msg{
		func(_ int32, r *dns.Msg) *dns.Msg { return plugintest.Reply(r, dns.RcodeNameError, soa) },
		func(_ int32, r *dns.Msg) *dns.Msg { return plugintest.Reply(r, dns.RcodeSuccess) },
	} {
		f.upstream.answer(reply)
		f.clock.advance(2 * time.Minute)
		f.want(t, "a. A", "NOERROR aa ra\na. 0 IN A 192.0.2.1\n")
	}
	f.upstream.answer(byLabel)
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.4\n")
}

func TestPrefetch(t *testing.T) {
	f := start(t, "cache {\nprefetch 2 1m 50%\n}")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.1\n")
	f.clock.advance(29 * time.Second)
	f.want(t, "a. A", "NOERROR aa ra\na. 31 IN A 192.0.2.1\n")
	f.clock.advance(time.Second)
	f.want(t, "a. A", "NOERROR aa ra\na. 30 IN A 192.0.2.1\n")
	f.handler.tasks.Wait()
	f.want(t, "a. A", "NOERROR aa ra\na. 60 IN A 192.0.2.2\n")
	if n := f.count(t, "coredns_cache_prefetch_total"); n != 1 {
		t.Errorf("%d prefetches, want 1", n)
	}
}

// TestLocalAnswers of plugins with their own data pass unchanged and are not
// kept.
func TestLocalAnswers(t *testing.T) {
	f := startWith(t, "cache 30", &upstream{local: true})
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
	f.want(t, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.2\n")
	f.want(t, "nx. A", "NXDOMAIN ra\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n")
	if n := f.handler.stores.success.entries.Load() + f.handler.stores.denial.entries.Load(); n != 0 {
		t.Errorf("%d entries", n)
	}
}

// TestNameAppears: an entry, denial above all, is passed over once a plugin
// behind the cache has data for the name.
func TestNameAppears(t *testing.T) {
	f := start(t, "cache")
	has := atomic.Bool{}
	f.handler.owners = []Owner{ownerFunc(func(name []byte) bool { return has.Load() && string(name) == "\x02nx\x00" })}
	f.want(t, "nx. A", "NXDOMAIN ra\nauthority example.org. 20 IN SOA ns.example.org. h.example.org. 1 2 3 4 5\n")
	has.Store(true)
	f.upstream.answer(func(_ int32, r *dns.Msg) *dns.Msg {
		return plugintest.Reply(r, dns.RcodeSuccess, "nx. 60 IN A 192.0.2.9")
	})
	f.want(t, "nx. A", "NOERROR ra\nnx. 60 IN A 192.0.2.9\n")
	if got := f.direct(t, "nx. A"); got != plugin.Next {
		t.Errorf("direct path: %v, want it to go to the next plugin", got)
	}
}

type ownerFunc func([]byte) bool

func (f ownerFunc) Owns(name []byte) bool { return f(name) }

func (f *fixture) direct(t *testing.T, question string) plugin.Outcome {
	t.Helper()
	_, outcome := f.directReply(t, question)
	return outcome
}

func (f *fixture) directReply(t *testing.T, question string) (*dns.Msg, plugin.Outcome) {
	t.Helper()
	r, c, err := plugintest.ParseQuestion(question)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := new(wire.Query)
	if v := q.Parse(raw); v != wire.Plain {
		t.Fatalf("%s: verdict %v", question, v)
	}
	q.TCP = c.TCP
	q.Remote = netip.MustParseAddrPort("192.0.2.1:40000")
	q.Received = f.clock.get()
	a := wire.NewAnswer(1)
	if !a.Begin(q, make([]byte, 4096)) {
		t.Fatal("no room")
	}
	outcome := f.handler.ServeDirect(q, a)
	if outcome != plugin.Answered {
		return nil, outcome
	}
	m := new(dns.Msg)
	if err := m.Unpack(a.Finish()); err != nil {
		t.Fatal(err)
	}
	return m, outcome
}

// TestDirect: hits have the same reply on both paths; what has to be asked for,
// is stale or due takes the chain.
func TestDirect(t *testing.T) {
	f := start(t, "cache {\nserve_stale\nprefetch 100 1m 10%\n}")
	for _, question := range []string{"a.example.org. A", "A.example.ORG. A", "nx.example.org. A", "nodata. A do", "alias.example.org. A", "mixed. A cd", "ad. A ad", "ad. A", "empty. A", "servfail. A"} {
		if got := f.direct(t, question); got == plugin.Chain {
			t.Errorf("%s: %v on a miss", question, got)
		}
		_, _ = f.Ask(question)
		f.clock.advance(time.Second)
		viaChain, _ := f.Ask(question)
		if viaChain.IsEdns0() == nil && strings.Contains(question, " do") {
			viaChain.SetEdns0(4096, true) // the server does that
		}
		direct, outcome := f.directReply(t, question)
		if outcome != plugin.Answered {
			t.Errorf("%s: %v", question, outcome)
			continue
		}
		viaChain.Id, direct.Id = 0, 0
		if diff := cmp.Diff(viaChain.String(), direct.String()); diff != "" {
			t.Errorf("%s: -chain +direct:\n%s", question, diff)
		}
	}
	f.clock.advance(2 * time.Minute)
	if got := f.direct(t, "a.example.org. A"); got != plugin.Chain {
		t.Errorf("stale: %v, want the chain", got)
	}
}

func TestDirectDoesNotAllocate(t *testing.T) {
	f := start(t, "cache")
	_, _ = f.Ask("alias.example.org. A")
	r, _, _ := plugintest.ParseQuestion("alias.example.org. A")
	raw, _ := r.Pack()
	q, a, buf := new(wire.Query), wire.NewAnswer(1), make([]byte, 4096)
	n := testing.AllocsPerRun(100, func() {
		q.Parse(raw)
		q.Received = f.handler.now()
		a.Begin(q, buf)
		if f.handler.ServeDirect(q, a) != plugin.Answered {
			t.Fatal("not answered")
		}
		a.Finish()
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBounds(t *testing.T) {
	f := start(t, "cache {\nsuccess 0\n}")
	for i := range 1600 {
		_, _ = f.Ask(fmt.Sprintf("n%d. A", i))
	}
	st := f.handler.stores.success
	if n := st.entries.Load(); n > 1024 || n < 700 {
		t.Errorf("%d entries, want at most 1024", n)
	}
	if n := f.count(t, "coredns_cache_evictions_total", "type", "success"); n+int(st.entries.Load()) != 1600 {
		t.Errorf("%d evictions and %d entries", n, st.entries.Load())
	}
	// Large replies fill a shard by size.
	f.upstream.answer(func(_ int32, r *dns.Msg) *dns.Msg {
		m := plugintest.Reply(r, dns.RcodeSuccess)
		for i := range 60 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN TXT %q", r.Question[0].Name, strings.Repeat("x", 200+i%50)))
			m.Answer = append(m.Answer, rr)
		}
		return m
	})
	for i := range 500 {
		_, _ = f.Ask(fmt.Sprintf("big%d. TXT", i))
	}
	if n := st.bytes.Load(); n > int64(shards*st.maxBytes) {
		t.Errorf("%d bytes, want at most %d", n, shards*st.maxBytes)
	}
	sum, bytes := 0, 0
	for i := range st.shards {
		sum += len(st.shards[i].entries)
		for _, e := range st.shards[i].entries {
			bytes += e.size()
		}
	}
	if int64(sum) != st.entries.Load() || int64(bytes) != st.bytes.Load() {
		t.Errorf("counted %d entries and %d bytes, there are %d and %d", st.entries.Load(), st.bytes.Load(), sum, bytes)
	}
}

// TestSurvivesReload: the next configuration of a block has its entries, those
// that its options would not keep excepted.
func TestSurvivesReload(t *testing.T) {
	env, log := plugintest.NewEnv()
	u := &upstream{}
	ask := func(line, question string) string {
		t.Helper()
		s := plugintest.StartIn(t, env, log, ". {\n"+line+"\nupstream\n}\n", orderWith(u)...)
		m, err := s.Ask(question)
		if err != nil {
			t.Fatal(err)
		}
		return plugintest.Text(m)
	}
	first := ask("cache", "a.example.org. A")
	for _, line := range []string{"cache", "cache {\nsuccess 5000\n}", "cache 30 example.org"} {
		if got := ask(line, "a.example.org. A"); !strings.Contains(got, "192.0.2.1") || got == first {
			t.Errorf("%q: got %q, want a hit", line, got)
		}
	}
	u.source = "somebody else"
	if got := ask("cache", "a.example.org. A"); !strings.Contains(got, "192.0.2.2") {
		t.Errorf("another upstream: got %q, want its answer", got)
	}
	if got := ask("cache {\ndisable success example.org\n}", "a.example.org. A"); !strings.Contains(got, "192.0.2.3") {
		t.Errorf("disabled: got %q", got)
	}
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "cache {\n" + property + "\n}" }
	order := orderWith(&upstream{})
	plugintest.Refuses(t, order, [][2]string{
		{"cache\ncache", "stands twice"},
		{"cache 0", "a number from 1"},
		{"cache -1", "a number from 1"},
		{"cache a..b", "empty label"},
		{block("succes 10"), `did you mean "success"?`},
		{block("success"), "wrong arguments"},
		{block("success x"), "no number"},
		{block("success 1 0"), "a number from 1"},
		{block("denial 1 1 -1"), "a number from 0"},
		{block("prefetch"), "wrong arguments"},
		{block("prefetch -1"), "a number from 0"},
		{block("prefetch 1 1"), "not a duration"},
		{block("prefetch 1 1m 10"), "no percentage"},
		{block("prefetch 1 1m 9%"), "no percentage"},
		{block("prefetch 1 1m 91%"), "no percentage"},
		{block("prefetch 1 1m 10% x"), "wrong arguments"},
		{block("serve_stale -1s"), "too short"},
		{block("serve_stale 1h later"), "unknown way"},
		{block("serve_stale 1h verify -1s"), "too short"},
		{block("serve_stale 1h immediate 1500ms"), "no TTL"},
		{block("serve_stale 1h immediate 1s 6m"), "at most 5m"},
		{block("serve_stale 1h immediate 1s 1m 1m"), "wrong arguments"},
		{block("serve_stale 1h verify 1s 1s 6m"), "at most 5m"},
		{block("serve_stale 1 2 3 4 5 6"), "wrong arguments"},
		{block("serve_stale_policy prefer_positive"), "without serve_stale"},
		{block("serve_stale\nserve_stale_policy negative"), "unknown serve_stale_policy"},
		{block("serve_stale\nserve_stale_policy prefer_positive\nserve_stale_policy prefer_positive"), "stands twice"},
		{block("servfail -1s"), "too short"},
		{block("servfail 6m"), "at most 5m"},
		{block("servfail"), "wrong arguments"},
		{block("disable"), "wrong arguments"},
		{block("disable all"), "unknown cache"},
		{block("disable success a..b"), "empty label"},
		{block("keepttl x"), "no argument"},
	})
	plugintest.Accepts(t, order, "cache", "cache 30 example.org 10.0.0.0/8",
		block("success 0\ndenial 100 10 1\nprefetch 1 1m 10%\nserve_stale 1h Verify 1s 0s 5m\nserve_stale_policy prefer_positive\nservfail 0s\ndisable denial a b\nkeepttl"))
}

func BenchmarkDirectHit(b *testing.B) {
	u := &upstream{}
	s := plugintest.Start(b, ". {\ncache\nupstream\n}\n", orderWith(u)...)
	_, _ = s.Ask("a.example.org. A")
	h := s.Block.Handler(name).(*handler)
	r, _, _ := plugintest.ParseQuestion("a.example.org. A")
	raw, _ := r.Pack()
	q, a, buf := new(wire.Query), wire.NewAnswer(1), make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		q.Parse(raw)
		q.Received = time.Now()
		a.Begin(q, buf)
		h.ServeDirect(q, a)
		a.Finish()
	}
}
