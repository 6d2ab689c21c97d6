package kubernetes_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
	"github.com/rutter-project/rutter/internal/dns/wire"
)

func handler(t testing.TB, store *kubernetes.Store) *kubernetes.Kubernetes {
	s := plugintest.Start(t, "cluster.local in-addr.arpa ip6.arpa {\n kubernetes {\n pods insecure\n}\n}",
		plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(store.ForAll), Effect: plugin.Local})
	return s.Block.Handler("kubernetes").(*kubernetes.Kubernetes)
}

func packed(t testing.TB, name, qtype string) []byte {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.StringToType[qtype])
	m.SetEdns0(4096, false)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// directQueries are answered on the direct path, in all shapes it has.
var directQueries = []struct{ name, qtype string }{
	{"web.test.svc.cluster.local.", "A"},
	{"hl.test.svc.cluster.local.", "A"},
	{"sts.test.svc.cluster.local.", "AAAA"},
	{"sts-1.sts.test.svc.cluster.local.", "A"},
	{"10-245-1-1.web.test.svc.cluster.local.", "A"},
	{"web.test.svc.cluster.local.", "SRV"},
	{"sts.test.svc.cluster.local.", "SRV"},
	{"hl.test.svc.cluster.local.", "SRV"},
	{"1.1.97.10.in-addr.arpa.", "PTR"},
	{"1.1.245.10.in-addr.arpa.", "PTR"},
	{"10-1-2-3.test.pod.cluster.local.", "A"},
	{"web.test.svc.cluster.local.test.svc.cluster.local.", "A"},
	{"v4only.test.svc.cluster.local.", "AAAA"},
	{"cluster.local.", "SOA"},
	{"dns-version.cluster.local.", "TXT"},
}

func TestDirectDoesNotAllocate(t *testing.T) {
	k := handler(t, published())
	q, a, buf := new(wire.Query), wire.NewAnswer(1), make([]byte, 4096)
	for _, query := range directQueries {
		raw := packed(t, query.name, query.qtype)
		outcome := plugin.Chain
		if n := testing.AllocsPerRun(50, func() {
			q.Parse(raw)
			a.Begin(q, buf)
			a.Shuffle = true
			outcome = k.ServeDirect(q, a)
			a.Finish()
		}); n != 0 {
			t.Errorf("%s %s: %v allocations", query.name, query.qtype, n)
		}
		if outcome != plugin.Answered {
			t.Errorf("%s %s: outcome %d", query.name, query.qtype, outcome)
		}
	}
}

func BenchmarkDirect(b *testing.B) {
	k := handler(b, published())
	q, a, buf := new(wire.Query), wire.NewAnswer(1), make([]byte, 4096)
	for _, query := range directQueries {
		raw := packed(b, query.name, query.qtype)
		b.Run(query.name+query.qtype, func(b *testing.B) {
			for b.Loop() {
				q.Parse(raw)
				a.Begin(q, buf)
				a.Shuffle = true
				k.ServeDirect(q, a)
				a.Finish()
			}
		})
	}
}

// BenchmarkPublish is one endpoint of one service changed, whatever else there
// is.
func BenchmarkPublish(b *testing.B) {
	for _, services := range []int{100, 10_000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			cat := catalog.New(catalog.Services | catalog.EndpointSlices | catalog.Namespaces)
			cat.ReplaceNamespaces([]*catalog.Namespace{{Name: "ns"}})
			for i := range services {
				cat.ApplyService(&catalog.Service{Name: catalog.ServiceName{Namespace: "ns", Name: fmt.Sprint("s", i)}, Headless: true})
				cat.ApplySlice(endpointsOf(i, 0))
			}
			sub := cat.Subscribe()
			defer sub.Close()
			store := kubernetes.NewStore(nil)
			handler(b, store)
			store.Publish(cat, sub.Take())
			n := 0
			for b.Loop() {
				n++
				cat.ApplySlice(endpointsOf(7, n%2+1))
				ch := sub.Take()
				store.Withdraw(cat, ch)
				store.Publish(cat, ch)
			}
		})
	}
}

func endpointsOf(service, last int) *catalog.EndpointSlice {
	s := &catalog.EndpointSlice{Namespace: "ns", Name: fmt.Sprint("s", service, "-x"), Service: fmt.Sprint("s", service)}
	for i := range 10 {
		n := service*16 + i
		if i == 9 {
			n += last
		}
		s.Endpoints = append(s.Endpoints, catalog.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Conditions: catalog.Ready})
	}
	return s
}
