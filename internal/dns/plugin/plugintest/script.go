package plugintest

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Scripts runs every testdata/*.txtar: a Corefile, files beside it ($DIR in the
// Corefile is their directory), and a script of questions, each a line "? " as
// Ask takes it, with the expected reply (as Text writes it) in the lines below.
func Scripts(t *testing.T, order ...plugin.Entry) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := make(map[string]string)
			for _, f := range ar.Files {
				files[f.Name] = string(f.Data)
			}
			text, script := files["Corefile"], files["script"]
			delete(files, "Corefile")
			delete(files, "script")
			s := Start(t, strings.ReplaceAll(text, "$DIR", WriteFiles(t, files)), order...)
			var got strings.Builder
			for line := range strings.Lines(script) {
				question, ok := strings.CutPrefix(line, "? ")
				switch {
				case ok:
					m, err := s.Ask(question)
					if err != nil {
						t.Fatal(err)
					}
					got.WriteString(line + Text(m))
				case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
					got.WriteString(line)
				}
			}
			// Blank lines and comments separate; where they stand is the script's.
			if diff := cmp.Diff(bare(script), bare(got.String())); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func bare(script string) string {
	var b strings.Builder
	for line := range strings.Lines(script) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}
