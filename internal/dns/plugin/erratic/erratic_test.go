package erratic

import (
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"erratic x", "no argument"},
		{"erratic {\ndrop -1\n}", "from 0"},
		{"erratic {\ndrop 1 1\n}", "wrong arguments"},
		{"erratic {\ndelay 1 1\n}", "not a duration"},
		{"erratic {\ntruncate x\n}", "from 0"},
		{"erratic {\ndrops\n}", "did you mean \"drop\""},
		{"erratic {\nlarge x\n}", "no argument"},
	})
	plugintest.Accepts(t, order, "erratic", "erratic {\ndrop\ntruncate\ndelay\nlarge\n}", "erratic {\ndelay 3 5ms\ndrop 0\n}")
}
