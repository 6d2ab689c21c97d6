package debug

import (
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "debug", Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"debug x", "no argument"},
		{"debug {\n}", "no block"},
	})
	plugintest.Accepts(t, order, "debug", "debug\ndebug")
}

func TestDebug(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\ndebug\n}\n", order)
	if err != nil || !b.Debug {
		t.Errorf("got %v, %v", b, err)
	}
}
