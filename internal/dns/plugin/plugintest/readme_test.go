package plugintest_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// part is a fenced block of a README: its language, the word after it, and the
// text.
type part struct{ kind, name, text string }

var (
	fence   = regexp.MustCompile("(?ms)^```([a-z]*) ?([^\n]*)\n(.*?)^```$")
	section = regexp.MustCompile(`(?m)^## (.*)$`)
)

// TestReadmes: every plugin has a page with the usual sections, and every
// Corefile in it starts. Blocks "file NAME" are files it needs; a block "dig"
// after a Corefile holds questions and what is answered, as a test script does.
func TestReadmes(t *testing.T) {
	entries := order.List(nil)
	for _, e := range entries {
		if e.Setup == nil || needsCluster(e.Name) {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", e.Name, "README.md"))
		if err != nil {
			t.Error(err)
			continue
		}
		t.Run(e.Name, func(t *testing.T) { testReadme(t, e, string(text), entries) })
	}
}

// TestIndex: the page of all plugins names each.
func TestIndex(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range order.List(nil) {
		row := regexp.MustCompile(`(?m)^\| \[?` + e.Name + `\b.* \| ` + e.Effect.String() + ` \|$`)
		if e.Setup != nil && !row.Match(text) {
			t.Errorf("there is no row for %s with the effect %s", e.Name, e.Effect)
		}
		if e.Setup == nil && !strings.Contains(string(text), e.Name) {
			t.Errorf("%s is not among the plugins that are missing", e.Name)
		}
	}
}

// needsCluster names the plugins whose examples are about a cluster; their own
// tests have one.
func needsCluster(name string) bool {
	return slices.Contains([]string{"kubernetes", "k8s_external", "loadbalance", "prometheus"}, name)
}

func testReadme(t *testing.T, e plugin.Entry, text string, entries []plugin.Entry) {
	if !strings.HasPrefix(text, "# "+e.Name+"\n") {
		t.Errorf("the page does not begin with # %s", e.Name)
	}
	var have []string
	for _, m := range section.FindAllStringSubmatch(text, -1) {
		have = append(have, m[1])
	}
	for _, want := range []string{"Name", "Description", "Syntax", "Examples"} {
		if !slices.Contains(have, want) {
			t.Errorf("there is no section %s", want)
		}
	}
	var parts []part
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		parts = append(parts, part{m[1], m[2], m[3]})
	}
	dir := t.TempDir()
	for _, p := range parts {
		if p.kind != "file" {
			continue
		}
		path := filepath.Join(dir, p.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(p.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	examples := 0
	example := ""
	for _, p := range parts {
		switch p.kind {
		case "corefile":
			examples++
			example = p.text
			start(t, example, entries)
		case "dig":
			dig(t, example, p.text, entries)
		}
	}
	if examples == 0 {
		t.Error("there is no example")
	}
}

// start serves an example on ports that are free, and stops it.
func start(t *testing.T, text string, entries []plugin.Entry) {
	t.Helper()
	opts := corefile.OS()
	opts.Directives, opts.Missing = plugin.Names(entries)
	blocks, err := corefile.Parse("README.md", []byte(text), opts)
	if err != nil {
		t.Errorf("%s\n%v", text, err)
		return
	}
	for i := range blocks {
		for j := range blocks[i].Keys {
			blocks[i].Keys[j].Port = "0"
		}
		for j, d := range blocks[i].Directives {
			if slices.Contains([]string{"health", "ready", "pprof", "prometheus"}, d.Name.Text) {
				blocks[i].Directives[j].Args = []corefile.Token{{Text: "127.0.0.1:0", File: d.Name.File, Line: d.Name.Line}}
			}
			for _, p := range d.Block {
				if p.Name.Text == "lameduck" {
					p.Args[0].Text = "1ms"
				}
			}
		}
	}
	env, _ := plugintest.NewEnv()
	s, err := server.New(server.Config{Blocks: blocks, Plugins: entries, Log: env.Log, Registry: env.Registry})
	if err != nil {
		t.Errorf("%s\n%v", text, err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Errorf("%s\n%v", text, err)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("%s\nshutdown: %v", text, err)
	}
}

// dig asks the first server block of an example.
func dig(t *testing.T, example, script string, entries []plugin.Entry) {
	t.Helper()
	s := plugintest.Start(t, example, entries...)
	var got strings.Builder
	for line := range strings.Lines(script) {
		if question, ok := strings.CutPrefix(line, "? "); ok {
			m, err := s.Ask(question)
			if err != nil {
				t.Fatal(err)
			}
			got.WriteString(line + plugintest.Text(m))
		}
	}
	if diff := cmp.Diff(script, got.String()); diff != "" {
		t.Errorf("%s-want +got:\n%s", example, diff)
	}
}
