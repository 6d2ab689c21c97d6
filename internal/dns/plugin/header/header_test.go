package header

import (
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/plugin/whoami"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}, {Name: "whoami", Setup: whoami.Setup}}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order...) }

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"header", "has no rule"},
		{"header {\n}", "has no rule"},
		{"header x", "no argument"},
		{"header {\nresponse set\n}", "wrong arguments"},
		{"header {\nresponse put ra\n}", "unknown action"},
		{"header {\nresponse set ad\n}", "unknown flag"},
		{"header {\nrespons set ra\n}", "did you mean \"response\""},
	})
	plugintest.Accepts(t, order, "header {\nQuery Clear RD\nresponse set RA aa\n}")
}
