package template

import (
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

var order = []plugin.Entry{{Name: name, Setup: Setup, Effect: plugin.Local}, plugintest.Records(plugin.Answers)}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestMetrics(t *testing.T) {
	s := plugintest.Start(t, `. {
		template IN A {
			match ^good
			answer "{{ .Name }} 60 IN A 192.0.2.1"
			fallthrough
		}
		template IN A {
			match ^exec
			answer "{{ index .Match 7 }}"
			fallthrough
		}
		template IN A {
			answer "{{ .Name }} 60 IN A x"
		}
	}`, order...)
	for question, want := range map[string]string{"good. A": "NOERROR", "exec. A": "SERVFAIL", "bad. A": "SERVFAIL"} {
		m, err := s.Ask(question)
		if got := plugintest.Text(m); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q (%v)", question, got, err)
		}
	}
	for metric, want := range map[string]float64{"matches_total": 3, "template_failures_total": 1, "rr_failures_total": 1} {
		if got := s.Metric(t, "coredns_template_"+metric, "server", "dns://:53", "zone", ".", "class", "IN", "type", "A"); got != want {
			t.Errorf("%s: got %v, want %v", metric, got, want)
		}
	}
}

func TestDirect(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\ntemplate IN A a.test\ntemplate ANY ANY b.test\n}\n", order)
	if err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string]plugin.Outcome{
		"x.a.test. A": plugin.Chain, "x.a.test. MX": plugin.Next, "x.a.test. ANY": plugin.Chain,
		"b.test. MX": plugin.Chain, "c.test. A": plugin.Next,
	} {
		r, _, _ := plugintest.ParseQuestion(question)
		raw, _ := r.Pack()
		q := new(wire.Query)
		q.Parse(raw)
		if got := b.First().(plugin.Direct).ServeDirect(q, nil); got != want {
			t.Errorf("%s: got %v, want %v", question, got, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "template IN A {\n" + property + "\n}" }
	plugintest.Refuses(t, order, [][2]string{
		{"template", "wrong arguments"},
		{"template IN", "wrong arguments"},
		{"template in A", "unknown class"},
		{"template IN a", "unknown type"},
		{"template IN A a..b", "empty label"},
		{block("mach a"), `did you mean "match"?`},
		{block("match"), "wrong arguments"},
		{block("match ("), "missing closing"},
		{block("match " + strings.Repeat("a", 10001)), "longer than"},
		{block("answer"), "wrong arguments"},
		{block(`answer "{{ .Name"`), "unclosed action"},
		{block(`additional "{{ nosuch }}"`), "not defined"},
		{block("rcode"), "wrong arguments"},
		{block("rcode NXDOMIAN"), `did you mean "NXDOMAIN"?`},
		{block("ederror"), "wrong arguments"},
		{block("ederror 1 2 3"), "wrong arguments"},
		{block("ederror x"), "from 0 to 65535"},
		{block("expr"), "wrong arguments"},
		{block("expr nosuch()"), "unknown name"},
		{block("var a"), "wrong arguments"},
		{block("var name 1"), "is taken"},
		{block("var a 1\nvar a 2"), "is taken"},
		{block("var 1a 1"), "no name for a variable"},
		{block("var a ("), "unexpected token"},
	})
	plugintest.Accepts(t, order, "template IN A", "template ANY ANY a.test 10.0.0.0/8 {\nrcode NXDOMAIN\nfallthrough a.test\nederror 15\n}")
}
