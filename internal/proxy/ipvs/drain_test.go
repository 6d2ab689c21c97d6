package ipvs

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// An endpoint that is gone keeps its TCP connections; new ones go elsewhere, a
// client's with session affinity too; it is deleted when the last is closed. A
// restart in between changes nothing of that.
func TestDrain(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer func() { d.Close() }()
	ctx := context.Background()
	sticky := func(p *plan.Port) { p.Affinity = 3 * time.Hour }
	must(t)(d.Adopt(ctx, []plan.Service{svc("web", 1, eps("1"), nil), svc("sticky", 2, eps("1"), sticky)}))
	conns := []*heldConn{hold(t, n.client, "tcp", "10.96.0.1:80"), hold(t, n.client, "tcp", "10.96.0.2:80")}
	must(t)(d.Apply(ctx, []plan.Service{svc("web", 1, eps("2"), nil), svc("sticky", 2, eps("2"), sticky)}))
	check := func(when string) {
		t.Helper()
		for i, to := range []string{"10.96.0.1:80", "10.96.0.2:80"} {
			if !conns[i].alive() {
				t.Errorf("%s: the connection to %s is dead", when, to)
			}
			if got := n.asks(n.client, to, 3); got != "p2 10.244.0.3" {
				t.Errorf("%s: new connections to %s: %s", when, to, got)
			}
			if text := servers(t, d); !strings.Contains(text, "server TCP "+to+" rr") || !strings.Contains(text, "10.244.0.1:8080=0 10.244.0.2:8080=1") {
				t.Errorf("%s: p1 does not drain:\n%s", when, text)
			}
		}
	}
	check("p2 in the place of p1")
	if err := d.Sweep(); err != nil {
		t.Fatal(err)
	}
	check("swept")
	// The agent restarts.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openIn(t, n.node, Options{})
	must(t)(d.Adopt(ctx, []plan.Service{svc("web", 1, eps("2"), nil), svc("sticky", 2, eps("2"), sticky)}))
	check("taken over")
	for _, c := range conns {
		c.reset()
	}
	eventually(t, "p1 is deleted", func() bool {
		if err := d.Sweep(); err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(servers(t, d), "10.244.0.1:8080")
	})
}

// An endpoint that comes back while it drains is used again.
func TestReturn(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer d.Close()
	ctx := context.Background()
	must(t)(d.Adopt(ctx, []plan.Service{svc("web", 1, eps("1", "2"), nil)}))
	c := hold(t, n.client, "tcp", "10.96.0.1:80")
	must(t)(d.Apply(ctx, []plan.Service{svc("web", 1, nil, nil)}))
	if got := n.asks(n.client, "10.96.0.1:80", 1); got != testnet.Refused || !c.alive() {
		t.Errorf("without endpoints: %s, and the open connection lives: %v", got, c.alive())
	}
	must(t)(d.Apply(ctx, []plan.Service{svc("web", 1, eps("1", "2"), nil)}))
	if got := n.asks(n.client, "10.96.0.1:80", 4); got != "p1 10.244.0.3 | p2 10.244.0.3" || !c.alive() {
		t.Errorf("with the endpoints back: %s, and the open connection lives: %v", got, c.alive())
	}
}

// UDP flows move at once when their endpoint is gone, and stay while it may
// still answer.
func TestDatagrams(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer d.Close()
	ctx := context.Background()
	must(t)(d.Adopt(ctx, []plan.Service{svc("web", 1, eps("1"), nil)}))
	c, err := n.client.Dial("udp", "10.96.0.1:80", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := testnet.Answer(c); got != "p1 10.244.0.3" {
		t.Fatal(got)
	}
	serving := func(p *plan.Port) {
		if p.Protocol == catalog.UDP {
			p.Serving = eps("1", "2")
		}
	}
	must(t)(d.Apply(ctx, []plan.Service{svc("web", 1, eps("2"), serving)}))
	if got := testnet.Answer(c); got != "p1 10.244.0.3" {
		t.Errorf("p1 drains: %s answers", got)
	}
	if got := n.client.Ask("udp", "10.96.0.1:80", ""); got != "p2 10.244.0.3" {
		t.Errorf("p1 drains: a new flow is answered by %s", got)
	}
	must(t)(d.Apply(ctx, []plan.Service{svc("web", 1, eps("2"), nil)}))
	eventually(t, "the flow moves to p2", func() bool { return testnet.AnswerWithin(c, time.Second) == "p2 10.244.0.3" })
}

// A deleted service's connections go on, new ones are refused; then virtual
// server, address and set elements go. Another service may have them before.
func TestDeletedService(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer func() { d.Close() }()
	ctx := context.Background()
	nodePort := func(p *plan.Port) { p.NodePort = 30080 }
	must(t)(d.Adopt(ctx, []plan.Service{svc("web", 1, eps("1"), nodePort)}))
	empty := dump(t, d)
	a, b := hold(t, n.client, "tcp", "10.96.0.1:80"), hold(t, n.out, "tcp", "192.0.2.1:30080")
	must(t)(d.Apply(ctx, []plan.Service{{Name: catalog.ServiceName{Namespace: "test", Name: "web"}}}))
	check := func(when string) {
		t.Helper()
		if !a.alive() || !b.alive() {
			t.Errorf("%s: an open connection is dead", when)
		}
		if got := n.client.Ask("tcp", "10.96.0.1:80", ""); got != testnet.Refused {
			t.Errorf("%s: a new connection: %s", when, got)
		}
		if got := n.out.Ask("tcp", "192.0.2.1:30080", ""); got != testnet.Refused {
			t.Errorf("%s: a new connection to the node port: %s", when, got)
		}
		if text := servers(t, d); strings.Contains(text, "UDP") {
			t.Errorf("%s: UDP is still there:\n%s", when, text)
		}
	}
	check("deleted")
	d.Close()
	d = openIn(t, n.node, Options{})
	must(t)(d.Adopt(ctx, nil))
	check("deleted and taken over")
	must(t)(d.Apply(ctx, []plan.Service{svc("next", 1, eps("2"), nodePort)}))
	if got := n.client.Ask("tcp", "10.96.0.1:80", ""); got != "p2 10.244.0.3" || !a.alive() {
		t.Errorf("another service has the address: %s, and the open connection lives: %v", got, a.alive())
	}
	if got, want := strings.Count(dump(t, d), "\n"), strings.Count(empty, "\n"); got != want {
		t.Errorf("%d lines of state, want %d", got, want)
	}
	must(t)(d.Apply(ctx, []plan.Service{{Name: catalog.ServiceName{Namespace: "test", Name: "next"}}}))
	a.Close()
	b.Close()
	eventually(t, "everything is gone", func() bool {
		if err := d.Sweep(); err != nil {
			t.Fatal(err)
		}
		return dump(t, d) == "\n"
	})
}

// When another mode has taken over, connections go on until they are closed;
// then nothing is left.
func TestRetire(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	must(t)(d.Adopt(context.Background(), []plan.Service{svc("web", 1, eps("1"), nil)}))
	foreign := front{netip.MustParseAddr("192.0.2.1"), 7777, catalog.TCP}
	addServer(t, d, foreign)
	c := hold(t, n.client, "tcp", "10.96.0.1:80")
	d.Close()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go n.node.Do(func() { done <- Retire(ctx, discard) })
	look := openIn(t, n.node, Options{})
	defer look.Close()
	eventually(t, "the rules are gone, and UDP", func() bool {
		text := servers(t, look)
		return rules(t, look) == "\n" && !strings.Contains(text, "UDP") && strings.Contains(text, "10.244.0.1:8080=0")
	})
	if !c.alive() {
		t.Error("the open connection is dead")
	}
	select {
	case err := <-done:
		t.Fatalf("ended while a connection is open: %v", err)
	default:
	}
	c.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n.node.Do(func() {
		if _, err := netlink.LinkByName(deviceName); err == nil {
			t.Errorf("%s is still there", deviceName)
		}
	})
	list, err := look.kernel.servers()
	if err != nil || len(list) != 1 || list[0].front != foreign {
		t.Errorf("virtual servers that are left: %v, %v; want the foreign one", list, err)
	}
}

// addServer makes a virtual server that is somebody else's.
func addServer(t testing.TB, d *Dataplane, f front) {
	t.Helper()
	var b batch
	d.kernel.service(&b, cmdNewService, f, &settings{scheduler: "wlc"})
	d.kernel.dest(&b, cmdNewDest, f, eps("1")[0], 5)
	if err := d.kernel.one(&b); err != nil {
		t.Fatal(err)
	}
}
