package server_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
	"github.com/rutter-project/rutter/internal/dns/server"
)

// start serves the Corefile on a free port with the objects of cat published.
func start(t testing.TB, text string, cat *catalog.Catalog) *server.Server {
	t.Helper()
	blocks, err := corefile.Parse("Corefile", []byte(text), corefile.Options{Port: "0"})
	if err != nil {
		t.Fatal(err)
	}
	store := kubernetes.NewStore(nil)
	sub := cat.Subscribe()
	defer sub.Close()
	store.Publish(cat, sub.Take())
	stores := func(context.Context, kubernetes.Connection) (*kubernetes.Store, error) { return store, nil }
	srv, err := server.New(server.Config{
		Blocks:  blocks,
		Plugins: order.List(stores),
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// cluster is a small catalogue: one service of each kind.
func cluster() *catalog.Catalog {
	cat := catalog.New(catalog.Services | catalog.EndpointSlices | catalog.Namespaces)
	cat.ReplaceNamespaces([]*catalog.Namespace{{Name: "default"}, {Name: "other"}})
	cat.ReplaceServices([]*catalog.Service{{
		Name:       catalog.ServiceName{Namespace: "default", Name: "web"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
		Ports:      []catalog.ServicePort{{Name: "http", Protocol: catalog.TCP, Port: 80}},
	}, {
		Name:     catalog.ServiceName{Namespace: "default", Name: "db"},
		Headless: true,
	}})
	cat.ReplaceSlices([]*catalog.EndpointSlice{{
		Namespace: "default", Name: "db-x", Service: "db",
		Ports: []catalog.EndpointPort{{Name: "sql", Protocol: catalog.TCP, Port: 5432}},
		Endpoints: []catalog.Endpoint{
			{Addr: netip.MustParseAddr("10.244.0.1"), Hostname: "db-0", Conditions: catalog.Ready},
			{Addr: netip.MustParseAddr("10.244.0.2"), Hostname: "db-1", Conditions: catalog.Ready},
		},
	}})
	return cat
}

func TestServes(t *testing.T) {
	srv := start(t, "cluster.local:0 {\n kubernetes\n}", cluster())
	for _, network := range []string{"udp", "tcp"} {
		_, port, _ := net.SplitHostPort(srv.LocalAddr(network).String())
		c := &dns.Client{Net: network}
		for _, ask := range []struct{ name, qtype, want string }{
			{"web.default.svc.cluster.local.", "A", "web.default.svc.cluster.local.\t5\tIN\tA\t10.96.0.1"},
			{"DB-1.db.default.svc.cluster.local.", "A", "DB-1.db.default.svc.cluster.local.\t5\tIN\tA\t10.244.0.2"},
		} {
			m := new(dns.Msg)
			m.SetQuestion(ask.name, dns.StringToType[ask.qtype])
			m.SetEdns0(1232, false)
			got, _, err := c.Exchange(m, "127.0.0.1:"+port)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Answer) != 1 || got.Answer[0].String() != ask.want {
				t.Errorf("%s %s over %s:\n%s\nwant %s", ask.name, ask.qtype, network, got, ask.want)
			}
			t.Log(got)
		}
	}
}

var _ plugin.Handler = (*kubernetes.Kubernetes)(nil)
