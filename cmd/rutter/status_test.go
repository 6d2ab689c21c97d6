package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

func TestPrintStatusNamesWhatIsLeftOut(t *testing.T) {
	s := agent.Status{Node: "n", Ready: true}
	for i := range shownPartial + 2 {
		s.Proxy.Partial = append(s.Proxy.Partial, proxy.PartialService{
			Service: catalog.ServiceName{Namespace: "default", Name: fmt.Sprintf("web%d", i)},
			Skipped: []plan.Skip{{What: "203.0.113.1:80", Reason: plan.ReasonConflict}},
		})
	}
	var out strings.Builder
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"default/web0", "without 203.0.113.1:80: claimed by another service", "and 2 more services"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
}

func TestPrintServices(t *testing.T) {
	endpoint := netip.MustParseAddrPort("10.244.0.2:8080")
	var list []proxy.Traffic
	for i := range shownServices + 3 {
		list = append(list, proxy.Traffic{
			Service:     catalog.ServiceName{Namespace: "default", Name: fmt.Sprintf("web%d", i)},
			Connections: uint64(100 - i), Packets: 5, Bytes: 12345678,
			Endpoints: []proxy.EndpointTraffic{{Endpoint: endpoint, Protocol: catalog.TCP, Connections: uint64(100 - i)}},
		})
	}
	for range shownEndpoints + 1 {
		list[0].Endpoints = append(list[0].Endpoints, list[0].Endpoints[0])
	}
	for name, tc := range map[string]struct {
		list []proxy.Traffic
		want []string
	}{
		"none": {nil, []string{"No connection went to a service"}},
		"many": {list, []string{"SERVICE", "BYTES", "default/web0 ", "10.244.0.2:8080 TCP", "12.3 MB", "and 2 more", "and 3 services with fewer"}},
	} {
		var out strings.Builder
		if err := printServices(&out, tc.list); err != nil {
			t.Fatal(err)
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is missing in:\n%s", name, want, out.String())
			}
		}
	}
}
