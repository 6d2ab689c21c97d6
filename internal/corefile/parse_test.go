package corefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// known is the directive list of the tests.
var known = []string{"bind", "cache", "errors", "forward", "health", "hosts", "import", "log", "prometheus", "template", "view", "whoami"}

// TestParse runs the cases in testdata. A case is a Corefile, other files that
// it imports, optionally a file env with NAME=value lines, and either the
// blocks that it means (want, with positions: want-at) or the error; warnings
// are compared when there is a file of that name.
func TestParse(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := memoryFiles{}
			for _, f := range ar.Files {
				files[f.Name] = string(f.Data)
			}
			var warnings []string
			blocks, err := Parse("Corefile", []byte(files["Corefile"]), Options{
				Getenv:     files.getenv,
				Files:      files,
				Directives: known,
				Missing:    []string{"route53"},
				Warn:       func(err error) { warnings = append(warnings, err.Error()+"\n") },
			})
			got := map[string]string{}
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("%T is no *Error: %v", err, err)
				}
				got["error"] = err.Error() + "\n"
			} else if _, ok := files["want-at"]; ok {
				got["want-at"] = render(blocks, true)
			} else {
				got["want"] = render(blocks, false)
			}
			if _, ok := files["warnings"]; ok {
				got["warnings"] = strings.Join(warnings, "")
			}
			want := map[string]string{}
			for _, name := range []string{"want", "want-at", "error", "warnings"} {
				if text, ok := files[name]; ok {
					want[name] = text
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

type memoryFiles map[string]string

func (m memoryFiles) ReadFile(path string) ([]byte, error) {
	if text, ok := m[path]; ok {
		return []byte(text), nil
	}
	return nil, fmt.Errorf("open %s: %w", path, fs.ErrNotExist)
}

func (m memoryFiles) Glob(pattern string) (paths []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if ok, err := filepath.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			paths = append(paths, name)
		}
	}
	return paths, nil
}

func (m memoryFiles) getenv(name string) string {
	for _, l := range strings.Split(m["env"], "\n") {
		if value, ok := strings.CutPrefix(l, name+"="); ok {
			return value
		}
	}
	return ""
}

// render writes blocks in canonical form, each word in quotes unless it is
// plain.
func render(blocks []ServerBlock, positions bool) string {
	var b strings.Builder
	at := func(t Token) {
		if positions {
			fmt.Fprintf(&b, " @%s:%d", t.File, t.Line)
		}
		b.WriteByte('\n')
	}
	var lines func(indent string, list []Directive)
	lines = func(indent string, list []Directive) {
		for _, d := range list {
			b.WriteString(indent + plain(d.Name.Text))
			for _, a := range d.Args {
				b.WriteString(" " + plain(a.Text))
			}
			if d.HasBlock {
				b.WriteString(" {")
			}
			at(d.Name)
			lines(indent+"  ", d.Block)
			if d.HasBlock {
				b.WriteString(indent + "}\n")
			}
		}
	}
	for _, bl := range blocks {
		for _, k := range bl.Keys {
			b.WriteString(k.String())
			at(k.Token)
		}
		b.WriteString("{\n")
		lines("  ", bl.Directives)
		b.WriteString("}\n")
	}
	return b.String()
}

func plain(s string) string {
	if s == "" || strings.ContainsAny(s, " \t\n\"{}#\\") {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func TestHashIgnoresLayout(t *testing.T) {
	files := memoryFiles{"part": "log\n"}
	parse := func(src string) string {
		t.Helper()
		blocks, err := Parse("Corefile", []byte(src), Options{Files: files})
		if err != nil {
			t.Fatal(err)
		}
		return Hash(blocks)
	}
	base := parse(".:53 {\n  log\n  cache 30 {\n    denial 5\n  }\n}\n")
	for _, same := range []string{
		"# comment\n. {\nlog # comment\n\ncache \"30\" {\n denial 5\n}\n}",
		". {\nimport part\ncache 30 {\ndenial 5\n}\n}",
	} {
		if parse(same) != base {
			t.Errorf("the hash of %q differs", same)
		}
	}
	for _, other := range []string{
		".:54 {\n  log\n  cache 30 {\n    denial 5\n  }\n}\n",
		". {\n  log\n  cache 30 {\n    denial 6\n  }\n}\n",
		". {\n  log\n  cache 30\n denial 5\n}\n",
		". {\n  log cache 30 {\n    denial 5\n  }\n}\n",
	} {
		if parse(other) == base {
			t.Errorf("the hash of %q is the same", other)
		}
	}
}

func TestNearest(t *testing.T) {
	tests := []struct{ word, want string }{
		{"forwrad", "forward"}, {"forwardd", "forward"}, {"Forward", "forward"},
		{"cahce", "cache"}, {"lgo", "log"}, {"error", "errors"}, {"promethues", "prometheus"},
		{"proxy", ""}, {"x", ""}, {"", ""},
	}
	for _, tt := range tests {
		if got := nearest(tt.word, known); got != tt.want {
			t.Errorf("nearest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

// TestImportBounds: what unfolds without end is refused, not computed.
func TestImportBounds(t *testing.T) {
	files := memoryFiles{}
	for i := range 40 {
		files[fmt.Sprint("f", i)] = fmt.Sprintf("import f%d\nimport f%d\n", i+1, i+1)
	}
	files["f40"] = "log\n"
	_, err := Parse("Corefile", []byte(". {\nimport f0\n}"), Options{Files: files})
	if err == nil || !strings.Contains(err.Error(), "imports") {
		t.Errorf("got %v, want an error about too many imports", err)
	}
	_, err = Parse("Corefile", []byte(". {\n"+strings.Repeat("a {\n", 100)), Options{})
	if err == nil || !strings.Contains(err.Error(), "deep") {
		t.Errorf("got %v, want an error about the depth", err)
	}
}

func FuzzParse(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*.txtar")
	for _, p := range paths {
		ar, err := txtar.ParseFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ar.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		blocks, err := Parse("Corefile", src, Options{
			Getenv: func(name string) string { return name },
			Files:  memoryFiles{"one": "log\n", "two": "import one\n}\n"},
		})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Line < 1 || strings.Contains(e.File, "\n") {
				t.Fatalf("error without a place: %#v", err)
			}
			return
		}
		if bytes.ContainsRune(src, '\\') {
			return // quotes cannot hold a word that ends in a backslash
		}
		// What was understood, written plainly, must be understood the same.
		again, err := Parse("Corefile", []byte(quoteAll(blocks)), Options{})
		if err != nil {
			t.Fatalf("%v\nin %s", err, quoteAll(blocks))
		}
		if Hash(again) != Hash(blocks) {
			t.Fatalf("second reading differs:\n%s\n%s", render(blocks, false), render(again, false))
		}
	})
}

// quoteAll writes blocks as a Corefile in which every word is quoted.
func quoteAll(blocks []ServerBlock) string {
	var b strings.Builder
	word := func(s string) { b.WriteString(` "` + strings.ReplaceAll(s, `"`, `\"`) + `"`) }
	var lines func(list []Directive)
	lines = func(list []Directive) {
		for _, d := range list {
			word(d.Name.Text)
			for _, a := range d.Args {
				word(a.Text)
			}
			if d.HasBlock {
				b.WriteString(" {\n")
				lines(d.Block)
				b.WriteString("}")
			}
			b.WriteString("\n")
		}
	}
	for _, bl := range blocks {
		for _, k := range bl.Keys {
			word(k.String())
		}
		b.WriteString(" {\n")
		lines(bl.Directives)
		b.WriteString("}\n")
	}
	return b.String()
}
