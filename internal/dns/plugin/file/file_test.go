package file

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

var order = []plugin.Entry{{Name: name, Setup: Setup, Effect: plugin.Local}, plugintest.Records(plugin.Answers)}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

// TestDirect asks for every name of a zone and some beside them, with every
// type: what the direct path answers is what the chain does.
func TestDirect(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/lookup.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var zoneText string
	for _, f := range ar.Files {
		if f.Name == "db.example.org" {
			zoneText = string(f.Data)
		}
	}
	dir := plugintest.WriteFiles(t, map[string]string{"db": zoneText})
	for _, block := range []string{"", " {\nfallthrough sub.example.org ent.example.org\n}"} {
		s := plugintest.Start(t, "example.org {\nfile "+dir+"/db"+block+"\n}\n", order...)
		h := s.Block.First().(*handler)
		var names []string
		for _, line := range strings.Split(zoneText, "\n") {
			if label := strings.Fields(line); len(label) > 0 && !strings.HasPrefix(line, "$") {
				n := strings.TrimPrefix(label[0]+".", "@.") + "example.org."
				names = append(names, n, "x."+n, "X."+n)
			}
		}
		names = append(names, "other.test.", "sub.example.org.", "x.sub.example.org.", "ent.example.org.", "org.")
		slices.Sort(names)
		answered := 0
		for _, n := range slices.Compact(names) {
			for _, qtype := range []string{"A", "AAAA", "MX", "NS", "SOA", "TXT", "SRV", "CNAME", "DNAME", "DS", "ANY"} {
				for _, size := range []string{"", " edns", " size 512 do"} {
					question := n + " " + qtype + size
					r, _, err := plugintest.ParseQuestion(question)
					if err != nil {
						t.Fatal(err)
					}
					raw, _ := r.Pack()
					q := new(wire.Query)
					q.Parse(raw)
					q.Remote = netip.MustParseAddrPort("192.0.2.1:40000")
					a := wire.NewAnswer(1)
					a.Begin(q, make([]byte, 4096))
					if h.ServeDirect(q, a) != plugin.Answered {
						continue
					}
					answered++
					direct := new(dns.Msg)
					if err := direct.Unpack(a.Finish()); err != nil {
						t.Fatalf("%s: %v", question, err)
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
		if answered < 200 {
			t.Errorf("only %d answers on the direct path", answered)
		}
	}
}

func TestOwns(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"db": "@ 60 IN SOA a b 1 2 3 4 5\nx 60 IN A 192.0.2.1\n"})
	s := plugintest.Start(t, "a.test {\nfile "+dir+"/db\n}\n", order...)
	h := s.Block.First().(*handler)
	for name, want := range map[string]bool{"\x01x\x01a\x04test\x00": true, "\x01y\x01a\x04test\x00": false, "\x01x\x00": false, "\x00": false} {
		if got := h.Owns([]byte(name)); got != want {
			t.Errorf("%q: got %t", name, got)
		}
	}
}

func TestReload(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{})
	path := dir + "/db"
	s := plugintest.Start(t, "a.test {\nfile "+path+" {\nreload 1h\n}\n}\n", order...)
	f := s.Block.First().(*handler).files["a.test."]
	expect := func(want string) {
		t.Helper()
		m, err := s.Ask("x.a.test. A")
		if got := plugintest.Text(m); err != nil || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q (%v)", got, want, err)
		}
	}
	write := func(serial int, rest string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(fmt.Sprintf("@ 60 IN SOA a b %d 2 3 4 5\n%s\n", serial, rest)), 0o644); err != nil {
			t.Fatal(err)
		}
		f.Reload(false)
	}
	expect("SERVFAIL") // not there yet
	write(1, "x 60 IN A 192.0.2.1")
	expect("192.0.2.1")
	write(1, "x 60 IN A 192.0.2.2") // the same serial
	expect("192.0.2.1")
	write(2, "x 60 IN A 192.0.2.2")
	expect("192.0.2.2")
	write(3, "x 60 IN A broken") // stays as it was
	expect("192.0.2.2")
	f.Reload(false)
	if n := strings.Count(s.Log.String(), "the old data stays"); n != 1 {
		t.Errorf("the error is logged %d times, want once: %s", n, s.Log)
	}
	write(1, "x 60 IN A 192.0.2.3") // any other serial will do
	expect("192.0.2.3")
	if err := os.WriteFile(path, []byte("@ 60 IN SOA a b 1 2 3 4 5\nx 60 IN A 192.0.2.4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	f.Reload(true)
	expect("192.0.2.4")
}

func TestRefuses(t *testing.T) {
	soa := "@ 60 IN SOA a b 1 2 3 4 5\n"
	dir := plugintest.WriteFiles(t, map[string]string{
		"good": soa, "nosoa": "a 60 IN A 192.0.2.1\n", "bad": soa + "a 60 IN A x\n", "nsec3": soa + "a 60 IN NSEC3PARAM 1 0 0 -\n",
		"include": soa + "$INCLUDE none\n", "foreign": "other.test. 60 IN SOA a b 1 2 3 4 5\n",
	})
	plugintest.Refuses(t, order, [][2]string{
		{"file", "wrong arguments"},
		{"file " + dir + "/nosoa", "there is no SOA record"},
		{"file " + dir + "/bad", "line: 2"},
		{"file " + dir + "/nsec3", "NSEC3 zones are not supported"},
		{"file " + dir + "/include", "none"},
		{"file " + dir + "/foreign a.test", "SOA record for other.test."},
		{"file " + dir + "/none {\nreload 0s\n}", "no such file"},
		{"file " + dir, "is a directory"},
		{"file " + dir + "/good a..b", "empty label"},
		{"file " + dir + "/good {\nreload\n}", "wrong arguments"},
		{"file " + dir + "/good {\nreload 5\n}", "not a duration"},
		{"file " + dir + "/good {\nreload -1s\n}", "too short"},
		{"file " + dir + "/good {\nreload_by_mtime x\n}", "no argument"},
		{"file " + dir + "/good {\nfallthrough a..b\n}", "empty label"},
		{"file " + dir + "/good {\nreloads 5s\n}", `did you mean "reload"?`},
	})
	plugintest.Accepts(t, order, "file "+dir+"/good", "file "+dir+"/none", "file "+dir+"/good a.test 10.0.0.0/8 {\nreload 0\nfallthrough\nreload_by_mtime\nupstream 1.2.3.4\n}\nfile "+dir+"/good b.test")
}

func TestDirectDoesNotAllocate(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"db": "@ 60 IN SOA a b 1 2 3 4 5\n@ 60 IN NS ns\nx 60 IN A 192.0.2.1\nx 60 IN A 192.0.2.2\n"})
	s := plugintest.Start(t, "a.test {\nfile "+dir+"/db\n}\n", order...)
	h := s.Block.First().(*handler)
	for _, question := range []string{"x.a.test. A", "x.a.test. MX", "none.a.test. A"} {
		r, _, _ := plugintest.ParseQuestion(question)
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
			t.Errorf("%s: %v allocations", question, n)
		}
	}
}
