package proxy_test

import (
	"net/netip"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Whose address an endpoint sees when a cluster IP is used, in each mode of
// telling local pods from others.
func TestMasquerade(t *testing.T) {
	const own, node = "own", "node"
	tests := map[string]struct {
		change                 func(*proxy.Config)
		client, other, outside string // the source that b sees
	}{
		"ClusterCIDR":     {nil, own, own, node},
		"no detector":     {func(c *proxy.Config) { c.Detect = plan.Detector{} }, own, own, own},
		"masqueradeAll":   {func(c *proxy.Config) { c.MasqueradeAll = true }, node, node, node},
		"NodeCIDR":        {func(c *proxy.Config) { c.Detect, c.NodeCIDR = plan.Detector{}, true }, own, node, node},
		"BridgeInterface": {func(c *proxy.Config) { c.Detect = plan.Detector{Mode: plan.DetectInterface, Interface: "client"} }, own, node, node},
		"InterfaceNamePrefix": {func(c *proxy.Config) {
			c.Detect = plan.Detector{Mode: plan.DetectInterfacePrefix, Interface: "cli"}
		}, own, node, node},
		"another mark": {func(c *proxy.Config) { bit := uint(31); c.MasqueradeBit = &bit }, own, own, node},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, tt.change)
			w.cat.ApplyService(service("web", "10.96.0.1"))
			w.cat.ApplySlice(slice("web", "10.244.0.3"))
			w.markSynced()
			w.sync()
			// The pods' range comes with the Node object, and may come late.
			n := *w.cat.Node("node")
			n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.8/29")}
			w.cat.ApplyNode(&n)
			w.sync()
			w.nft()
			for _, network := range []string{"tcp", "udp"} {
				for _, from := range []struct {
					who  string
					said string
					own  string
					want string
				}{
					{"client", w.client.Ask(network, "10.96.0.1:80", ""), "10.244.0.9", tt.client},
					{"a", w.a.Ask(network, "10.96.0.1:80", ""), "10.244.0.2", tt.other},
					{"outside", w.outside.Ask(network, "10.96.0.1:80", ""), outsideIP, tt.outside},
				} {
					want := "b " + nodeIP
					if from.want == own {
						want = "b " + from.own
					}
					if from.said != want {
						t.Errorf("%s over %s: %q, want %q", from.who, network, from.said, want)
					}
				}
				// Itself, always as somebody else.
				if got := w.b.Ask(network, "10.96.0.1:80", ""); got != "b "+nodeIP {
					t.Errorf("hairpin over %s: %q", network, got)
				}
			}
		})
	}
}

// Hints follow the node's zone, also when it changes.
func TestZone(t *testing.T) {
	w := newWorld(t, nil)
	w.cat.ApplyService(service("web", "10.96.0.1"))
	s := slice("web", "10.244.0.2", "10.244.0.3")
	for i, zone := range []string{"east", "west"} {
		s.Endpoints[i].Hints = &catalog.Hints{Zones: []string{zone}}
	}
	w.cat.ApplySlice(s)
	w.markSynced()
	w.sync()
	w.expect(w.client, "tcp", "10.96.0.1:80", "a 10.244.0.9", "b 10.244.0.9")
	for zone, want := range map[string]string{"east": "a 10.244.0.9", "west": "b 10.244.0.9"} {
		n := *w.cat.Node("node")
		n.Zone = zone
		w.cat.ApplyNode(&n)
		w.sync()
		w.expect(w.client, "tcp", "10.96.0.1:80", want)
	}
}
