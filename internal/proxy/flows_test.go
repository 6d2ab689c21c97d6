package proxy_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// A client that goes on sending from one socket, as statsd and DNS clients do,
// follows each change of its service.
func TestUDPFlows(t *testing.T) {
	w := newWorld(t, nil)
	w.markSynced()
	w.sync()
	for _, f := range []struct{ ip, external, a, b string }{
		{"10.96.0.1", "203.0.113.1", "10.244.0.2", "10.244.0.3"},
		{"fd00:96::1", "2001:db8:e::1", "fd00:244::2", "fd00:244::3"},
	} {
		dial := func(ip, port string) net.Conn {
			c, err := w.client.Dial("udp", net.JoinHostPort(ip, port), "")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		node := nodeIP
		if addr(f.ip).Is6() {
			node = nodeIP6
		}
		conns := map[string]net.Conn{"cluster IP": dial(f.ip, "80"), "external IP": dial(f.external, "80"), "node port": dial(node, "30001")}
		unrelated := dial(f.b, "8080")
		if got := testnet.Answer(unrelated); got[:1] != "b" {
			t.Fatal(got)
		}
		svc := loadBalancer("web", f.ip, f.external, f.external, 30001)
		svc.LoadBalancer = nil
		// change applies what set does and expects each client to be told the
		// same: a server's name, or nothing.
		change := func(what string, set func(), want string) {
			t.Helper()
			set()
			w.sync()
			for front, c := range conns {
				got := testnet.Answer(c)
				if got == testnet.Refused { // the error of an earlier datagram may come first
					got = testnet.Answer(c)
				}
				if name, _, _ := strings.Cut(got, " "); name != want {
					t.Errorf("%s, %s: got %q, want %q", what, front, got, want)
				}
			}
			if got := testnet.Answer(unrelated); got[:1] != "b" {
				t.Errorf("%s: a flow that is none of the service's got %q", what, got)
			}
		}
		for _, c := range conns { // there is no service: the flow is tracked as it is
			_, _ = c.Write([]byte("?"))
		}
		change("first endpoint of a new service", func() {
			w.cat.ApplyService(svc)
			w.cat.ApplySlice(slice("web", f.a))
		}, "a")
		change("endpoint replaced", func() { w.cat.ApplySlice(slice("web", f.b)) }, "b")
		change("endpoint added", func() { w.cat.ApplySlice(slice("web", f.a, f.b)) }, "b")
		change("endpoint draining", func() {
			s := slice("web", f.a, f.b)
			s.Endpoints[1].Conditions = catalog.Serving | catalog.Terminating
			w.cat.ApplySlice(s)
		}, "b")
		change("node in another zone", func() {
			n := *w.cat.Node("node")
			n.Zone += "z"
			w.cat.ApplyNode(&n)
		}, "b")
		change("endpoint gone", func() { w.cat.ApplySlice(slice("web", f.a)) }, "a")
		change("last endpoint gone", func() { w.cat.RemoveSlice("default", slice("web", f.a).Name) }, testnet.Refused)
		change("first endpoint back", func() { w.cat.ApplySlice(slice("web", f.b)) }, "b")
		w.cat.RemoveService(name("web"))
		w.sync()
		w.cat.RemoveSlice("default", slice("web", f.a).Name)
		for front, c := range conns {
			if got := testnet.AnswerWithin(c, 300*time.Millisecond); got[:1] == "b" {
				t.Errorf("service deleted, %s: the flow still reaches %q", front, got)
			}
		}
	}
}

// Connections over TCP live on, whatever becomes of their endpoint.
func TestTCPFlowsStay(t *testing.T) {
	w := newWorld(t, nil)
	w.cat.ApplyService(service("web", "10.96.0.1"))
	w.cat.ApplySlice(slice("web", "10.244.0.2"))
	w.markSynced()
	w.sync()
	c, err := w.client.Dial("tcp", "10.96.0.1:80", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := testnet.Answer(c); got != "a 10.244.0.9" {
		t.Fatal(got)
	}
	echo := func(what string) {
		t.Helper()
		if _, err := c.Write([]byte("still here")); err != nil {
			t.Fatal(what, err)
		}
		if got := testnet.Answer(c); got != "still here" {
			t.Errorf("%s: %q", what, got)
		}
	}
	echo("connected")
	w.cat.ApplySlice(slice("web", "10.244.0.3"))
	w.sync()
	echo("endpoint gone")
	w.cat.RemoveService(name("web"))
	w.sync()
	echo("service deleted")
}
