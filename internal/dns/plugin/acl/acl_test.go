package acl

import (
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/hosts"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "hosts", Setup: hosts.Setup, Effect: plugin.Local}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"acl {\nallows net *\n}", "did you mean \"allow\""},
		{"acl {\nallow\nfilter typ A\n}", "did you mean \"type\""},
		{"acl {\nblock type\n}", "nothing after it"},
		{"acl {\nblock type net *\n}", "nothing after it"},
		{"acl {\nblock type a\n}", "no record type"},
		{"acl {\nblock net 10.0.0.0/33\n}", "no network"},
		{"acl {\nblock net x\n}", "no network"},
		{"acl a..b", "empty label"},
	})
	plugintest.Accepts(t, order, "acl", "acl {\n}", "acl a.test {\nALLOW type A MX net 10.0.0.0/8 ::1\nfilter TYPE *\ndrop NET *\nblock\n}")
}

func TestMetrics(t *testing.T) {
	s := plugintest.Start(t, ". {\nacl example.org {\nblock type MX\nfilter type TXT\ndrop type HINFO\n}\nhosts\n}\n", order...)
	for _, qtype := range []string{"MX", "TXT", "HINFO", "A"} {
		if _, err := s.Ask("localhost. " + qtype); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Ask("a.example.org. " + qtype); err != nil {
			t.Fatal(err)
		}
	}
	for metric, want := range map[string]float64{"blocked": 1, "filtered": 1, "dropped": 1, "allowed": 5} {
		if got := s.Metric(t, "coredns_acl_"+metric+"_requests_total", "server", "dns://:53"); got != want {
			t.Errorf("%s: got %v, want %v", metric, got, want)
		}
	}
}
