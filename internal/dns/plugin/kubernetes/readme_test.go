package kubernetes_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// The examples of the page start, and answer what it says.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var s *plugintest.Server
	answered := 0
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		switch m[1] {
		case "corefile":
			s = plugintest.Start(t, m[2], plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local})
		case "dig":
			var got strings.Builder
			for line := range strings.Lines(m[2]) {
				if question, ok := strings.CutPrefix(line, "? "); ok {
					reply, err := s.Ask(question)
					if err != nil {
						t.Fatal(err)
					}
					got.WriteString(line + plugintest.Text(reply))
					answered++
				}
			}
			if diff := cmp.Diff(m[2], got.String()); diff != "" {
				t.Error(diff)
			}
		}
	}
	if answered == 0 {
		t.Error("the page has no questions")
	}
}
