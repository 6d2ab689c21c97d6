package root

import (
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "root", Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"root", "wrong arguments"},
		{"root a b", "wrong arguments"},
	})
	plugintest.Accepts(t, order, "root /tmp")
}

func TestRoot(t *testing.T) {
	env, log := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\nroot /does/not/exist\n}\n", order)
	if err != nil || b.File("a") != "/does/not/exist/a" || b.File("/a") != "/a" {
		t.Errorf("got %v, %v", b, err)
	}
	if !strings.Contains(log.String(), "no such file") {
		t.Errorf("no warning: %q", log)
	}
}
