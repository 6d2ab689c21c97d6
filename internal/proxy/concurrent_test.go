package proxy_test

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Everything that may be asked may be asked while services change; the race
// detector is the judge.
func TestConcurrent(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(c *proxy.Config) { c.Registerer, c.CountBytes = registry, true })
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2"))
	w.markSynced()
	w.sync()
	done := make(chan struct{})
	var readers sync.WaitGroup
	for _, read := range []func() error{
		func() error { w.proxy.Status(); return nil },
		func() error { _, err := w.proxy.Traffic(); return err },
		func() error { _, err := registry.Gather(); return err },
		func() error {
			_, err := w.proxy.Walk(plan.Packet{Src: addr("10.244.0.9"), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: catalog.TCP})
			return err
		},
		func() error {
			w.proxy.Healthz().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/healthz", nil))
			return nil
		},
		func() error {
			return w.proxy.SetServiceCIDRs(context.Background(), []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
		},
	} {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := read(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for i := range 20 {
		w.cat.ApplySlice(slice("web", []string{"10.244.0.2", "10.244.0.3"}[i%2]))
		w.sync()
	}
	close(done)
	readers.Wait()
	w.expect(w.client, "tcp", "10.96.0.1:80", "b 10.244.0.9")
}
