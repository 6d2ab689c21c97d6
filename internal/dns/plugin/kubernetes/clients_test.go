package kubernetes_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func verified(t *testing.T) *kubernetes.Kubernetes {
	s := plugintest.Start(t, "cluster.local {\n kubernetes {\n pods verified\n}\n}",
		plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local})
	return s.Block.Handler("kubernetes").(*kubernetes.Kubernetes)
}

func requestFrom(client, name string) *plugin.Request {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	return &plugin.Request{Req: m, W: &plugintest.Writer{Client: plugintest.Client{Remote: netip.MustParseAddrPort(client)}}}
}

func TestAutoPath(t *testing.T) {
	k := verified(t)
	for _, test := range []struct {
		client, name string
		want         []string // the first three
	}{
		{"10.245.8.1:5000", "example.org.test.svc.cluster.local.", []string{"test.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}},
		{"10.245.8.1:5000", "example.org.", nil},
		{"10.245.8.9:5000", "x.cluster.local.", nil},
	} {
		got := k.AutoPath(requestFrom(test.client, test.name))
		if test.want == nil && got != nil || test.want != nil && (len(got) < 4 || !slices.Equal(got[:3], test.want) || got[len(got)-1] != "") {
			t.Errorf("%s %s: %q", test.client, test.name, got)
		}
	}
}

func TestMetadata(t *testing.T) {
	k := verified(t)
	for _, test := range []struct{ client, name, want string }{
		{"10.245.8.1:5000", "_http._tcp.web.test.svc.cluster.local.", "client-namespace=test client-pod-name=p1 endpoint= kind=svc namespace=test port-name=http protocol=tcp service=web"},
		{"192.0.2.1:5000", "db-0.db.test.svc.cluster.local.", "endpoint=db-0 kind=svc namespace=test port-name= protocol= service=db"},
		{"192.0.2.1:5000", "cluster.local.", "endpoint= kind= namespace= port-name= protocol= service="},
		{"192.0.2.1:5000", "x.cluster.local.", "parse-error=invalid query name"},
		{"10.245.8.1:5000", "example.org.", "client-namespace=test client-pod-name=p1"},
	} {
		ctx := metadata.New(context.Background())
		k.Metadata(ctx, requestFrom(test.client, test.name))
		var got []string
		for label, value := range metadata.All(ctx) {
			got = append(got, fmt.Sprintf("%s=%s", strings.TrimPrefix(label, "kubernetes/"), value))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %s", test.name, strings.Join(got, " "))
		}
	}
}
