package proxy_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
)

func TestHealthz(t *testing.T) {
	cat := catalog.New(0)
	p, err := proxy.New(cat, proxy.Config{Node: "node", IPv4: true})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, map[string]any) {
		w := httptest.NewRecorder()
		p.Healthz().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var body map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatalf("%s: %v: %s", path, err, w.Body)
		}
		return w.Code, body
	}
	expect := func(what, path string, code int, eligible any) {
		t.Helper()
		got, body := get(path)
		if got != code || body["nodeEligible"] != eligible || body["healthy"] != true {
			t.Errorf("%s: %s answered %d %v", what, path, got, body)
		}
		if _, ok := body["status"].(map[string]any)["IPv4"]; !ok {
			t.Errorf("no status of IPv4: %v", body)
		}
	}
	expect("no Node object", "/healthz", 503, false)
	expect("no Node object", "/livez", 200, nil)
	cat.ApplyNode(&catalog.Node{Name: "node"})
	expect("node", "/healthz", 200, true)
	cat.ApplyNode(&catalog.Node{Name: "node", ToBeDeleted: true})
	expect("the autoscaler's taint", "/healthz", 503, false)
	expect("the autoscaler's taint", "/livez", 200, nil)
	cat.ApplyNode(&catalog.Node{Name: "node", Deleting: true})
	expect("deleting", "/healthz", 503, false)
}

// kube-proxy's metrics by its names, and none that Prometheus would call ill.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(c *proxy.Config) { c.Registerer = registry })
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.markSynced()
	w.sync()
	w.cat.ApplySlice(slice("web", "10.244.0.2"))
	w.sync()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, f := range families {
		have[f.GetName()] = true
	}
	for _, name := range []string{
		"kubeproxy_sync_proxy_rules_duration_seconds",
		"kubeproxy_sync_full_proxy_rules_duration_seconds",
		"kubeproxy_sync_partial_proxy_rules_duration_seconds",
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds",
		"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
		"kubeproxy_network_programming_duration_seconds",
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total",
		"kubeproxy_sync_proxy_rules_service_changes_pending",
		"kubeproxy_sync_proxy_rules_service_changes_total",
		"kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
		"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
		"kubeproxy_conntrack_reconciler_sync_duration_seconds",
		"kubeproxy_conntrack_reconciler_deleted_entries_total",
		"rutter_proxy_refused_services",
		"rutter_proxy_repairs_total",
	} {
		if !have[name] {
			t.Errorf("no metric %s", name)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if p.Metric != "kubeproxy_sync_proxy_rules_no_local_endpoints_total" { // a gauge called total: kube-proxy's
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestConfig(t *testing.T) {
	bit := uint(32)
	for what, tt := range map[string]struct {
		cfg  proxy.Config
		fine bool
	}{
		"no node":         {proxy.Config{}, false},
		"mark":            {proxy.Config{Node: "n", MasqueradeBit: &bit}, false},
		"primary":         {proxy.Config{Node: "n", NodePortAddresses: []string{"primary"}}, true},
		"primary and":     {proxy.Config{Node: "n", NodePortAddresses: []string{"primary", "10.0.0.0/8"}}, false},
		"no CIDR":         {proxy.Config{Node: "n", NodePortAddresses: []string{"10.0.0.0"}}, false},
		"CIDRs":           {proxy.Config{Node: "n", NodePortAddresses: []string{"10.0.0.0/8", "fd00::/8"}}, true},
		"addresses":       {proxy.Config{Node: "n", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, true},
		"nothing but one": {proxy.Config{Node: "n"}, true},
	} {
		p, err := proxy.New(catalog.New(0), tt.cfg)
		if (err == nil) != tt.fine {
			t.Errorf("%s: %v", what, err)
		}
		if p != nil && p.Apply(context.Background(), catalog.Changes{}) == nil {
			t.Errorf("%s: Apply before Start succeeded", what)
		}
	}
}
