package nsid

import (
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/plugin/whoami"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "whoami", Setup: whoami.Setup}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"nsid\nnsid", "stands twice"},
	})
	plugintest.Accepts(t, order, "nsid", "nsid \"a b\" c")
}

func TestIdentifier(t *testing.T) {
	s := plugintest.Start(t, ". {\nnsid tf 2\nwhoami\n}\n", order...)
	r, c, _ := plugintest.ParseQuestion("a. A size 1200")
	o := r.IsEdns0()
	o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	m := s.Query(c, r)
	o = m.IsEdns0()
	if o == nil || len(o.Option) != 1 || o.Option[0].String() != "74662032" || o.UDPSize() != 1200 {
		t.Errorf("got %v, want tf 2 in hexadecimal", o)
	}
}
