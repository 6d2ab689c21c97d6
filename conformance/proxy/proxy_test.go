package proxy

import (
	"slices"
	"strings"
	"testing"
)

// TestProxy runs the table.
func TestProxy(t *testing.T) {
	r := newRunner(t)
	all := slices.Concat(static, changes, odd)
	var chosen []scenario
	for i, s := range all {
		r.cluster.services[s.name] = &service{namespace: "default", name: s.name, index: i + 1, options: s.service, endpoints: s.endpoints}
		if s.like != "" {
			r.cluster.services[s.name].like = r.cluster.services[s.like].index
		}
		if matches(*onlyRows, s.name) {
			chosen = append(chosen, s)
		}
	}
	long := strings.Repeat("long", 16)[:63]
	r.cluster.services["long"] = &service{namespace: long, name: long, index: 249, options: "long"}
	if len(chosen) > 0 {
		r.start("main", nil, "n1", "n2")
	}
	t.Cleanup(r.stop)
	if len(chosen) > 0 {
		r.run(chosen)
		r.compareMetrics()
	}
	r.stop()
	for _, v := range variants {
		if matches(*onlyRows, v.name) {
			r.runVariant(v)
		}
	}
	r.report()
}
