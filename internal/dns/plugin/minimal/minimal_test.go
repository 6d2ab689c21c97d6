package minimal

import (
	"context"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/hosts"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "hosts", Setup: hosts.Setup, Effect: plugin.Local}, {Name: "referral", Setup: referral}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"minimal x", "no argument"},
	})
	plugintest.Accepts(t, order, "minimal")
}

// talker answers with records in every section.
type talker struct{}

func referral(*plugin.Block, []corefile.Directive) (plugin.New, error) {
	return func(plugin.Handler) plugin.Handler { return talker{} }, nil
}

func (talker) Name() string { return "referral" }

func (talker) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	name := r.Question[0].Name
	m := plugintest.Reply(r, dns.RcodeSuccess)
	ns, _ := dns.NewRR(name + " 60 IN NS ns." + name)
	glue, _ := dns.NewRR("ns." + name + " 60 IN A 192.0.2.1")
	m.Ns, m.Extra = []dns.RR{ns}, []dns.RR{glue}
	switch name {
	case "answer.":
		m.Answer = []dns.RR{glue}
	case "nx.":
		m = plugintest.Reply(r, dns.RcodeNameError, ". 60 IN SOA a. b. 1 2 3 4 5")
	}
	return dns.RcodeSuccess, w.WriteMsg(m)
}
