package pprof

import (
	"net/http"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"pprof x", "no address with a port"},
		{"pprof :1 :2", "wrong arguments"},
		{"pprof {\nblock x\n}", "no number"},
		{"pprof {\nblock 1 2\n}", "wrong arguments"},
		{"pprof {\nblocks\n}", "did you mean \"block\""},
		{"pprof\npprof", "stands twice"},
	})
	plugintest.Accepts(t, order, "pprof", "pprof :6060 {\nblock\n}", "pprof {\nblock 10\n}")
}

func TestEndpoint(t *testing.T) {
	env, log := plugintest.NewEnv()
	addr := ""
	env.Listen = plugintest.Listening(env.Listen, &addr)
	plugintest.StartIn(t, env, log, ". {\npprof 127.0.0.1:0\n}\n", order...)
	resp, err := http.Get("http://" + addr + "/debug/pprof/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("got %s", resp.Status)
	}
}
