package any

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
		{"any x", "no argument"},
	})
	plugintest.Accepts(t, order, "any", "any\nany")
}
