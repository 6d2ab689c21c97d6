package hosts

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/plugin/reverse"
)

var order = []plugin.Entry{{Name: name, Setup: Setup, Effect: plugin.Local}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestReload(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"hosts": "192.0.2.1 a.test\n"})
	path := dir + "/hosts"
	s := plugintest.Start(t, ". {\nhosts "+path+" {\n192.0.2.9 inline.test\nreload 5ms\n}\n}\n", order...)
	reply := func(question string) string {
		m, err := s.Ask(question)
		if err != nil {
			t.Fatal(err)
		}
		return plugintest.Text(m)
	}
	waitFor := func(question, want string) {
		t.Helper()
		for range 1000 {
			if strings.Contains(reply(question), want) {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("%s: got %q, want %q", question, reply(question), want)
	}
	waitFor("a.test. A", "192.0.2.1")
	if err := os.WriteFile(path, []byte("192.0.2.2 a.test b.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor("b.test. A", "192.0.2.2")
	waitFor("a.test. A", "192.0.2.2")
	waitFor("inline.test. A", "192.0.2.9")
	if n := s.Metric(t, "coredns_hosts_entries", "hostsfile", path); n != 3 {
		t.Errorf("coredns_hosts_entries is %v, want 3", n)
	}
	if s.Metric(t, "coredns_hosts_reload_timestamp_seconds") == 0 {
		t.Error("coredns_hosts_reload_timestamp_seconds is 0")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.Block.Handler(name).(*handler).source.load(false)
	waitFor("b.test. A", "192.0.2.2") // what was known stays
}

func TestMissingFile(t *testing.T) {
	s := plugintest.Start(t, ". {\nhosts /does/not/exist {\n192.0.2.9 inline.test\n}\n}\n", order...)
	if got := s.Log.String(); !strings.Contains(got, "does not exist") {
		t.Errorf("no warning: %q", got)
	}
	m, _ := s.Ask("inline.test. A")
	if got := plugintest.Text(m); !strings.Contains(got, "192.0.2.9") {
		t.Errorf("got %q", got)
	}
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "hosts {\n" + property + "\n}" }
	plugintest.Refuses(t, order, [][2]string{
		{"hosts\nhosts", "stands twice"},
		{block("ttl 0"), "from 1 to 65535"},
		{block("ttl 65536"), "from 1 to 65535"},
		{block("ttl"), "wrong arguments"},
		{block("reload -1s"), "too short"},
		{block("reload 5"), "not a duration"},
		{block("no_reverse x"), "no argument"},
		{block("fallthrough_unsupported"), "without fallthrough"},
		{block("fallthrough\nnoreverse"), `did you mean "no_reverse"?`},
		{block("fallthrough\n192.0.2.1 a"), "entries before fallthrough"},
		{block("fallthrough a..b"), "empty label"},
		{"hosts /etc/hosts a..b", "empty label"},
	})
	plugintest.Accepts(t, order, "hosts", "hosts /etc/hosts example.org 10.0.0.0/8", block("reload 0s\nttl 1\nwhatever this is\nno_reverse\nfallthrough example.org\nfallthrough_unsupported"))
}

func FuzzTable(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost # c\n::1 a.b *.c\nfe80::1%eth0 x\n"))
	f.Add([]byte("1.2.3.4 \\. a\\.b \\000 ..\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		tab := newTable()
		tab.add(file, plugin.Zones{"."}, true)
		for key, a := range tab.names {
			if len(a.v4)%4 != 0 || len(a.v6)%16 != 0 || tab.find([]byte(key)) != a {
				t.Fatalf("%q: %v", key, a)
			}
			if _, _, err := dns.UnpackDomainName([]byte(key), 0); err != nil {
				t.Fatalf("%q: %v", key, err)
			}
		}
		for addr, names := range tab.reverse {
			name, err := dns.ReverseAddr(addr.String())
			if back, ok := reverse.Addr(name); err != nil || !ok || back != addr {
				t.Fatalf("%v of %v: %v", name, names, back)
			}
		}
	})
}

// A line that is no entry is passed over, as CoreDNS does, but not in silence.
func TestWarnsOfLines(t *testing.T) {
	s := plugintest.Start(t, ". {\nhosts {\n999.1.1.1 a.test\nfalthrough\n192.0.2.1\n192.0.2.2 b.test\n}\n}\n", order...)
	for _, want := range []string{
		`Corefile:3: unknown address or property of hosts \"999.1.1.1\"`,
		`Corefile:4: unknown address or property of hosts \"falthrough\"; did you mean \"fallthrough\"?`,
		`Corefile:5: wrong arguments for \"192.0.2.1\": got none; expected names after the address`,
	} {
		if !strings.Contains(s.Log.String(), want) {
			t.Errorf("not in the log: %s\n%s", want, s.Log)
		}
	}
	if n := strings.Count(s.Log.String(), "passed over"); n != 3 {
		t.Errorf("%d lines are passed over, want 3", n)
	}
}
