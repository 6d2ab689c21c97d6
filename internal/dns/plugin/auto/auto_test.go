package auto

import (
	"os"
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup, Effect: plugin.Local}, plugintest.Records(plugin.Answers)}

const zoneText = "@ 60 IN SOA a b 1 2 3 4 5\nx 60 IN A 192.0.2.1\n"

func TestWalk(t *testing.T) {
	dir := plugintest.WriteFiles(t, map[string]string{"db.a.test": zoneText, "db.bad.test": "broken", "other": zoneText})
	if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	// As a ConfigMap is mounted: links to files in a directory that is not
	// looked into.
	if err := os.Mkdir(dir+"/..data", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sub/db.sub.test", zoneText)
	write("..data/db.linked.test", zoneText)
	if err := os.Symlink("..data/db.linked.test", dir+"/db.linked.test"); err != nil {
		t.Fatal(err)
	}
	s := plugintest.Start(t, "test {\nauto {\ndirectory "+dir+"\nreload 1h\n}\nrecords {\nx.c.test. 60 IN A 192.0.2.9\n}\n}\n", order...)
	h := s.Block.First().(*handler)
	expect := func(question, want string) {
		t.Helper()
		m, err := s.Ask(question)
		if got := plugintest.Text(m); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q (%v)", question, got, want, err)
		}
	}
	expect("x.a.test. A", "192.0.2.1")
	expect("x.sub.test. A", "192.0.2.1")
	expect("x.linked.test. A", "192.0.2.1")
	expect("x.c.test. A", "192.0.2.9") // not a zone: the next plugin's
	expect("a.test. AXFR", "REFUSED")
	if !strings.Contains(s.Log.String(), "zone bad.test. is not loaded") || strings.Contains(s.Log.String(), "two files") {
		t.Errorf("log: %s", s.Log)
	}
	if !h.Owns([]byte("\x01x\x01a\x04test\x00")) || h.Owns([]byte("\x01y\x01a\x04test\x00")) {
		t.Error("Owns is wrong")
	}

	write("db.c.test", zoneText)
	write("db.a.test", strings.Replace(zoneText, " 1 2 3", " 2 2 3", 1)+"y 60 IN A 192.0.2.2\n")
	if err := os.Remove(dir + "/sub/db.sub.test"); err != nil {
		t.Fatal(err)
	}
	h.walk()
	expect("x.c.test. A", "192.0.2.1")
	expect("y.a.test. A", "192.0.2.2")
	expect("x.sub.test. A", "NXDOMAIN")
}

func TestOrigins(t *testing.T) {
	tests := []struct{ line, file, want string }{
		{"", "db.example.org", "example.org."},
		{"", "x-db.Example.org", "example.org."},
		{"", "example.org.zone", ""},
		{` (.*)\.zone$ {1}`, "example.org.zone", "example.org."},
		{` ^(.*)_(.*)$ {2}.{1}.test`, "a_b", "b.a.test."},
	}
	for _, tt := range tests {
		env, _ := plugintest.NewEnv()
		b, err := plugintest.Build(env, ". {\nauto {\ndirectory /tmp"+tt.line+"\n}\n}\n", order)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := b.First().(*handler).origin(tt.file); got != tt.want {
			t.Errorf("%q, %s: got %q, want %q", tt.line, tt.file, got, tt.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "auto {\n" + property + "\n}" }
	plugintest.Refuses(t, order, [][2]string{
		{"auto", "no directory"},
		{"auto a..b", "empty label"},
		{block("directory"), "wrong arguments"},
		{block("directory /tmp a"), "wrong arguments"},
		{block("directory /tmp ( b"), "missing closing"},
		{block("directory /tmp a b"), "has no group"},
		{block("directory /tmp (.*) {1} c"), "wrong arguments"},
		{block("directory /tmp\nreload 5"), "not a duration"},
		{block("directory /tmp\nreload -5s"), "too short"},
		{block("directori /tmp"), `did you mean "directory"?`},
	})
	plugintest.Accepts(t, order, block("directory /does/not/exist\nreload 0"), "auto a.test 10.0.0.0/8 {\ndirectory /tmp (.*) {1}\n}")
}
