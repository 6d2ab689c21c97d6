package kubernetes

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
)

// client returns the pod that a query comes from; nil when its address is no
// pod's own, or pods are not watched.
func (k *Kubernetes) client(q *plugin.Request) *catalog.Pod {
	if k.pods != podsVerified {
		return nil
	}
	return k.view.podAt(q.Remote().Addr().WithZone(""))
}

// podAt returns the pod whose own address it is: that of a pod on the host's
// network is shared.
func (v *view) podAt(addr netip.Addr) *catalog.Pod {
	h := v.hash.addr(addr)
	for n := v.pods.find(h); n != nil; n = n.next {
		if n.hash == h && n.value.addr == addr && !n.value.pod.HostNetwork {
			return n.value.pod
		}
	}
	return nil
}

// AutoPath returns the search path of the pod that asks, for the autopath
// plugin: its namespace's services, all services, the zone, the host's search
// path, and the name by itself. Clients that are no known pods have none.
func (k *Kubernetes) AutoPath(q *plugin.Request) []string {
	zone := k.zoneNames().Matches(q.Name())
	if zone == "" {
		return nil
	}
	pod := k.client(q)
	if pod == nil {
		return nil
	}
	search := []string{join(pod.Namespace+".svc", zone), join("svc", zone), zone}
	return append(append(search, k.hostSearch...), "")
}

func (k *Kubernetes) zoneNames() plugin.Zones {
	names := make(plugin.Zones, len(k.zones))
	for i, z := range k.zones {
		names[i] = z.text
	}
	return names
}

// hostSearch is the search path in a resolv.conf; none if it cannot be read.
func hostSearch(path string) []string {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var search []string
	for _, s := range conf.Search {
		if zone, ok := plugin.NormalizeZone(s); ok {
			search = append(search, zone)
		}
	}
	return search
}

// Metadata says what the parts of the name are, and which pod asks.
func (k *Kubernetes) Metadata(ctx context.Context, q *plugin.Request) {
	set := func(label, value string) { metadata.Set(ctx, "kubernetes/"+label, func() string { return value }) }
	if pod := k.client(q); pod != nil {
		set("client-namespace", pod.Namespace)
		set("client-pod-name", pod.Name)
		for key, value := range pod.Labels {
			set("client-label/"+key, value)
		}
	}
	zone := k.zoneNames().Matches(q.Name())
	if zone == "" {
		return
	}
	var labels []string
	if left := strings.TrimSuffix(strings.TrimSuffix(q.Name(), zone), "."); left != "" {
		labels = dns.SplitDomainName(left + ".")
	}
	parts := [...]struct{ label, value string }{
		{"endpoint", ""}, {"port-name", ""}, {"protocol", ""}, {"service", ""}, {"namespace", ""}, {"kind", ""},
	}
	at := func(fromRight int) string {
		if i := len(labels) - 1 - fromRight; i >= 0 {
			return labels[i]
		}
		return ""
	}
	parts[5].value, parts[4].value, parts[3].value = at(0), at(1), at(2)
	switch kind := at(0); {
	case kind != "" && kind != "svc" && kind != "pod", len(labels) > 5:
		set("parse-error", "invalid query name")
		return
	case len(labels) == 4:
		parts[0].value = at(3)
	case len(labels) == 5:
		parts[1].value, parts[2].value = strings.TrimPrefix(at(4), "_"), strings.TrimPrefix(at(3), "_")
	}
	for _, p := range parts {
		set(p.label, p.value)
	}
}
