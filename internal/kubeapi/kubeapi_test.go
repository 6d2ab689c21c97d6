package kubeapi

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func TestPath(t *testing.T) {
	for _, c := range []struct{ flag, env, want string }{
		{"/flag", "/env", "/flag"},
		{"", "/env", "/env"},
		{"", "/env:/more", "/env"},
		{"", "", "/run/x/agent.kubeconfig"},
	} {
		t.Setenv("KUBECONFIG", c.env)
		if got := Path(c.flag, "/run/x"); got != c.want {
			t.Errorf("Path(%q) with $KUBECONFIG=%q: %q, want %q", c.flag, c.env, got, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent")
	if _, err := Load(absent); err == nil || !strings.Contains(err.Error(), "no kubeconfig at "+absent+": start `rutter up`") {
		t.Errorf("absent: %v", err)
	}
	for name, text := range map[string]string{"garbage": "{", "empty": "", "no-server": "apiVersion: v1\nkind: Config\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// An empty configuration must not fall back to another API server.
		if cfg, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", name, cfg, err)
		}
	}
}

// answer is an API server that always gives the same answer.
func answer(code int, reason metav1.StatusReason) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"the message","reason":%q,"code":%d}`, reason, code)
	})
}

func TestExplain(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	hangup := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	})
	for _, c := range []struct {
		name    string
		handler http.Handler // nil: nobody listens
		want    string       // HOST is the server
		waits   bool         // Unreachable
		kind    func(error) bool
	}{
		{"nobody listens", nil, "API server HOST does not answer: dial tcp ADDR: connect: connection refused; is the registry running, and is this its address (--kubeconfig)?", true, nil},
		{"connection cut", hangup, "API server HOST does not answer: EOF; is the registry running, and is this its address (--kubeconfig)?", true, nil},
		{"unauthorised", answer(401, metav1.StatusReasonUnauthorized), "API server HOST does not accept the credentials of the kubeconfig: the message; use a kubeconfig that this registry wrote (--kubeconfig)", false, apierrors.IsUnauthorized},
		{"forbidden", answer(403, metav1.StatusReasonForbidden), "API server HOST refuses: the message; use a kubeconfig with that right (--kubeconfig)", false, apierrors.IsForbidden},
		{"not there", answer(404, metav1.StatusReasonNotFound), "the message", false, apierrors.IsNotFound},
		{"starting", answer(503, metav1.StatusReasonServiceUnavailable), "API server HOST does not answer: the message; is the registry running, and is this its address (--kubeconfig)?", true, apierrors.IsServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := "http://" + closed.Addr().String()
			if c.handler != nil {
				s := httptest.NewServer(c.handler)
				defer s.Close()
				host = s.URL
			}
			client, err := New(&rest.Config{Host: host})
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Nodes().Get(context.Background(), "n")
			if err == nil {
				t.Fatal("no error")
			}
			if Unreachable(err) != c.waits {
				t.Errorf("Unreachable is %t for %v", !c.waits, err)
			}
			got := client.Explain(err)
			want := strings.NewReplacer("HOST", host, "ADDR", strings.TrimPrefix(host, "http://")).Replace(c.want)
			if got.Error() != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if c.kind != nil && !c.kind(got) {
				t.Errorf("the kind of error is lost: %#v", got)
			}
		})
	}
}

func TestUntrustedServer(t *testing.T) {
	s := httptest.NewTLSServer(answer(200, ""))
	defer s.Close()
	other := httptest.NewTLSServer(answer(200, ""))
	defer other.Close()
	s.Config.ErrorLog = nil
	for _, c := range []struct {
		name string
		tls  rest.TLSClientConfig
		want string
	}{
		{"no CA", rest.TLSClientConfig{}, "cannot be trusted"},
		{"wrong name", rest.TLSClientConfig{ServerName: "elsewhere.invalid", CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})}, "cannot be trusted"},
	} {
		client, err := New(&rest.Config{Host: s.URL, TLSClientConfig: c.tls})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Nodes().Get(context.Background(), "n")
		if got := client.Explain(err); got == nil || !strings.Contains(got.Error(), c.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestCanceledIsNotUnreachable(t *testing.T) {
	client, err := New(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := client.Nodes().Get(ctx, "n"); Unreachable(err) {
		t.Errorf("%v", err)
	}
	if Unreachable(nil) || Unreachable(errors.New("odd")) {
		t.Error("everything is unreachable")
	}
}

// What goes over the wire: verb, path, query and body format.
func TestRequests(t *testing.T) {
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.URL.RequestURI()
		if len(body) > 4 && string(body[:3]) == "k8s" {
			got += " protobuf"
		} else if len(body) > 0 {
			got += " " + string(body)
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}`)
	}))
	defer s.Close()
	c, err := New(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, pods := context.Background(), c.Pods("shop")
	for _, r := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := pods.Get(ctx, "p"); return err }, "GET /api/v1/namespaces/shop/pods/p"},
		{func() error { _, err := pods.Create(ctx, &corev1.Pod{}); return err }, "POST /api/v1/namespaces/shop/pods protobuf"},
		{func() error { _, err := pods.Update(ctx, "p", &corev1.Pod{}, "status"); return err }, "PUT /api/v1/namespaces/shop/pods/p/status protobuf"},
		{func() error {
			_, err := pods.Patch(ctx, "p", "application/merge-patch+json", []byte("{}"), "status")
			return err
		}, "PATCH /api/v1/namespaces/shop/pods/p/status {}"},
		{func() error { return pods.Delete(ctx, "p", metav1.DeleteOptions{}) }, "DELETE /api/v1/namespaces/shop/pods/p protobuf"},
		{func() error {
			w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=p"})
			if err == nil {
				w.Stop()
			}
			return err
		}, "GET /api/v1/namespaces/shop/pods?fieldSelector=metadata.name%3Dp&watch=true"},
		{func() error { _, err := c.Nodes().Get(ctx, "n"); return err }, "GET /api/v1/nodes/n"},
	} {
		if err := r.do(); err != nil && !strings.Contains(err.Error(), "not a") {
			t.Logf("%s: %v", r.want, err) // the answer is a Pod whatever was asked
		}
		if got != r.want {
			t.Errorf("got  %s\nwant %s", got, r.want)
		}
	}
}
