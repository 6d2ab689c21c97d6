package healthcheck

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

func TestServers(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	var sick atomic.Bool
	var failed []catalog.ServiceName
	s := New(Config{
		Healthy: func() bool { return !sick.Load() },
		Failed:  func(n catalog.ServiceName, _ error) { failed = append(failed, n) },
		Log:     slog.New(slog.DiscardHandler),
	})
	defer s.Close()
	s.Listen([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")})
	name := catalog.ServiceName{Namespace: "default", Name: "web"}
	check := func(local int) *plan.HealthCheck {
		return &plan.HealthCheck{NodePort: port, Local: [2]int{local, 0}, Families: [2]bool{true, false}}
	}
	get := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/any/path", port))
		if err != nil {
			return "no answer"
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d weight=%s %s", resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), body)
	}
	want := func(what, want string) {
		t.Helper()
		if got := get(); got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	s.Set(name, check(2))
	if len(failed) != 1 || failed[0] != name {
		t.Errorf("the port was taken, told of %v", failed)
	}
	taken.Close()
	s.Retry()
	want("port free again", `200 weight=2 {"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`)
	s.Set(name, check(0))
	want("no endpoint here", `503 weight=0 {"service":{"namespace":"default","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	s.Set(name, check(1))
	sick.Store(true)
	want("proxy not healthy", `503 weight=1 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":false}`)
	s.Retain(func(n catalog.ServiceName) bool { return n == name })
	sick.Store(false)
	want("retained", `200 weight=1 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	s.Listen([]netip.Addr{netip.MustParseAddr("127.0.0.2")})
	want("another address", "no answer")
	s.Listen(nil)
	want("all addresses", `200 weight=1 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	s.Set(name, nil)
	want("service gone", "no answer")
}
