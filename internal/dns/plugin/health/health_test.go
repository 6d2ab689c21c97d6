package health

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}}

func TestEndpoint(t *testing.T) {
	env, log := plugintest.NewEnv()
	addr := ""
	listen := env.Listen
	env.Listen = plugintest.Listening(listen, &addr)
	s := plugintest.StartIn(t, env, log, ". {\nhealth :1\nhealth 127.0.0.1:0\n}\n", order...)
	resp, err := http.Get("http://" + addr + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || string(body) != "OK" {
		t.Errorf("got %s %q", resp.Status, body)
	}
	if err := s.Block.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get("http://" + addr + "/health"); err == nil {
		t.Error("the endpoint answers after the shutdown")
	}
}

func TestAsksItself(t *testing.T) {
	env, log := plugintest.NewEnv()
	addr := ""
	env.Listen = plugintest.Listening(env.Listen, &addr)
	s := plugintest.StartIn(t, env, log, ". {\nhealth 127.0.0.1:0\n}\n", order...)
	for range 500 {
		if s.Metric(t, "coredns_health_request_duration_seconds") > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("no health request within 5 s: %s", s.Log)
}

func TestLameduck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env, log := plugintest.NewEnv()
		b, err := plugintest.Build(env, ". {\nhealth {\nlameduck 7s\n}\n}\n", order)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := b.FinalShutdown(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %s, want 7s", took)
		}
		if !strings.Contains(log.String(), "Going into lameduck mode for 7s") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"health localhost", "no address with a port"},
		{"health :1 :2", "wrong arguments"},
		{"health {\nlameduck\n}", "wrong arguments"},
		{"health {\nlameduck 5\n}", "not a duration"},
		{"health {\nlame 5s\n}", "expected lameduck"},
	})
	plugintest.Accepts(t, order, "health", "health :8080\nhealth :8081 {\nlameduck 0s\n}", "health [::1]:8080")
}
