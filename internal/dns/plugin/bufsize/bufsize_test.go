package bufsize

import (
	"context"
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
		{"bufsize 511", "from 512 to 4096"},
		{"bufsize 4097", "from 512 to 4096"},
		{"bufsize x", "from 512"},
		{"bufsize 600 600", "wrong arguments"},
	})
	plugintest.Accepts(t, order, "bufsize", "bufsize 512")
}

// sizer notes the size that the query asks for.
type sizer struct{ size uint16 }

func (s *sizer) Name() string { return "sizer" }

func (s *sizer) ServeDNS(_ context.Context, _ dns.ResponseWriter, r *dns.Msg) (int, error) {
	s.size = 0
	if o := r.IsEdns0(); o != nil {
		s.size = o.UDPSize()
	}
	return dns.RcodeSuccess, nil
}

func TestSize(t *testing.T) {
	next := &sizer{}
	h := &handler{next: next, size: 1232}
	for asked, want := range map[string]uint16{"a. A": 0, "a. A size 512": 512, "a. A size 1232": 1232, "a. A size 4096": 1232} {
		r, _, err := plugintest.ParseQuestion(asked)
		if err != nil {
			t.Fatal(err)
		}
		before := r.String()
		if _, err := h.ServeDNS(t.Context(), &plugintest.Writer{}, r); err != nil {
			t.Fatal(err)
		}
		if next.size != want {
			t.Errorf("%s: the next plugin sees %d, want %d", asked, next.size, want)
		}
		if r.String() != before {
			t.Errorf("%s: the query is changed afterwards", asked)
		}
	}
}
