package local

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
		{"local x", "no argument"},
		{"local {\nlocalhost_prefix\n}", "wrong arguments"},
		{"local {\nlocalhost_prefix yes\n}", "expected one of on, off"},
		{"local {\nlocalhost on\n}", "expected localhost_prefix"},
	})
	plugintest.Accepts(t, order, "local")
}
