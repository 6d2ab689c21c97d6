package chaos

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
		{"chaos {\n}", "takes no block"},
	})
	plugintest.Accepts(t, order, "chaos", "chaos 1.0 a b")
}
