package proxy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rutter-project/rutter/internal/proxy"
)

// Each connection through a service is counted once, with its endpoint.
func TestTraffic(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.CountBytes = true })
	s := service("web", "10.96.0.1", "fd00:96::1")
	s.Ports[0].NodePort = 30001
	w.cat.ApplyService(s)
	w.cat.ApplySlice(slice("web", "10.244.0.2"))
	w.cat.ApplySlice(slice("web", "fd00:244::2"))
	w.markSynced()
	w.sync()
	w.nft()
	for range 3 {
		w.client.Ask("tcp", "10.96.0.1:80", "")
		w.client.Ask("udp", "10.96.0.1:80", "")
		w.node.Ask("tcp", nodeIP+":30001", "")
		w.client.Ask("tcp", "[fd00:96::1]:80", "")
		w.client.Ask("tcp", "10.244.0.2:8080", "") // not by a service
	}
	list, err := w.proxy.Traffic()
	if err != nil || len(list) != 1 || list[0].Service != name("web") || list[0].Connections != 12 {
		t.Fatal(list, err)
	}
	got := make(map[string]uint64)
	for _, e := range list[0].Endpoints {
		got[e.Protocol.String()+" "+e.Endpoint.String()] = e.Connections
		if e.Packets < e.Connections || e.Bytes < e.Connections*20 {
			t.Errorf("%+v: fewer bytes than can be", e)
		}
	}
	want := map[string]uint64{"TCP 10.244.0.2:8080": 6, "UDP 10.244.0.2:8080": 3, "TCP [fd00:244::2]:8080": 3}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
