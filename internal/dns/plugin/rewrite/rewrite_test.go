package rewrite

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, plugintest.Records(plugin.Answers)}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

// looker notes the query that arrives, and says something as metadata.
type looker struct{ seen string }

func (*looker) Name() string { return "looker" }

func (*looker) Metadata(ctx context.Context, q *plugin.Request) {
	metadata.Set(ctx, "looker/name", func() string { return "v-" + q.Name() })
}

func (l *looker) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	l.seen = options(r)
	return dns.RcodeSuccess, w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1"))
}

// options writes the EDNS options of a message: code=data.
func options(m *dns.Msg) string {
	o := m.IsEdns0()
	if o == nil {
		return "none"
	}
	var list []string
	for _, e := range o.Option {
		text := e.String()
		if l, ok := e.(*dns.EDNS0_LOCAL); ok {
			text = string(l.Data)
		}
		list = append(list, strconv.Itoa(int(e.Option()))+"="+text)
	}
	return strings.Join(list, " ")
}

func TestEDNS0(t *testing.T) {
	asked := func() *dns.Msg {
		r := new(dns.Msg)
		r.SetQuestion("a.test.", dns.TypeA)
		r.SetEdns0(1200, false)
		o := r.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 0xffed, Data: []byte("client")})
		return r
	}
	bare := func() *dns.Msg {
		r := new(dns.Msg)
		r.SetQuestion("a.test.", dns.TypeA)
		return r
	}
	tests := []struct {
		rule           string
		query          *dns.Msg
		forward, reply string
	}{
		{"local set 0xffee data", bare(), "65518=data", "65518=data"},
		{"local set 0xffee 0x616263", bare(), "65518=abc", "65518=abc"},
		{"local set 0xffee data revert", bare(), "65518=data", ""},
		{"local set 0xffed data", asked(), "65517=data", "65517=data"},
		{"local set 0xffed data revert", asked(), "65517=data", "65517=client"},
		{"local replace 0xffed data", asked(), "65517=data", "65517=data"},
		{"local replace 0xffee data", asked(), "65517=client", "none"},
		{"local append 0xffee data", asked(), "65517=client 65518=data", "65518=data"},
		{"local append 0xffed data", asked(), "65517=client 65517=data", "65517=client 65517=data"},
		{"local unset 0xffed", asked(), "", "none"},
		{"local set 0xffee {qname}", bare(), "65518=a.test.", "65518=a.test."},
		{"local set 0xffee {qtype}", bare(), "65518=\x00\x01", "65518=\x00\x01"},
		{"local set 0xffee {client_ip}", bare(), "65518=\xc0\x00\x02\x01", "65518=\xc0\x00\x02\x01"},
		{"local set 0xffee {client_port}", bare(), "65518=\x9c\x40", "65518=\x9c\x40"},
		{"local set 0xffee {server_ip}", bare(), "65518=\xc0\x00\x02\x35", "65518=\xc0\x00\x02\x35"},
		{"local set 0xffee {server_port}", bare(), "65518=\x00\x35", "65518=\x00\x35"},
		{"local set 0xffee {protocol}", bare(), "65518=udp", "65518=udp"},
		{"local set 0xffee {looker/name}", bare(), "65518=v-a.test.", "65518=v-a.test."},
		{"local set 0xffee {no/label}", bare(), "none", "none"},
		{"local append 0xffed {qname}", asked(), "65517=client", "none"},
		{"nsid set", bare(), "3=", "3="},
		{"nsid replace", asked(), "65517=client", "none"},
		{"nsid unset", asked(), "65517=client", "none"},
		{"subnet set 24 56", bare(), "8=192.0.2.0/24/0", ""},
		{"subnet unset", asked(), "65517=client", "none"},
	}
	for _, tt := range tests {
		l := &looker{}
		s := plugintest.Start(t, ". {\nmetadata\nrewrite edns0 "+tt.rule+"\nlooker\n}\n",
			plugin.Entry{Name: "metadata", Setup: metadata.Setup}, order[0],
			plugin.Entry{Name: "looker", Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
				return func(plugin.Handler) plugin.Handler { return l }, nil
			}})
		before := tt.query.String()
		m := s.Query(plugintest.Client{}, tt.query)
		if diff := cmp.Diff(tt.forward, l.seen); diff != "" {
			t.Errorf("%s: the next plugin sees: -want +got:\n%s", tt.rule, diff)
		}
		if diff := cmp.Diff(tt.reply, options(m)); diff != "" {
			t.Errorf("%s: the client sees: -want +got:\n%s", tt.rule, diff)
		}
		if tt.query.String() != before {
			t.Errorf("%s: the query is changed afterwards", tt.rule)
		}
	}
}

func TestDirect(t *testing.T) {
	tests := []struct {
		rule, question string
		want           plugin.Outcome
	}{
		{"name a.test b.test", "A.test. A", plugin.Chain},
		{"name a.test b.test", "x.a.test. A", plugin.Chain}, // may, since the tail fits
		{"name a.test b.test", "b.test. A", plugin.Next},
		{"name suffix .a.test .b", "x.a.test. A", plugin.Chain},
		{"name suffix .a.test .b", "xa.test. A", plugin.Next},
		{"name suffix a.test .b", "xa.test. A", plugin.Chain},
		{"name suffix a.test .b", "test. A", plugin.Next},
		{"name suffix a.test .b", ". A", plugin.Next},
		{"name regex x y", "b.test. A", plugin.Chain},
		{"type A AAAA", "a. A", plugin.Chain},
		{"type A AAAA", "a. MX", plugin.Next},
		{"class CH IN", "a. MX", plugin.Next},
		{"ttl a.test 5", "b.test. A", plugin.Next},
		{"ttl a.test 5", "a.test. A", plugin.Chain},
	}
	for _, tt := range tests {
		env, _ := plugintest.NewEnv()
		b, err := plugintest.Build(env, ". {\nrewrite "+tt.rule+"\n}\n", order)
		if err != nil {
			t.Fatal(err)
		}
		r, _, _ := plugintest.ParseQuestion(tt.question)
		raw, _ := r.Pack()
		q := new(wire.Query)
		q.Parse(raw)
		if got := b.First().(plugin.Direct).ServeDirect(q, nil); got != tt.want {
			t.Errorf("%s, %s: got %v, want %v", tt.rule, tt.question, got, tt.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"rewrite", "no rule"},
		{"rewrite continue", "no rule"},
		{"rewrite nam a b", `did you mean "name"?`},
		{"rewrite answer name a b", "answer without a name rule"},
		{"rewrite name a b {\n}", "not both"},
		{"rewrite name a", "wrong number of words"},
		{"rewrite name exct a b", `did you mean "exact"?`},
		{"rewrite name regex ( b", "missing closing"},
		{"rewrite name regex " + strings.Repeat("a", 10001) + " b", "longer than"},
		{"rewrite name regex (.*) {0}{1}", "uses 2 groups"},
		{"rewrite name exact a b c", "stands after the new name"},
		{"rewrite name exact a b answer", "wrong number of words"},
		{"rewrite name exact a b answer names c d", `did you mean "name"?`},
		{"rewrite name exact a b answer name c", "wrong number of words"},
		{"rewrite name exact a b answer name ( d", "missing closing"},
		{"rewrite name exact a b answer value c {1}", "uses 1 groups"},
		{"rewrite name suffix a b answer auto answer name c d", "exclude each other"},
		{"rewrite name suffix a b answer name c d answer auto", "exclude each other"},
		{"rewrite type A", "wrong number of words"},
		{"rewrite type A FOO", `unknown type "FOO"`},
		{"rewrite class IN FOO", `unknown class "FOO"`},
		{"rewrite ttl a", "wrong number of words"},
		{"rewrite ttl a 5 6 7", "wrong number of words"},
		{"rewrite ttl a -", "is no TTL"},
		{"rewrite ttl a 5-4", "is no TTL"},
		{"rewrite ttl a x", "is no TTL"},
		{"rewrite ttl some a 5", "unknown kind of match"},
		{"rewrite rcode a NOERROR", "wrong number of words"},
		{"rewrite rcode a NOERROR 24", "unknown rcode"},
		{"rewrite rcode a NOEROR NXDOMAIN", `did you mean "NOERROR"?`},
		{"rewrite cname a", "wrong number of words"},
		{"rewrite cname glob a b", "unknown kind of match"},
		{"rewrite cname regex ( b", "missing closing"},
		{"rewrite edns0 local", "wrong number of words"},
		{"rewrite edns0 local put 1 a", "unknown action"},
		{"rewrite edns0 local set 0x10000 a", "no option code"},
		{"rewrite edns0 local set 1", "wrong arguments"},
		{"rewrite edns0 local set 1 0xz", "not hexadecimal"},
		{"rewrite edns0 local set 1 {name}", "unknown variable"},
		{"rewrite edns0 nsid set x", "wrong arguments"},
		{"rewrite edns0 subnet set 33 56", "from 0 to 32"},
		{"rewrite edns0 subnet set 24 129", "from 0 to 128"},
		{"rewrite edns0 subnet set 24", "wrong arguments"},
		{"rewrite edns0 cookie set", "unknown EDNS option"},
	})
	plugintest.Accepts(t, order, "rewrite stop {\nname suffix\na b\n}", "rewrite {\ncontinue\nttl a 5\n}", "rewrite TYPE any hinfo",
		"rewrite ttl regex x 4294967295", "rewrite name prefix a b answer auto", "rewrite edns0 subnet append 32 128 revert")
}
