package multisocket

import (
	"runtime"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "multisocket", Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"multisocket 0", "from 1 to 1024"},
		{"multisocket 1025", "from 1 to 1024"},
		{"multisocket x", "from 1"},
		{"multisocket 1 2", "wrong arguments"},
		{"multisocket\nmultisocket", "stands twice"},
	})
	plugintest.Accepts(t, order, "multisocket")
}

func TestNumber(t *testing.T) {
	for line, want := range map[string]int{"multisocket": runtime.GOMAXPROCS(0), "multisocket 7": 7} {
		env, _ := plugintest.NewEnv()
		b, err := plugintest.Build(env, ". {\n"+line+"\n}\n", order)
		if err != nil || b.Sockets != want {
			t.Errorf("%s: got %d, want %d (%v)", line, b.Sockets, want, err)
		}
	}
}
