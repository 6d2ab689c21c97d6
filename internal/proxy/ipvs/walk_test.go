package ipvs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// randomPlan is some service of number i.
func randomPlan(r *rand.Rand, i int) plan.Service {
	one := func(n int) bool { return r.IntN(n) == 0 }
	s := plan.Service{Name: catalog.ServiceName{Namespace: "walk", Name: fmt.Sprint("s", i)}}
	if one(10) {
		return s
	}
	for k := range 1 + r.IntN(3) {
		proto := []catalog.Protocol{catalog.TCP, catalog.UDP, catalog.SCTP}[r.IntN(3)]
		for _, v6 := range []bool{false, true} {
			if one(3) {
				continue
			}
			addr := func(net, host int) netip.Addr {
				if v6 {
					return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", net, host))
				}
				return netip.AddrFrom4([4]byte{10, byte(net), 0, byte(host)})
			}
			p := plan.Port{Protocol: proto, ClusterIP: netip.AddrPortFrom(addr(96, i+1), uint16(80+k))}
			endpoints := func() (list []netip.AddrPort) {
				for h := range 6 {
					if one(2) {
						list = append(list, netip.AddrPortFrom(addr(244, h+1), 8080))
					}
				}
				return list
			}
			p.Cluster, p.InternalLocal, p.ExternalLocal = endpoints(), one(4), one(3)
			if p.InternalLocal || p.ExternalLocal {
				p.Local = slices.DeleteFunc(slices.Clone(p.Cluster), func(netip.AddrPort) bool { return one(2) })
			}
			p.Usable = len(p.Cluster) > 0
			if proto != catalog.TCP {
				p.Serving = p.Cluster
			}
			if one(3) {
				p.Affinity = time.Duration(1+r.IntN(3)) * time.Hour
			}
			if one(2) {
				p.NodePort = uint16(30000 + 10*i + k)
			}
			for e := range r.IntN(3) {
				x := plan.External{Addr: addr(200, 4*i+e+1), LoadBalancer: one(2)}
				if x.LoadBalancer && one(2) {
					x.Sources = []netip.Prefix{netip.PrefixFrom(addr(77, 16*r.IntN(4)), addr(0, 0).BitLen()-4), netip.PrefixFrom(x.Addr, x.Addr.BitLen())}
				}
				p.External = append(p.External, x)
			}
			if !p.ExternallyAccessible() {
				p.ExternalLocal = false
			}
			for _, ep := range p.Cluster {
				if ep.Addr().As16()[15]%2 == 0 && !slices.Contains(s.LocalAddrs, ep.Addr()) {
					s.LocalAddrs = append(s.LocalAddrs, ep.Addr())
				}
			}
			s.Ports = append(s.Ports, p)
		}
	}
	if one(4) {
		s.HealthCheck = &plan.HealthCheck{NodePort: uint16(31000 + i), Families: [2]bool{true, true}}
	}
	return s
}

// After each of many random changes the kernel holds what a programming from
// scratch would, once what drains without a connection was swept away. Restarts
// change nothing; what somebody else removed comes back.
func TestRandomWalk(t *testing.T) {
	needIPVS(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	space := testnet.New(t, "walk")
	other := testnet.New(t, "scratch")
	for _, s := range []*testnet.Space{space, other} {
		s.AddAddr("lo", "192.0.2.1/32")
		s.AddAddr("lo", "2001:db8::1/128")
		s.AddAddr("lo", "10.200.0.6/32") // an external IP that is the node's own
	}
	d, scratch := openIn(t, space, Options{}), openIn(t, other, Options{})
	defer func() { d.Close(); scratch.Close() }()
	foreign := front{netip.MustParseAddr("192.0.2.1"), 7777, catalog.TCP}
	addServer(t, d, foreign)
	addServer(t, scratch, foreign)
	ctx := context.Background()
	const services = 8
	now := make([]plan.Service, services)
	for i := range now {
		now[i].Name = catalog.ServiceName{Namespace: "walk", Name: fmt.Sprint("s", i)}
	}
	must(t)(d.Adopt(ctx, now))
	must(t)(scratch.Adopt(ctx, nil))
	for step := range 40 {
		var changed []plan.Service
		for range 1 + r.IntN(3) {
			i := r.IntN(services)
			now[i] = randomPlan(r, i)
			changed = append(slices.DeleteFunc(changed, func(s plan.Service) bool { return s.Name == now[i].Name }), now[i])
		}
		must(t)(d.Apply(ctx, changed))
		switch r.IntN(15) {
		case 0:
			before := dump(t, d)
			d.Close()
			d = openIn(t, space, Options{})
			must(t)(d.Adopt(ctx, now))
			if diff := cmp.Diff(before, dump(t, d)); diff != "" {
				t.Fatalf("step %d: a restart changed what the kernel holds:\n%s", step, diff)
			}
		case 1:
			damage(t, r, d)
			must(t)(d.takeOver(ctx, now))
		}
		if err := d.Sweep(); err != nil {
			t.Fatal(err)
		}
		must(t)(scratch.takeOver(ctx, nil))
		must(t)(scratch.takeOver(ctx, now))
		if diff := cmp.Diff(dump(t, scratch), dump(t, d)); diff != "" {
			t.Fatalf("step %d: differs from a programming from scratch (-scratch +walk):\n%s", step, diff)
		}
	}
	if ok, err := d.check(); err != nil || !ok {
		t.Errorf("the kernel does not hold what it should: %v", err)
	}
	if diff := cmp.Diff(rules(t, scratch), rules(t, d)); diff != "" {
		t.Errorf("rules differ from those of a programming from scratch:\n%s", diff)
	}
	must(t)(d.Adopt(ctx, nil))
	if got := dump(t, d); got != servers(t, d) || len(serverLines(t, d)) != 1 {
		t.Errorf("without services there is still:\n%s", got)
	}
	d.Close()
	var err error
	space.Do(func() { err = Cleanup() })
	if err != nil {
		t.Fatal(err)
	}
	d = openIn(t, space, Options{})
	if got := serverLines(t, d); len(got) != 1 {
		t.Errorf("--cleanup left %q, want the foreign virtual server", got)
	}
	if got := rules(t, d); got != "\n" {
		t.Errorf("--cleanup left rules:\n%s", got)
	}
}

// damage takes something away behind our back.
func damage(t *testing.T, r *rand.Rand, d *Dataplane) {
	t.Helper()
	var b, s, a batch
	for f, server := range d.state.servers {
		switch r.IntN(4) {
		case 0:
			d.kernel.service(&b, cmdDelService, f, nil)
		case 1:
			for _, to := range server.dests {
				d.kernel.dest(&b, cmdDelDest, f, to.addr, 0)
			}
		}
	}
	for e, n := range d.state.elements {
		if n.made && r.IntN(3) == 0 {
			d.sets.put(&s, &e, false)
		}
	}
	for addr, n := range d.state.addrs {
		if n.made && r.IntN(3) == 0 {
			d.device.put(&a, addr, false)
		}
	}
	for _, c := range []struct {
		conn *conn
		b    *batch
	}{{d.kernel.conn, &b}, {d.sets.conn, &s}, {d.device.conn, &a}} {
		if err := c.conn.do(c.b, func(int, unix.Errno) {}); err != nil {
			t.Fatal(err)
		}
	}
}

// Virtual servers and addresses of others stay; those in excluded ranges do,
// whoever made them.
func TestForeign(t *testing.T) {
	needIPVS(t)
	space := testnet.New(t, "foreign")
	space.AddAddr("lo", "192.0.2.1/32")
	opts := Options{ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.64/26")}}
	d := openIn(t, space, opts)
	defer func() { d.Close() }()
	ctx := context.Background()
	must(t)(d.Adopt(ctx, []plan.Service{svc("a", 1, eps("1"), nil), svc("b", 65, eps("1"), nil)}))
	for _, f := range []string{"192.0.2.1:7777", "198.51.100.7:80", "10.96.0.66:80"} {
		addServer(t, d, front{netip.MustParseAddrPort(f).Addr(), netip.MustParseAddrPort(f).Port(), catalog.TCP})
	}
	d.Close()
	d = openIn(t, space, opts)
	must(t)(d.Adopt(ctx, nil))
	var left []string
	list, err := d.kernel.servers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		left = append(left, l.front.String())
	}
	slices.Sort(left)
	want := []string{"TCP 10.96.0.65:80", "TCP 10.96.0.66:80", "TCP 192.0.2.1:7777", "TCP 198.51.100.7:80", "UDP 10.96.0.65:80"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("virtual servers that are left (-want +got):\n%s", diff)
	}
}

// Every scheduler that the kernel has works; one that it lacks is named.
func TestSchedulers(t *testing.T) {
	needIPVS(t)
	n := newNet(t)
	d := openIn(t, n.node, Options{})
	defer d.Close()
	must(t)(d.Adopt(context.Background(), nil))
	for _, name := range []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf"} {
		if err := d.kernel.checkScheduler(name); err != nil {
			if slices.Contains([]string{"rr", "wrr", "lc", "wlc", "sh", "sed"}, name) {
				t.Error(err)
			}
			t.Log(err)
			continue
		}
		d.around.scheduler = name
		must(t)(d.Apply(context.Background(), []plan.Service{svc("web", 1, eps("1", "2"), nil)}))
		if got := n.client.Ask("tcp", "10.96.0.1:80", ""); got != "p1 10.244.0.3" && got != "p2 10.244.0.3" {
			t.Errorf("%s: %s", name, got)
		}
		for _, l := range serverLines(t, d) {
			if !strings.HasPrefix(l, "server TCP 10.96.0.1:80 "+name+" ") && !strings.HasPrefix(l, "server UDP 10.96.0.1:80 "+name+" ") {
				t.Errorf("%s: %s", name, l)
			}
		}
	}
	var err error
	n.node.Do(func() {
		_, err = Open(dataplane.Config{Rules: testRules, IPv4: true, Logger: discard}, Options{Scheduler: "best"})
	})
	if want := "ipvs: this kernel has no scheduler best: load module ip_vs_best, or choose another (ipvs.scheduler)"; err == nil || err.Error() != want {
		t.Errorf("scheduler best: %v, want %s", err, want)
	}
}

// The monitor sees what others do: at once for addresses and the device, else
// within the period. New addresses of the host get node ports, and are no
// intrusion.
func TestMonitor(t *testing.T) {
	needIPVS(t)
	space := testnet.New(t, "monitor")
	space.AddAddr("lo", "192.0.2.1/32")
	var d *Dataplane
	space.Do(func() {
		rules := testRules
		rules.NodePortAddrs = nil // all
		var err error
		if d, err = Open(dataplane.Config{Rules: rules, IPv4: true, MasqueradeBit: 14, Logger: discard}, Options{SyncPeriod: 200 * time.Millisecond}); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	defer d.Close()
	ctx := context.Background()
	want := []plan.Service{svc("web", 1, eps("1"), func(p *plan.Port) { p.NodePort = 30080 })}
	must(t)(d.Adopt(ctx, want))
	notices := make(chan dataplane.Intrusion, 100)
	ended := make(chan error, 1)
	var m dataplane.Monitor
	space.Do(func() {
		var err error
		if m, err = d.Monitor(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	go func() { ended <- m.Run(func(i dataplane.Intrusion) { notices <- i }) }()
	space.AddAddr("lo", "198.51.100.1/32")
	eventually(t, "the node port is served on the new address", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.Contains(serverLines(t, d), "server TCP 198.51.100.1:30080 rr flags=0x0 timeout=0: 10.244.0.1:8080=1")
	})
	if len(notices) > 0 {
		t.Error("an address of the host's own is taken for an intrusion")
	}
	state := func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		return dump(t, d) + rules(t, d)
	}
	before := state()
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"an address removed", func() {
			var b batch
			d.device.put(&b, netip.MustParseAddr("10.96.0.1"), false)
			if err := d.device.one(&b); err != nil {
				t.Error(err)
			}
		}},
		{"the device removed", func() {
			if err := d.device.remove(); err != nil {
				t.Error(err)
			}
		}},
		{"a virtual server removed", func() {
			var b batch
			d.kernel.service(&b, cmdDelService, front{netip.MustParseAddr("10.96.0.1"), 80, catalog.TCP}, nil)
			if err := d.kernel.one(&b); err != nil {
				t.Error(err)
			}
		}},
		{"rules flushed", func() {
			if _, err := d.rulesets[0].programs.Run(ctx, "-t", "nat", "-F"); err != nil {
				t.Error(err)
			}
		}},
	} {
		d.mu.Lock()
		c.do()
		d.mu.Unlock()
		select {
		case <-notices:
		case <-time.After(time.Minute):
			t.Fatalf("%s: not noticed", c.what)
		}
		must(t)(d.Adopt(ctx, want))
		if diff := cmp.Diff(before, state()); diff != "" {
			t.Errorf("%s: not repaired:\n%s", c.what, diff)
		}
		for len(notices) > 0 {
			<-notices
		}
	}
	m.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
