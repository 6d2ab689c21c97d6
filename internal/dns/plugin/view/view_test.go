package view

import (
	"context"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// teller says something as metadata.
type teller struct{}

func (teller) Name() string { return "teller" }
func (teller) Metadata(ctx context.Context, q *plugin.Request) {
	metadata.Set(ctx, "teller/name", func() string { return "v-" + q.Name() })
}
func (teller) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return dns.RcodeRefused, nil
}

var order = []plugin.Entry{
	{Name: "metadata", Setup: metadata.Setup},
	{Name: "teller", Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
		return func(plugin.Handler) plugin.Handler { return teller{} }, nil
	}},
	{Name: name, Setup: Setup},
}

func TestFilter(t *testing.T) {
	tests := []struct {
		expressions, question string
		want                  bool
	}{
		{"", "a. A", true},
		{"expr true", "a. A", true},
		{"expr false", "a. A", false},
		{"expr true\nexpr false", "a. A", false},
		{"expr 1", "a. A", false},
		{"expr name() == 'a.test.'", "A.test. A", true},
		{`expr type() in ['A', 'AAAA']`, "a. AAAA", true},
		{`expr "type() == \"A\""`, "a. AAAA", false},
		{"expr class() == 'CH'", "a. A class CH", true},
		{"expr proto() == 'tcp'", "a. A tcp", true},
		{"expr proto() == 'tcp'", "a. A", false},
		{"expr size() < 50", "a. A", true},
		{"expr client_ip() == '2001:db8::1'", "a. A from [2001:db8::1]:7", true},
		{"expr port() == '7'", "a. A from 192.0.2.1:7", true},
		{"expr id() == 7", "a. A", true},
		{"expr opcode() == 0", "a. A", true},
		{"expr do()", "a. A do", true},
		{"expr do()", "a. A", false},
		{"expr bufsize() == 1200", "a. A size 1200", true},
		{"expr server_ip() == '192.0.2.53' && server_port() == '53'", "a. A", true},
		{"expr incidr(client_ip(), '192.0.2.0/24')", "a. A", true},
		{"expr incidr(client_ip(), '10.0.0.0/8')", "a. A", false},
		{"expr incidr('x', '10.0.0.0/8')", "a. A", false},
		{"expr incidr(client_ip(), 'x')", "a. A", false},
		{"expr metadata('teller/name') == 'v-a.'", "a. A", true},
		{"expr metadata('no/label') == ''", "a. A", true},
	}
	for _, tt := range tests {
		s := plugintest.Start(t, ". {\nmetadata\nteller\nview v {\n"+tt.expressions+"\n}\n}\n", order...)
		if s.Block.View != "v" {
			t.Errorf("view %q", s.Block.View)
		}
		r, c, err := plugintest.ParseQuestion(tt.question)
		if err != nil {
			t.Fatal(err)
		}
		r.Id = 7
		if !c.Remote.IsValid() {
			c.Remote = netip.MustParseAddrPort("192.0.2.1:40000")
		}
		if got := s.Block.Filter(t.Context(), &plugintest.Writer{Client: c}, r); got != tt.want {
			t.Errorf("%q, %s: got %t", tt.expressions, tt.question, got)
		}
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"view", "wrong arguments"},
		{"view a b", "wrong arguments"},
		{"view a\nview b", "stands twice"},
		{"view a {\nexpression true\n}", "expected expr"},
		{"view a {\nexpr\n}", "wrong arguments"},
		{"view a {\nexpr name( ==\n}", "unexpected token"},
		{"view a {\nexpr nosuch()\n}", "unknown name"},
	})
}
