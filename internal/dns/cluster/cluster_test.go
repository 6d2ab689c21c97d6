package cluster

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
)

func newClusters(t *testing.T) *Clusters {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return New(ctx, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), "rutter/test")
}

// A cluster is followed from the first time that it is asked for, once per
// connection.
func TestFollows(t *testing.T) {
	agents := make(chan string, 16)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case agents <- r.UserAgent():
		default:
		}
		if r.URL.Query().Get("watch") != "" {
			if r.URL.Query().Get("sendInitialEvents") != "" { // no streaming lists here
				w.WriteHeader(http.StatusUnprocessableEntity)
				return
			}
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		kind := map[string]string{"services": "ServiceList", "namespaces": "NamespaceList"}[filepath.Base(r.URL.Path)]
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": kind, "apiVersion": "v1", "metadata": map[string]string{"resourceVersion": "1"}, "items": []any{}})
	}))
	t.Cleanup(api.Close) // after the watches have ended
	c := newClusters(t)
	conn := kubernetes.Connection{Endpoint: api.URL, WithoutEndpoints: true}
	a, err := c.Store(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := c.Store(t.Context(), conn); err != nil || a != b {
		t.Errorf("the same connection has two stores: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := a.WaitSynced(ctx); err != nil {
		t.Error(err)
	}
	if agent := <-agents; agent != "rutter/test" {
		t.Errorf("user agent %q", agent)
	}
}

func TestUnusableConnections(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncontexts: []\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, conn := range map[string]kubernetes.Connection{
		"no credentials of a pod (":   {},
		"kubeconfig " + path + ": ":   {Kubeconfig: path, Context: "absent"},
		"kubeconfig /does/not/exist:": {Kubeconfig: "/does/not/exist"},
	} {
		if _, err := newClusters(t).Store(t.Context(), conn); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// apiserver_max_inflight: a request beyond the limit waits until another has
// its response, or until it is not wanted any more.
func TestMaxInflight(t *testing.T) {
	cfg, err := newClusters(t).rest(kubernetes.Connection{Endpoint: "http://127.0.0.1:1", MaxInflight: 1})
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	rt := cfg.WrapTransport(roundTripper(func(*http.Request) (*http.Response, error) {
		entered <- struct{}{}
		<-release
		return &http.Response{}, nil
	}))
	ask := func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:1/", nil)
		if err != nil {
			return err
		}
		_, err = rt.RoundTrip(r)
		return err
	}
	done := make(chan error, 2)
	go func() { done <- ask(t.Context()) }()
	<-entered
	unwanted, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ask(unwanted); err != context.Canceled {
		t.Errorf("a request beyond the limit: %v, want it to wait", err)
	}
	go func() { done <- ask(t.Context()) }()
	release <- struct{}{}
	<-entered // the second one, in the place of the first
	release <- struct{}{}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
