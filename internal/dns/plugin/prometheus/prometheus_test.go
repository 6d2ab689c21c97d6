package prometheus

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

// answer is a plugin that answers names below yes. and fails for others.
func answer(*plugin.Block, []corefile.Directive) (plugin.New, error) {
	return func(plugin.Handler) plugin.Handler { return answerer{} }, nil
}

type answerer struct{}

func (answerer) Name() string { return "answer" }

func (answerer) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if !strings.HasSuffix(r.Question[0].Name, "yes.") {
		return dns.RcodeRefused, nil
	}
	m := new(dns.Msg)
	m.SetReply(r)
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func entries() []plugin.Entry {
	return []plugin.Entry{
		{Name: "prometheus", Setup: Setup, Effect: plugin.Observes},
		{Name: "answer", Setup: answer, Effect: plugin.Local},
	}
}

// scrape returns the lines about DNS that are not histogram buckets or sums.
func scrape(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "coredns_dns_") && !strings.Contains(line, "_bucket{") && !strings.Contains(line, "_sum{") || strings.HasPrefix(line, "coredns_plugin_enabled") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Both paths count alike.
func TestCounts(t *testing.T) {
	env, log := plugintest.NewEnv()
	var addr string
	env.Listen = func(network, _ string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		if err == nil {
			addr = l.Addr().String()
		}
		return l, err
	}
	s := plugintest.StartIn(t, env, log, "yes:53 {\n prometheus\n answer\n}", entries()...)
	for _, question := range []string{"a.yes. A do", "b.yes. TYPE65400", "c.no. AAAA tcp"} {
		if _, err := s.Ask(question); err != nil && question != "b.yes. TYPE65400" {
			t.Fatal(err)
		}
	}
	m := new(dns.Msg)
	m.SetQuestion("b.yes.", 65400)
	s.Query(plugintest.Client{Remote: netip.MustParseAddrPort("[2001:db8::1]:5000")}, m)

	m.SetQuestion("c.yes.", dns.TypeA)
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, a := &wire.Query{Received: time.Now(), Remote: netip.MustParseAddrPort("192.0.2.1:5000")}, wire.NewAnswer(1)
	q.Parse(raw)
	a.Begin(q, make([]byte, 512))
	a.Finish()
	h := s.Block.Handlers()[0].(*handler)
	origin := &plugin.Origin{Server: "dns://:53", Zone: "yes.", Serve: func(context.Context, dns.ResponseWriter, *dns.Msg) {}}
	if n := testing.AllocsPerRun(9, func() { h.ObserveDirect(origin, "cache", q, a) }); n != 0 { // runs ten times
		t.Errorf("counting on the direct path allocates %v times", n)
	}
	h.ObserveDrop(&plugin.Origin{Server: "dns://:53", Zone: "dropped"}, &plugintest.Writer{Client: plugintest.Client{Remote: netip.MustParseAddrPort("192.0.2.1:5000")}}, m, dns.RcodeRefused)

	want := `coredns_dns_do_requests_total{server="dns://:53",view="",zone="yes."} 1
coredns_dns_request_duration_seconds_count{server="dns://:53",view="",zone="dropped"} 1
coredns_dns_request_duration_seconds_count{server="dns://:53",view="",zone="yes."} 13
coredns_dns_request_size_bytes_count{proto="tcp",server="dns://:53",view="",zone="yes."} 1
coredns_dns_request_size_bytes_count{proto="udp",server="dns://:53",view="",zone="dropped"} 1
coredns_dns_request_size_bytes_count{proto="udp",server="dns://:53",view="",zone="yes."} 12
coredns_dns_requests_total{family="1",proto="tcp",server="dns://:53",type="AAAA",view="",zone="yes."} 1
coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",view="",zone="dropped"} 1
coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",view="",zone="yes."} 11
coredns_dns_requests_total{family="2",proto="udp",server="dns://:53",type="other",view="",zone="yes."} 1
coredns_dns_response_size_bytes_count{proto="tcp",server="dns://:53",view="",zone="yes."} 1
coredns_dns_response_size_bytes_count{proto="udp",server="dns://:53",view="",zone="dropped"} 1
coredns_dns_response_size_bytes_count{proto="udp",server="dns://:53",view="",zone="yes."} 12
coredns_dns_responses_total{plugin="",rcode="REFUSED",server="dns://:53",view="",zone="dropped"} 1
coredns_dns_responses_total{plugin="",rcode="REFUSED",server="dns://:53",view="",zone="yes."} 1
coredns_dns_responses_total{plugin="answer",rcode="NOERROR",server="dns://:53",view="",zone="yes."} 2
coredns_dns_responses_total{plugin="cache",rcode="NOERROR",server="dns://:53",view="",zone="yes."} 10
coredns_plugin_enabled{name="answer",server="dns://:53",view="",zone="yes."} 1
coredns_plugin_enabled{name="prometheus",server="dns://:53",view="",zone="yes."} 1
`
	if diff := cmp.Diff(want, scrape(t, addr)); diff != "" {
		t.Error(diff)
	}
	lint(t, env.Registry)
}

func lint(t *testing.T, r *prometheus.Registry) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestDurationBuckets(t *testing.T) {
	for d, want := range map[time.Duration]int{
		0: 0, 250 * time.Microsecond: 0, 250*time.Microsecond + 1: 1, 500 * time.Microsecond: 1, 500*time.Microsecond + 1: 2,
		time.Millisecond: 2, 8192 * time.Millisecond: 15, 8192*time.Millisecond + 1: 16, time.Hour: 16,
	} {
		if got := durationIndex(d); got != want {
			t.Errorf("%v: bucket %d, want %d", d, got, want)
		}
	}
}

func TestSetup(t *testing.T) {
	for text, want := range map[string]string{
		"prometheus\nprometheus":           "Corefile:3: prometheus stands twice in this server block (first at Corefile:2); keep one",
		"prometheus localhost":             `Corefile:2: address "localhost": address localhost: missing port in address; write host:port or :port`,
		"prometheus a:1 b:2":               `Corefile:2: wrong arguments for "prometheus": got 2; expected at most an address`,
		"prometheus {\n tls\n}":            `Corefile:3: wrong arguments for "tls": got none; expected a web configuration file`,
		"prometheus {\n tls /none\n}":      "Corefile:3: tls: open /none: no such file or directory",
		"prometheus {\n runtime_metric\n}": `Corefile:3: unknown property of prometheus "runtime_metric"; did you mean "runtime_metrics"?`,
	} {
		env, _ := plugintest.NewEnv()
		if _, err := plugintest.Build(env, ". {\n"+text+"\n}", entries()); err == nil || err.Error() != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}
