package timeouts

import (
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "timeouts", Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"timeouts", "sets none"},
		{"timeouts {\n}", "sets none"},
		{"timeouts 1s", "no argument"},
		{"timeouts {\nread\n}", "wrong arguments"},
		{"timeouts {\nread 1ms\n}", "at least 1s"},
		{"timeouts {\nread 25h\n}", "at most 24h"},
		{"timeouts {\nread x\n}", "not a duration"},
		{"timeouts {\nreads 1s\n}", "did you mean \"read\""},
		{"timeouts {\nmaxtcpqueries 0\n}", "from 1"},
		{"timeouts {\nmaxtcpqueries -2\n}", "from 1"},
	})
	plugintest.Accepts(t, order, "timeouts {\nidle 24h\n}")
}

func TestValues(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\ntimeouts {\nread 7s\nwrite 8\nidle 1m\nmaxtcpqueries 9\n}\n}\n", order)
	if err != nil {
		t.Fatal(err)
	}
	if want := (plugin.Timeouts{Read: 7 * time.Second, Write: 8 * time.Second, Idle: time.Minute, MaxQueries: 9}); b.Timeouts != want {
		t.Errorf("got %+v, want %+v", b.Timeouts, want)
	}
}
