package dns

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/rutter-project/rutter/conformance/peer"
)

const metricsCorefile = `.:{PORT} {
    errors
    health 127.0.0.1:{PORT1}
    ready 127.0.0.1:{PORT2}
    prometheus 127.0.0.1:{PORT3}
    acl blocked.example.org {
        block
    }
    acl filtered.example.org {
        filter
    }
    local
    rewrite name exact old.example.org web.prod.svc.cluster.local
    hosts {DIR}/hosts example.org {
        192.0.2.1 www.example.org
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa {
        kubeconfig {KUBECONFIG}
        fallthrough in-addr.arpa
    }
    cache 30
    loadbalance
    reload
    forward . {UPSTREAM}
}
chaos.example.org:{PORT} {
    prometheus 127.0.0.1:{PORT3}
    chaos
}
silent.example.org:{PORT} {
    local
}
`

// metricsQueries are asked of both servers between two looks at the metrics.
const metricsQueries = `
web.prod.svc.cluster.local A
web.prod.svc.cluster.local A
+tcp web.prod.svc.cluster.local AAAA
+edns=1232 +do web.prod.svc.cluster.local A
missing.prod.svc.cluster.local A
1.10.96.10.in-addr.arpa PTR
old.example.org A
www.example.org A
www.example.org MX
www.example.org TYPE999
blocked.example.org A
filtered.example.org A
localhost A
www.example.test A
www.example.test A
nx.example.test A
servfail.example.test A
refused.example.test A
+edns=1232 big.example.test A
+class=CH version.bind TXT
x.chaos.example.org A
x.silent.example.org A
`

// knownMetrics lists what differs in the metrics on purpose. Each line is also
// one of docs/compatibility.md.
var knownMetrics = []*knownMetric{
	{pattern: regexp.MustCompile(`^coredns_cache_(drops|evictions|prefetch|served_stale)_total$|^coredns_reload_version_info$`),
		reason: "present from the start; CoreDNS's appear with their first event, so that a query for a rate finds nothing until then"},
	{pattern: regexp.MustCompile(`^coredns_cache_(entries|hits_total|misses_total|requests_total)\{`),
		reason: "names of the cluster and of hosts never come from the cache"},
	{pattern: regexp.MustCompile(`^coredns_dns_responses_total\{plugin=`),
		reason: "the plugin that answered; CoreDNS 1.14's is always the one behind prometheus, here errors"},
	{pattern: regexp.MustCompile(`^coredns_dns_response_size_bytes\{.*sum$`),
		reason: "names are compressed in answers of any size"},
}

type knownMetric struct {
	pattern *regexp.Regexp // matches a metric's name, or name{labels}
	reason  string
	seen    bool
}

func isKnownMetric(key string) bool {
	for _, k := range knownMetrics {
		if k.pattern.MatchString(key) {
			k.seen = true
			return true
		}
	}
	return false
}

// TestMetrics: the same metrics, with the same labels, counting the same.
func TestMetrics(t *testing.T) {
	env := newEnvironment(t)
	corefile := strings.NewReplacer("{KUBECONFIG}", env.registry.Kubeconfig, "{UPSTREAM}", env.upstream.addr).Replace(metricsCorefile)
	queries, err := readCorpus(metricsQueries)
	if err != nil {
		t.Fatal(err)
	}
	observe := func(program, name string, start func(program, name, dir, corefile string) (*peer.Nameserver, error)) (families map[string]string, grown map[string]float64) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("192.0.2.2 file.example.org\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := start(program, name, dir, corefile)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Kill()
		text, err := os.ReadFile(filepath.Join(dir, name+".Corefile"))
		if err != nil {
			t.Fatal(err)
		}
		url := "http://" + regexp.MustCompile(`prometheus (\S+)`).FindStringSubmatch(string(text))[1] + "/metrics"
		time.Sleep(100 * time.Millisecond) // the query by which the start was seen is counted after its reply
		before := scrape(t, url)
		c := &client{addr: s.Addr}
		defer c.close()
		for _, q := range queries {
			m, tcp, err := q.message()
			if err != nil {
				t.Fatal(err)
			}
			m.Question[0].Name = strings.TrimSuffix(m.Question[0].Name, ".") + "."
			wire, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ask(wire, tcp, 6e9); err != nil {
				t.Fatalf("%s: %s: %v", name, q.line, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		after := scrape(t, url)
		port := regexp.MustCompile(`://[^"]*:` + s.Addr[strings.LastIndexByte(s.Addr, ':')+1:] + `"`)
		families, grown = map[string]string{}, map[string]float64{}
		for _, f := range after {
			if !strings.HasPrefix(f.GetName(), "coredns_") {
				continue
			}
			for _, m := range f.Metric {
				families[f.GetName()] = fmt.Sprintf("%s {%s}", f.GetType(), strings.Join(labelNames(m), ","))
			}
		}
		was := values(before)
		for k, v := range values(after) {
			if v != was[k] {
				// Which queries find a connection depends on which sockets
				// they came in by; that all are counted does not.
				name := connections.ReplaceAllString(k, "coredns_proxy_conn_cache_hits_and_misses")
				grown[strings.ReplaceAll(port.ReplaceAllString(name, `://:PORT"`), env.upstream.addr, "UPSTREAM")] += v - was[k]
			}
		}
		return families, grown
	}
	coreFamilies, coreGrown := observe(env.programs.coredns, "coredns", peer.StartCoreDNS)
	rutterFamilies, rutterGrown := observe(env.programs.rutter, "rutter", peer.StartRutterDNS)
	compareMaps(t, coreFamilies, rutterFamilies)
	compareMaps(t, coreGrown, rutterGrown)
	for _, k := range knownMetrics {
		if !k.seen {
			t.Errorf("%q is no difference any more: remove it here and from docs/compatibility.md", k.reason)
		}
	}
	t.Logf("%d metrics and %d counts compared", len(coreFamilies), len(coreGrown))
}

var connections = regexp.MustCompile(`^coredns_proxy_conn_cache_(hits|misses)_total`)

func compareMaps[V comparable](t *testing.T, core, rutter map[string]V) {
	t.Helper()
	keys := maps.Clone(core)
	maps.Copy(keys, rutter)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		c, inCore := core[k]
		r, inRutter := rutter[k]
		if c == r && inCore == inRutter || isKnownMetric(k) {
			continue
		}
		switch {
		case !inRutter:
			t.Errorf("Rutter lacks  %s  %v", k, c)
		case !inCore:
			t.Errorf("CoreDNS lacks %s  %v", k, r)
		default:
			t.Errorf("%s: Rutter %v, CoreDNS %v", k, r, c)
		}
	}
}

func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return families
}

func labelNames(m *dto.Metric) []string {
	var names []string
	for _, l := range m.Label {
		names = append(names, l.GetName())
	}
	slices.Sort(names)
	return names
}

// values are the counters, and the counts and bounds of the histograms, by
// name and labels. Of durations only the count can be compared.
func values(families map[string]*dto.MetricFamily) map[string]float64 {
	all := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "coredns_dns_") && !strings.HasPrefix(f.GetName(), "coredns_cache_") &&
			!strings.HasPrefix(f.GetName(), "coredns_acl_") && !strings.HasPrefix(f.GetName(), "coredns_local_") &&
			!strings.HasPrefix(f.GetName(), "coredns_proxy_") && !strings.HasPrefix(f.GetName(), "coredns_forward_") {
			continue // they count what happens by itself
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			slices.Sort(labels)
			name := fmt.Sprintf("%s{%s}", f.GetName(), strings.Join(labels, ","))
			switch {
			case m.Counter != nil:
				all[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				all[name] = m.Gauge.GetValue()
			case m.Histogram != nil:
				all[name+" count"] = float64(m.Histogram.GetSampleCount())
				if !strings.Contains(f.GetName(), "seconds") {
					all[name+" sum"] = m.Histogram.GetSampleSum()
				}
			}
		}
	}
	return all
}
