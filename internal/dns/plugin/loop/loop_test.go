package loop

import (
	"context"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

type refuser struct{}

func (refuser) Name() string { return "refuser" }
func (refuser) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return dns.RcodeRefused, nil
}

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "refuser", Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
	return func(plugin.Handler) plugin.Handler { return refuser{} }, nil
}}}

// TestDetects: the probe may arrive twice, from here and through somebody who
// asks again; a third time it goes round.
func TestDetects(t *testing.T) {
	env, _ := plugintest.NewEnv()
	var fatal error
	env.Fatal = func(err error) { fatal = err }
	b, err := plugintest.Build(env, "example.org:1053 {\nloop\nrefuser\n}\n", order)
	if err != nil {
		t.Fatal(err)
	}
	h := b.First().(*handler)
	if !strings.HasSuffix(h.qname, ".example.org.") || h.addr != "127.0.0.1:1053" {
		t.Errorf("asks %s for %s", h.addr, h.qname)
	}
	arrive := func(qname string, qtype uint16) {
		r := new(dns.Msg)
		r.SetQuestion(qname, qtype)
		if rcode, _ := h.ServeDNS(t.Context(), &plugintest.Writer{}, r); rcode != dns.RcodeRefused {
			t.Errorf("rcode %d: the query was not passed on", rcode)
		}
	}
	for range 5 {
		arrive(h.qname, dns.TypeA)
		arrive("1.2.example.org.", dns.TypeHINFO)
	}
	arrive(h.qname, dns.TypeHINFO)
	arrive(strings.ToUpper(h.qname), dns.TypeHINFO)
	if fatal != nil {
		t.Fatalf("after two arrivals: %v", fatal)
	}
	arrive(h.qname, dns.TypeHINFO)
	if fatal == nil || !strings.Contains(fatal.Error(), `detected for zone "example.org."`) || !strings.Contains(fatal.Error(), "HINFO "+h.qname) {
		t.Errorf("after three arrivals: %v", fatal)
	}
	fatal = nil
	h.off.Store(true)
	arrive(h.qname, dns.TypeHINFO)
	if fatal != nil {
		t.Error("switched off and yet it counts")
	}
}

// TestProbe: the end of the configuration ends it, and the plugin is off.
func TestProbe(t *testing.T) {
	addr := plugintest.Upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(plugintest.Reply(r, dns.RcodeNameError))
	})
	h := &handler{qname: "1.2.", addr: addr}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.probe(ctx)
	if !h.off.Load() {
		t.Error("still on")
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"loop\nloop", "stands twice"},
		{"loop x", "no argument"},
	})
}
