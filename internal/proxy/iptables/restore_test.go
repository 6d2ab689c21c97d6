package iptables

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

var update = flag.Bool("update", false, "write the golden files")

// TestRestoreInput shows what iptables-restore is given for changes of a
// service, and that it is no more than the change.
func TestRestoreInput(t *testing.T) {
	st := &style{rules: testRules, mark: 1 << 14, randomFully: true}
	name := catalog.ServiceName{Namespace: "default", Name: "web"}
	port := plan.Port{Name: "http", Protocol: catalog.TCP, ClusterIP: addrPort("10.96.0.20:80"), NodePort: 30080, Usable: true,
		Cluster: addrPorts("10.244.0.5:8080", "10.244.1.7:8080", "10.244.1.8:8080")}
	with := func(edit func(*plan.Port)) plan.Service {
		p := port
		edit(&p)
		return plan.Service{Name: name, Ports: []plan.Port{p}}
	}
	var out strings.Builder
	old := &rules{}
	for _, step := range []struct {
		what string
		plan.Service
	}{
		{"a service is made", with(func(*plan.Port) {})},
		{"the same again", with(func(*plan.Port) {})},
		{"one endpoint in the place of another", with(func(p *plan.Port) { p.Cluster = addrPorts("10.244.0.5:8080", "10.244.1.7:8080", "10.244.2.9:8080") })},
		{"one endpoint goes", with(func(p *plan.Port) { p.Cluster = addrPorts("10.244.0.5:8080", "10.244.1.7:8080") })},
		{"the last ones go", with(func(p *plan.Port) { p.Cluster, p.Usable = nil, false })},
		{"one comes back, on another node, with policies Local", with(func(p *plan.Port) {
			p.Cluster, p.InternalLocal, p.ExternalLocal = addrPorts("10.244.1.7:8080"), true, true
		})},
		{"the service goes", plan.Service{Name: name}},
	} {
		new := st.service(&step.Service, true)
		var c change
		c.differ(old, new)
		var in input
		in.changes([]*change{&c})
		out.WriteString("## " + step.what + "\n" + in.String())
		old = new
	}
	path := filepath.Join("testdata", "restore.golden")
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("not as in %s (-update writes it):\n%s", path, diff(string(want), out.String()))
	}
}

// TestProbability: the text is what the kernel makes of 1/n, in 31 bits.
func TestProbability(t *testing.T) {
	for n, want := range map[int]string{2: "0.50000000000", 3: "0.33333333349", 7: "0.14285714272", 10: "0.10000000009", 5000: "0.00020000013"} {
		if got := probability(n); got != want {
			t.Errorf("1/%d: %s, want %s", n, got, want)
		}
	}
}
