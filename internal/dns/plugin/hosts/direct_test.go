package hosts

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

const entries = `192.0.2.1 a.example.org
192.0.2.2 a.example.org
2001:db8::1 a.example.org
192.0.2.3 *.wild.example.org
`

// TestDirect: what the direct path answers is what the chain does.
func TestDirect(t *testing.T) {
	path := plugintest.WriteFiles(t, map[string]string{"hosts": entries}) + "/hosts"
	answered := 0
	for _, block := range []string{"", " {\nfallthrough\n}", " {\nfallthrough b.example.org\nfallthrough_unsupported\n}"} {
		s := plugintest.Start(t, "example.org {\nhosts "+path+block+"\n}\n", order...)
		h := s.Block.First().(*handler)
		for _, name := range []string{"a.example.org.", "A.Example.org.", "x.wild.example.org.", "y.x.wild.example.org.", "wild.example.org.", "b.example.org.", "example.org.", "other.test."} {
			for _, rest := range []string{" A", " AAAA", " MX", " PTR", " A edns", " A class CH"} {
				question := name + rest
				r, _, err := plugintest.ParseQuestion(question)
				if err != nil {
					t.Fatal(err)
				}
				raw, _ := r.Pack()
				q := new(wire.Query)
				if q.Parse(raw) != wire.Plain {
					continue // the server sends it through the chain
				}
				q.Remote = netip.MustParseAddrPort("192.0.2.9:40000")
				a := wire.NewAnswer(1)
				a.Begin(q, make([]byte, 4096))
				if h.ServeDirect(q, a) != plugin.Answered {
					continue
				}
				answered++
				direct := new(dns.Msg)
				if err := direct.Unpack(a.Finish()); err != nil {
					t.Fatal(err)
				}
				chain, err := s.Ask(question)
				if err != nil {
					t.Fatal(err)
				}
				if o := r.IsEdns0(); o != nil {
					chain.SetEdns0(o.UDPSize(), o.Do()) // the server does that
				}
				if diff := cmp.Diff(plugintest.Text(chain), plugintest.Text(direct)); diff != "" {
					t.Errorf("%s: -chain +direct:\n%s", question, diff)
				}
			}
		}
	}
	if answered < 15 {
		t.Errorf("only %d answers on the direct path", answered)
	}
}

func TestDirectDoesNotAllocate(t *testing.T) {
	path := plugintest.WriteFiles(t, map[string]string{"hosts": entries}) + "/hosts"
	s := plugintest.Start(t, "example.org {\nhosts "+path+"\n}\n", order...)
	h := s.Block.First().(*handler)
	for _, name := range []string{"a.example.org. A", "x.wild.example.org. A", "a.example.org. MX"} {
		r, _, _ := plugintest.ParseQuestion(name)
		raw, _ := r.Pack()
		q, a, buf := new(wire.Query), wire.NewAnswer(1), make([]byte, 4096)
		if n := testing.AllocsPerRun(100, func() {
			q.Parse(raw)
			a.Begin(q, buf)
			if h.ServeDirect(q, a) != plugin.Answered {
				t.Fatal("not answered")
			}
			a.Finish()
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestOwns(t *testing.T) {
	path := plugintest.WriteFiles(t, map[string]string{"hosts": entries}) + "/hosts"
	s := plugintest.Start(t, "example.org {\nhosts "+path+"\n}\n", order...)
	h := s.Block.First().(*handler)
	for name, want := range map[string]bool{
		"\x01a\x07example\x03org\x00": true, "\x01b\x07example\x03org\x00": false, "\x01x\x04wild\x07example\x03org\x00": true,
		"\x011\x012\x010\x03192\x07in-addr\x04arpa\x00": true, "\x019\x012\x010\x03192\x07in-addr\x04arpa\x00": false,
		"\x07in-addr\x04arpa\x00": false, "\x00": false,
	} {
		if got := h.Owns([]byte(name)); got != want {
			t.Errorf("%q: got %t", name, got)
		}
	}
}
