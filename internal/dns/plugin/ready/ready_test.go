package ready

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// slow is a plugin that is ready when it is told.
type slow struct {
	name  string
	ready atomic.Bool
	asked atomic.Int32
}

func (s *slow) Name() string { return s.name }
func (s *slow) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return dns.RcodeRefused, nil
}
func (s *slow) Ready() bool { s.asked.Add(1); return s.ready.Load() }

func entry(h plugin.Handler) plugin.Entry {
	return plugin.Entry{Name: h.Name(), Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
		return func(plugin.Handler) plugin.Handler { return h }, nil
	}}
}

func TestReady(t *testing.T) {
	for _, continuously := range []bool{false, true} {
		env, log := plugintest.NewEnv()
		addr := ""
		env.Listen = plugintest.Listening(env.Listen, &addr)
		zeta, alpha := &slow{name: "zeta"}, &slow{name: "alpha"}
		line := "ready 127.0.0.1:0"
		if continuously {
			line += " {\nmonitor continuously\n}"
		}
		s := plugintest.StartIn(t, env, log, ". {\n"+line+"\nzeta\nalpha\n}\n",
			plugin.Entry{Name: name, Setup: Setup}, entry(zeta), entry(alpha))
		want := func(code int, text string) {
			t.Helper()
			resp, err := http.Get("http://" + addr + "/ready")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != code || string(body) != text {
				t.Errorf("continuously %t: got %d %q, want %d %q", continuously, resp.StatusCode, body, code, text)
			}
		}
		want(503, "alpha,zeta")
		alpha.ready.Store(true)
		want(503, "zeta")
		zeta.ready.Store(true)
		want(200, "OK")
		alpha.ready.Store(false)
		if continuously {
			want(503, "alpha")
		} else {
			want(200, "OK")
		}
		if err := s.Block.FinalShutdown(); err != nil {
			t.Fatal(err)
		}
		want(503, "Shutting down")
	}
}

func TestRefuses(t *testing.T) {
	order := []plugin.Entry{{Name: name, Setup: Setup}}
	plugintest.Refuses(t, order, [][2]string{
		{"ready\nready", "stands twice"},
		{"ready localhost", "no address with a port"},
		{"ready :1 :2", "wrong arguments"},
		{"ready {\nmonitor\n}", "wrong arguments"},
		{"ready {\nmonitor sometimes\n}", "unknown way to monitor"},
		{"ready {\nmoniter continuously\n}", `did you mean "monitor"?`},
	})
	plugintest.Accepts(t, order, "ready", "ready :8182 {\nmonitor until-ready\n}")
}
