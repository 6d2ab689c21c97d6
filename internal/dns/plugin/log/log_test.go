package log

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// replies answers by the first label of the name.
type replies struct{}

func (replies) Name() string { return "replies" }

func (replies) Metadata(ctx context.Context, q *plugin.Request) {
	metadata.Set(ctx, "replies/upper", func() string { return strings.ToUpper(q.Name()) })
}

func (replies) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	label, _, _ := strings.Cut(strings.ToLower(r.Question[0].Name), ".")
	soa := "example.org. 60 IN SOA ns.example.org. h.example.org. 1 2 3 4 5"
	var m *dns.Msg
	switch label {
	case "a":
		m = plugintest.Reply(r, dns.RcodeSuccess, r.Question[0].Name+" 60 IN A 192.0.2.1")
		m.Authoritative = true
	case "empty":
		m = plugintest.Reply(r, dns.RcodeSuccess)
	case "nodata":
		m = plugintest.Reply(r, dns.RcodeSuccess, soa)
	case "nx":
		m = plugintest.Reply(r, dns.RcodeNameError, soa)
	case "none":
		return dns.RcodeSuccess, nil
	default:
		return dns.RcodeServerFailure, nil
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func entry(h plugin.Handler) plugin.Entry {
	return plugin.Entry{Name: h.Name(), Effect: plugin.Answers, Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
		return func(plugin.Handler) plugin.Handler { return h }, nil
	}}
}

var order = []plugin.Entry{
	{Name: "metadata", Setup: metadata.Setup, Effect: plugin.Observes},
	{Name: name, Setup: Setup, Effect: plugin.Observes},
	entry(replies{}),
}

// TestLines: the lines that rules and questions make, durations replaced.
func TestLines(t *testing.T) {
	tests := []struct {
		lines, question string
		want            string // of the message, without level
	}{
		{"log", "A.example.org. A", `192.0.2.1:40000 - 7 \"A IN a.example.org. udp 31 false 512\" NOERROR qr,aa,rd,ra 60 Ds`},
		{"log", "a. A do", `192.0.2.1:40000 - 7 \"A IN a. udp 30 true 4096\" NOERROR qr,aa,rd,ra 36 Ds`},
		{"log", "a. A tcp from [2001:db8::1]:53 cd", `[2001:db8::1]:53 - 7 \"A IN a. tcp 19 false 65535\" NOERROR qr,aa,rd,ra,cd 36 Ds`},
		{"log", "fail. AAAA", `192.0.2.1:40000 - 7 \"AAAA IN fail. udp 22 false 512\" SERVFAIL qr,rd 22 Ds`},
		{"log", "none. A", `192.0.2.1:40000 - 7 \"A IN none. udp 22 false 512\" - - 0 Ds`},
		{"log . {combined}", "nx. A", `192.0.2.1:40000 - 7 \"A IN nx. udp 20 false 512\" NXDOMAIN qr,rd,ra 94 Ds \"0\"`},
		{"log . \"{common} | {local} {unknown} {/replies/upper} {/no/thing} { {type\"", "a. A", `192.0.2.1:40000 - 7 \"A IN a. udp 19 false 512\" NOERROR qr,aa,rd,ra 36 Ds | 192.0.2.53 {unknown} A. - { {type`},
		{"log . {>id}/{/log/class}/{/log/type}", "nodata. A", "7/denial/NODATA"},
		// A single argument is a name, several are names unless the last has a placeholder.
		{"log example.org", "a.example.net. A", ""},
		{"log example.org example.net", "a.example.net. A", `192.0.2.1:40000 - 7 \"A IN a.example.net. udp 31 false 512\" NOERROR qr,aa,rd,ra 60 Ds`},
		{"log example.org {name}", "a.example.org. A", "a.example.org."},
		{"log example.org {name}\nlog . {type}", "a.example.org. A", "a.example.org."},
		{"log example.org {name}\nlog . {type}", "a.example.net. A", "A"},
		// The first rule whose name matches decides.
		{"log example.org {name} {\nclass error\n}\nlog . {type}", "a.example.org. A", ""},
		// Classes.
		{"log . {name} {\nclass success\n}", "a. A", "a."},
		{"log . {name} {\nclass success\n}", "empty. A", "empty."},
		{"log . {name} {\nclass success\n}", "nodata. A", ""},
		{"log . {name} {\nclass denial\n}", "nodata. A", "nodata."},
		{"log . {name} {\nclass denial\n}", "nx. A", "nx."},
		{"log . {name} {\nclass denial\n}", "fail. A", ""},
		{"log . {name} {\nclass error\n}", "fail. A", "fail."},
		{"log . {name} {\nclass error\n}", "none. A", "none."},
		{"log . {name} {\nclass denial error\n}", "a. A", ""},
		{"log . {name} {\nclass denial\nclass error\n}", "fail. A", "fail."},
		{"log . {name} {\nclass all\n}", "a. A", "a."},
	}
	for _, tt := range tests {
		s := plugintest.Start(t, ". {\nmetadata\n"+tt.lines+"\nreplies\n}\n", order...)
		r, c, err := plugintest.ParseQuestion(tt.question)
		if err != nil {
			t.Fatal(err)
		}
		r.Id = 7
		s.Query(c, r)
		got := s.Log.String()
		got = strings.TrimSuffix(strings.TrimPrefix(got, "level=INFO msg="), "\n")
		got = regexp.MustCompile(` [0-9]+(\.[0-9]+)?s`).ReplaceAllString(got, " Ds")
		if unquoted, ok := strings.CutPrefix(got, `"`); ok {
			got = strings.TrimSuffix(unquoted, `"`)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q, %s: -want +got:\n%s", tt.lines, tt.question, diff)
		}
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"log {\nclass\n}", "wrong arguments"},
		{"log {\nclass errors\n}", `did you mean "error"?`},
		{"log {\nclas error\n}", `did you mean "class"?`},
		{"log a..b", "empty label"},
	})
	plugintest.Accepts(t, order, "log", "log\nlog", "log . {\n}")
}
