package iptables

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// TestDocs: the rules that docs/dataplanes.md walks through are those of the
// service that it tells of.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../../docs/dataplanes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## iptables\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rules := plan.Rules{LocalhostNodePorts: true, Detect: plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{prefix("10.244.0.0/16")}}}
	n := newNode(t, xtables.NFT, dataplane.Config{Rules: rules})
	n.adopt([]plan.Service{{Name: catalog.ServiceName{Namespace: "default", Name: "web"}, Ports: []plan.Port{{
		Name: "http", Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.20:80"), NodePort: 30080,
		Cluster: addrPorts("10.244.0.5:8080", "10.244.1.7:8080"), Usable: true,
	}}}})
	listed := n.save()
	found := 0
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "-A ") {
			found++
			if !strings.Contains(listed, "\n"+line) {
				t.Errorf("iptables-save does not list:\n%s", line)
			}
		}
	}
	if found < 15 {
		t.Errorf("the walk has %d rules", found)
	}
}
