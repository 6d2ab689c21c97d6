package external

import (
	"net/netip"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// published is a cluster with a service of each kind.
func published() *kubernetes.Store {
	cat := catalog.New(catalog.Services | catalog.EndpointSlices | catalog.Namespaces)
	cat.ReplaceNamespaces([]*catalog.Namespace{{Name: "shop"}, {Name: "empty"}})
	in := func(name string) catalog.ServiceName { return catalog.ServiceName{Namespace: "shop", Name: name} }
	http := []catalog.ServicePort{{Name: "http", Port: 80, Protocol: catalog.TCP}, {Name: "dns", Port: 53, Protocol: catalog.UDP}}
	cat.ReplaceServices([]*catalog.Service{
		{Name: in("inside"), ClusterIPs: addrs("10.96.0.5"), Ports: http},
		{Name: in("ips"), ClusterIPs: addrs("10.96.0.6"), Ports: http, ExternalIPs: addrs("192.0.2.1", "2001:db8::1")},
		{Name: in("lb"), ClusterIPs: addrs("10.96.0.7"), Type: catalog.LoadBalancer, Ports: http[:1], LoadBalancer: []catalog.Ingress{{Addr: netip.MustParseAddr("192.0.2.2")}, {Addr: netip.MustParseAddr("192.0.2.1")}}},
		{Name: in("named"), ClusterIPs: addrs("10.96.0.8"), Type: catalog.LoadBalancer, Ports: http[:1], LoadBalancer: []catalog.Ingress{{Hostname: "lb.elsewhere.test"}}},
		{Name: in("db"), Headless: true, Ports: http[:1]},
	})
	ready := catalog.Ready | catalog.Serving
	cat.ReplaceSlices([]*catalog.EndpointSlice{{Namespace: "shop", Name: "db-1", Service: "db",
		Ports: []catalog.EndpointPort{{Name: "http", Port: 8080, Protocol: catalog.TCP}},
		Endpoints: []catalog.Endpoint{
			{Addr: netip.MustParseAddr("10.244.0.1"), Hostname: "db-0", Conditions: ready},
			{Addr: netip.MustParseAddr("10.244.0.2"), Conditions: ready},
			{Addr: netip.MustParseAddr("10.244.0.3"), Hostname: "db-2"},
		}}})
	store := kubernetes.NewStore(nil)
	store.Now = func() time.Time { return time.Unix(1700000000, 0) }
	sub := cat.Subscribe()
	defer sub.Close()
	store.Publish(cat, sub.Take())
	return store
}

func order() []plugin.Entry {
	return []plugin.Entry{
		{Name: name, Setup: Setup, Effect: plugin.Local},
		{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local},
		plugintest.Records(plugin.Answers),
	}
}

func TestScripts(t *testing.T) { plugintest.Scripts(t, order()...) }

func TestNeedsKubernetes(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, "example.org {\nk8s_external\n}\n", order())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err == nil {
		t.Error("it starts without the kubernetes plugin")
	}
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "k8s_external {\n" + property + "\n}" }
	plugintest.Refuses(t, order(), [][2]string{
		{"k8s_external a..b", "empty label"},
		{block("apex"), "wrong arguments"},
		{block("ttl"), "wrong arguments"},
		{block("ttl 3601"), "from 0 to 3600"},
		{block("headless x"), "no argument"},
		{block("fallthrough a..b"), "empty label"},
		{block("headles"), `did you mean "headless"?`},
	})
	plugintest.Accepts(t, order(), "k8s_external", "k8s_external a.test 192.0.2.0/24 {\napex x\nttl 0\nheadless\nfallthrough\n}")
}
