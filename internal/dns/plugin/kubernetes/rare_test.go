package kubernetes

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func serve(t *testing.T, store *Store, options string) (*plugintest.Server, *Kubernetes) {
	s := plugintest.Start(t, "cluster.local {\n kubernetes {\n startup_timeout 1ms\n"+options+"}\n}",
		plugin.Entry{Name: "kubernetes", Setup: Setup(store.ForAll), Effect: plugin.Local})
	return s, s.Block.Handler("kubernetes").(*Kubernetes)
}

// answers asks each question and returns all that was said.
func answers(t *testing.T, s *plugintest.Server, questions ...string) string {
	t.Helper()
	var b strings.Builder
	for _, q := range questions {
		m, err := s.Ask(q)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("? " + q + "\n" + plugintest.Text(m))
	}
	return b.String()
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Until everything is known, no name is said not to exist.
func TestBeforeSync(t *testing.T) {
	store := NewStore(nil)
	s, k := serve(t, store, "fallthrough other.cluster.local\n")
	if k.Ready() {
		t.Error("ready")
	}
	const soa = "authority cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 0 7200 1800 86400 5\n"
	expect(t, answers(t, s, "web.ns.svc.cluster.local. A", "cluster.local. A", "svc.cluster.local. A", "dns-version.cluster.local. TXT", "x.other.cluster.local. A"),
		"? web.ns.svc.cluster.local. A\nSERVFAIL aa\n"+soa+
			"? cluster.local. A\nNOERROR aa\n"+soa+
			"? svc.cluster.local. A\nNOERROR aa\n"+soa+
			"? dns-version.cluster.local. TXT\nNOERROR aa\ndns-version.cluster.local. 28800 IN TXT \"1.1.0\"\n"+
			"? x.other.cluster.local. A\nSERVFAIL\n") // fell through to nothing
	cat := catalog.New(catalog.Services)
	cat.ReplaceServices(nil)
	sub := cat.Subscribe()
	defer sub.Close()
	store.Publish(cat, sub.Take())
	if !k.Ready() {
		t.Error("not ready after sync")
	}
	if got := answers(t, s, "web.ns.svc.cluster.local. A"); !strings.Contains(got, "NXDOMAIN aa") {
		t.Error(got)
	}
}

// NS and ns.dns lead to the services that this host is an endpoint of, or to
// the host.
func TestNameServers(t *testing.T) {
	f := newFixture(t)
	s, k := serve(t, f.store, "")
	k.own = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	expect(t, answers(t, s, "Cluster.local. NS", "ns.dns.cluster.local. A", "NS.dns.cluster.local. AAAA"), `? Cluster.local. NS
NOERROR aa
Cluster.local. 5 IN NS ns.dns.Cluster.local.
additional ns.dns.Cluster.local. 5 IN A 192.0.2.1
additional ns.dns.Cluster.local. 5 IN AAAA 2001:db8::1
? ns.dns.cluster.local. A
NOERROR aa
ns.dns.cluster.local. 5 IN A 192.0.2.1
? NS.dns.cluster.local. AAAA
NOERROR aa
NS.dns.cluster.local. 5 IN AAAA 2001:db8::1
`)
	f.cat.ApplyService(object("kube-dns", "10.96.0.10"))
	f.cat.ApplySlice(endpoints("kube-dns", "192.0.2.1"))
	f.store.Publish(f.cat, f.sub.Take())
	expect(t, answers(t, s, "cluster.local. NS", "ns.dns.cluster.local. A"), `? cluster.local. NS
NOERROR aa
cluster.local. 5 IN NS kube-dns.ns.svc.cluster.local.
additional kube-dns.ns.svc.cluster.local. 5 IN A 10.96.0.10
? ns.dns.cluster.local. A
NOERROR aa
ns.dns.cluster.local. 5 IN A 10.96.0.10
`)
	f.cat.ApplyService(object("kube-dns"))
	f.store.Publish(f.cat, f.sub.Take())
	expect(t, answers(t, s, "cluster.local. NS"), `? cluster.local. NS
NOERROR aa
cluster.local. 5 IN NS 192-0-2-1.kube-dns.ns.svc.cluster.local.
additional 192-0-2-1.kube-dns.ns.svc.cluster.local. 5 IN A 192.0.2.1
`)
}

func TestZonal(t *testing.T) {
	f := newFixture(t)
	s, _ := serve(t, f.store, "zonal\n")
	sl := endpoints("db", "10.244.0.1", "10.244.0.2", "10.244.0.3")
	sl.Endpoints[0].Zone, sl.Endpoints[1].Zone, sl.Endpoints[2].Zone = "eu.a", "eu.b", "eu.b"
	f.cat.ApplyService(object("db"))
	f.cat.ApplySlice(sl)
	f.store.Publish(f.cat, f.sub.Take())
	const soa = "authority cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1000 7200 1800 86400 5\n"
	expect(t, answers(t, s, "eu.a.pin._zone.db.ns.svc.cluster.local. A", "eu.c.pin._zone.db.ns.svc.cluster.local. A",
		"eu.c.prefer._zone.db.ns.svc.cluster.local. A", "eu.a.pin._zone.db.ns.svc.cluster.local. AAAA"),
		"? eu.a.pin._zone.db.ns.svc.cluster.local. A\nNOERROR aa\neu.a.pin._zone.db.ns.svc.cluster.local. 5 IN A 10.244.0.1\n"+
			"? eu.c.pin._zone.db.ns.svc.cluster.local. A\nNOERROR aa\n"+soa+
			"? eu.c.prefer._zone.db.ns.svc.cluster.local. A\nNOERROR aa\neu.c.prefer._zone.db.ns.svc.cluster.local. 5 IN A 10.244.0.1\n"+
			"eu.c.prefer._zone.db.ns.svc.cluster.local. 5 IN A 10.244.0.2\neu.c.prefer._zone.db.ns.svc.cluster.local. 5 IN A 10.244.0.3\n"+
			"? eu.a.pin._zone.db.ns.svc.cluster.local. AAAA\nNOERROR aa\n"+soa)
}

// A target outside is looked up through the server; its records follow.
func TestExternalTargetIsLookedUp(t *testing.T) {
	f := newFixture(t)
	f.cat.ApplyService(&catalog.Service{Name: catalog.ServiceName{Namespace: "ns", Name: "ext"}, Type: catalog.ExternalName, ExternalName: "target.test"})
	f.store.Publish(f.cat, f.sub.Take())
	outside := plugin.Entry{Name: "outside", Effect: plugin.Answers, Setup: outsideSetup}
	s := plugintest.Start(t, ". {\n outside\n kubernetes cluster.local\n}", outside,
		plugin.Entry{Name: "kubernetes", Setup: Setup(f.store.ForAll), Effect: plugin.Local})
	expect(t, answers(t, s, "ext.ns.svc.cluster.local. A"), `? ext.ns.svc.cluster.local. A
NOERROR aa
ext.ns.svc.cluster.local. 5 IN CNAME target.test.
target.test. 77 IN A 192.0.2.7
`)
}

// outsideSetup is a plugin that knows target.test.
func outsideSetup(*plugin.Block, []corefile.Directive) (plugin.New, error) {
	return func(next plugin.Handler) plugin.Handler { return outside{next} }, nil
}

type outside struct{ next plugin.Handler }

func (outside) Name() string { return "outside" }

func (o outside) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.Question[0].Name != "target.test." {
		return plugin.NextOrFailure("outside", o.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Answer = addressRecords("target.test.", dns.TypeA, 77, []netip.Addr{netip.MustParseAddr("192.0.2.7")})
	return dns.RcodeSuccess, w.WriteMsg(m)
}
