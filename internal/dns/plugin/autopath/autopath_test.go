package autopath

import (
	"context"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// knows makes a handler that knows the search path of one client.
func knows(*plugin.Block, []corefile.Directive) (plugin.New, error) {
	return func(next plugin.Handler) plugin.Handler { return &passer{next} }, nil
}

type passer struct{ next plugin.Handler }

func (*passer) Name() string { return "knower" }

func (p *passer) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure("knower", p.next, ctx, w, r)
}

func (*passer) AutoPath(q *plugin.Request) []string {
	if q.Remote().Addr().String() != "192.0.2.1" {
		return nil
	}
	return []string{"ns.svc.test.", "svc.test.", "test.", ""}
}

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "knower", Setup: knows}, plugintest.Records(plugin.Answers)}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestPluginThatCannot(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\nautopath @records\nrecords {\n}\n}\n", order)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err == nil {
		t.Error("a plugin that knows no search path is accepted")
	}
	plugintest.Start(t, ". {\nautopath @absent\nrecords {\n}\n}\n", order...)
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"autopath", "wrong arguments"},
		{"autopath /does/not/exist", "no such file"},
		{"autopath a..b @knower", "empty label"},
		{"autopath @knower {\n}", "takes no block"},
	})
}
