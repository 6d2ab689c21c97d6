package standalone

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/rutter-project/rutter/internal/proxy/config"
)

// A file that is written, and one of a ConfigMap volume: a symbolic link into a
// directory that is swapped as a whole.
func TestWatchFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		tmp := filepath.Join(dir, name+".tmp")
		if err := os.Symlink(to, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("plain", "old")
	write("1/config", "old")
	write("2/config", "new")
	link("1", "data")
	link("data/config", "visible")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	changed := make(chan bool)
	for _, name := range []string{"plain", "visible"} {
		go func() {
			saw := false
			WatchFile(ctx, filepath.Join(dir, name), func() bool { saw = true; return false })
			changed <- saw
		}()
	}
	// The file may be read for the first time only after a change: change on.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for left, i := 2, 0; left > 0; i++ {
		select {
		case saw := <-changed:
			if !saw {
				t.Fatal("a change went unnoticed")
			}
			left--
		case <-tick.C:
			write("plain", strings.Repeat("new", i))
			link([]string{"1", "2"}[i/60%2], "data")
		}
	}
	stopped, stop := context.WithCancel(context.Background())
	stop()
	WatchFile(stopped, filepath.Join(dir, "plain"), func() bool {
		t.Error("no change, and yet")
		return false
	})
}

func TestServiceCIDRs(t *testing.T) {
	status, body := http.StatusOK, `{"kind":"ServiceCIDRList","items":[{"spec":{"cidrs":["10.96.0.0/16","fd00:96::/112"]}},{"spec":{"cidrs":["10.97.0.0/16","10.96.0.0/16"]}}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	got, err := readServiceCIDRs(context.Background(), server.Client(), server.URL)
	want := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.97.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	body = "{"
	if _, err := readServiceCIDRs(context.Background(), server.Client(), server.URL); err == nil {
		t.Error("half an answer was taken for one")
	}
	status = http.StatusForbidden
	if _, err := readServiceCIDRs(context.Background(), server.Client(), server.URL); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("forbidden: %v", err)
	}
}

func TestMetricsPort(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector())
	c := config.New()
	c.Complete()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		metricsHandler(Options{Config: c, Log: slog.New(slog.DiscardHandler)}, func() string { return "ipvs" }, registry).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	for path, want := range map[string]string{"/healthz": "ok", "/healthz/ping": "ok", "/proxyMode": "ipvs"} {
		if code, body := get(path); code != 200 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if _, body := get("/metrics"); !strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics: %s", body)
	}
	if _, body := get("/metrics/slis"); strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics/slis: %s", body)
	}
	if code, body := get("/statusz"); code != 200 || !strings.Contains(body, "\nGo version: ") || strings.Contains(body, "/flagz") {
		t.Errorf("/statusz: %d %s", code, body)
	}
	_, body := get("/configz")
	var z map[string]config.Config
	if err := json.Unmarshal([]byte(body), &z); err != nil || z["kubeproxy.config.k8s.io"].MetricsBindAddress != "127.0.0.1:10249" {
		t.Errorf("/configz: %s (%v)", body, err)
	}
	if code, _ := get("/debug/pprof/"); code != 404 {
		t.Errorf("profiling is on without being asked: %d", code)
	}
	c.EnableProfiling = true
	if code, _ := get("/debug/pprof/"); code != 200 {
		t.Errorf("profiling: %d", code)
	}
}

func TestNodeName(t *testing.T) {
	if got, err := nodeName(" Node-1.Example "); err != nil || got != "node-1.example" {
		t.Errorf("%q, %v", got, err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := nodeName(""); err != nil || got != strings.ToLower(host) {
		t.Errorf("%q, %v", got, err)
	}
}
