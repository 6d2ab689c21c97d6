package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/kubeapi"
)

// TestNodeAddressesFollowTheHost: what the host's addresses are is told with
// the next renewal of the lease, and not told again.
func TestNodeAddressesFollowTheHost(t *testing.T) {
	var told [][]corev1.NodeAddress
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var body corev1.Node
		switch {
		case strings.Contains(r.URL.Path, "/leases"):
			_, _ = w.Write([]byte(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"n"},"spec":{}}`))
			return
		case r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/status"):
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			told = append(told, body.Status.Addresses)
		}
		_, _ = w.Write([]byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","annotations":{"` + catalog.RegisteredByAgent + `":"rutter"}}}`))
	}))
	defer server.Close()
	cfg := &rest.Config{Host: server.URL}
	api, err := kubeapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := kubeapi.NewLeases(cfg, corev1.NamespaceNodeLease)
	if err != nil {
		t.Fatal(err)
	}
	var now []netip.Addr
	reg := &registration{name: "n", cfg: cfg, log: slog.New(slog.DiscardHandler), addrs: func() ([]netip.Addr, error) { return now, nil }}
	var sent sentStatus
	for _, tc := range []struct {
		has, told string // told: the addresses of the last status that was sent
		times     int
	}{
		{"192.0.2.1", "192.0.2.1", 1},
		{"192.0.2.1", "192.0.2.1", 1},
		{"192.0.2.7,2001:db8::7", "192.0.2.7,2001:db8::7", 2},
		{"", "192.0.2.7,2001:db8::7", 2}, // the interface is down for a moment
		{"192.0.2.7", "192.0.2.7", 3},
	} {
		now = nil
		for _, a := range strings.Split(tc.has, ",") {
			if a != "" {
				now = append(now, netip.MustParseAddr(a))
			}
		}
		if err := reg.sync(context.Background(), api, leases, &sent); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range told[len(told)-1] {
			if a.Type == corev1.NodeInternalIP {
				got = append(got, a.Address)
			}
		}
		if !slices.Equal(got, strings.Split(tc.told, ",")) || len(told) != tc.times {
			t.Errorf("with %q: told %d times, last %v; want %d times, %s", tc.has, len(told), got, tc.times, tc.told)
		}
	}
}
