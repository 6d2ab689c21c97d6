package iptables

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

func eachBackend(t *testing.T, f func(t *testing.T, b xtables.Backend)) {
	for _, b := range []xtables.Backend{xtables.NFT, xtables.Legacy} {
		t.Run(string(b), func(t *testing.T) { f(t, b) })
	}
}

// TestAdoptTwice: what iptables-save lists is what was asked for, letter by
// letter, so that a second start finds nothing to do.
func TestAdoptTwice(t *testing.T) {
	eachBackend(t, func(t *testing.T, b xtables.Backend) {
		n := newNode(t, b, dataplane.Config{Rules: testRules})
		services := testServices()
		n.adopt(services)
		if err := n.plane.KeepNodeDNS(3e9); err != nil {
			t.Error(err)
		}
		for _, f := range n.plane.families {
			listed, err := f.list(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			a := f.compare(listed, services, nil)
			if a.frame.Len() > 0 {
				t.Errorf("%s: the frame is written again:\n%s", familyName(f.style.v6), &a.frame)
			}
			var in input
			in.changes(append(a.services, &a.leftover))
			if in.Len() > 0 {
				t.Errorf("%s: services are written again:\n%s\n%s", familyName(f.style.v6), &in, fmt.Sprint(listed["nat"]))
			}
			if ok, err := f.verify(t.Context()); !ok || err != nil {
				t.Errorf("verify: %t, %v", ok, err)
			}
		}
		if t.Failed() {
			t.Log(n.save())
		}
	})
}

// TestAdoptMany: where chains are too many to list their rules, what we wrote
// is trusted while its chains are used as often as they must be; what another
// process wrote is written again.
func TestAdoptMany(t *testing.T) {
	n := newNode(t, xtables.NFT, dataplane.Config{Rules: testRules})
	for _, f := range n.plane.families {
		f.listChains = 0
	}
	services := testServices()
	n.adopt(services)
	for _, f := range n.plane.families {
		f.listChains = listChains
	}
	want := n.save()
	for _, f := range n.plane.families {
		f.listChains = 0
	}
	f := n.plane.families[0]
	verify := func(when string, want bool) {
		t.Helper()
		if ok, err := f.verify(t.Context()); ok != want || err != nil {
			t.Errorf("%s: verify: %t, %v", when, ok, err)
		}
	}
	verify("at first", true)
	n.run("iptables", "-t", "nat", "-D", clusterPrefix+hash("default/web:httptcp"), "2")
	verify("a rule is missing", false)
	n.adopt(services)
	verify("after the repair", true)
	for _, f := range n.plane.families {
		f.services = make(map[catalog.ServiceName]*held)
	}
	n.adopt(services)
	verify("after a start", true)
	for _, f := range n.plane.families {
		f.listChains = listChains
	}
	if got := n.save(); got != want {
		t.Errorf("in the end:\n%s", diff(want, got))
	}
}

// TestChanges: whatever the changes were, in the end the tables are as a fresh
// start would make them.
func TestChanges(t *testing.T) {
	eachBackend(t, func(t *testing.T, b xtables.Backend) {
		n := newNode(t, b, dataplane.Config{Rules: testRules})
		n.adopt(nil)
		empty := n.save()
		random := rand.New(rand.NewPCG(1, uint64(len(b))))
		now := make(map[catalog.ServiceName]plan.Service)
		for step := range 15 {
			var changed []plan.Service
			for range 1 + random.IntN(4) {
				s := randomService(random)
				if slices.ContainsFunc(changed, func(o plan.Service) bool { return o.Name == s.Name }) {
					continue
				}
				changed = append(changed, s)
				now[s.Name] = s
			}
			n.apply(changed...)
			if step%5 < 4 {
				continue
			}
			got := n.save()
			fresh := newNode(t, b, dataplane.Config{Rules: testRules})
			fresh.adopt(slices.Collect(maps.Values(now)))
			if want := fresh.save(); got != want {
				t.Fatalf("step %d: not as from scratch:\n%s", step, diff(want, got))
			}
			// A start that finds something else corrects it.
			fresh.adopt(testServices())
			fresh.adopt(slices.Collect(maps.Values(now)))
			if again := fresh.save(); got != again {
				t.Fatalf("step %d: taken over from others: not as from scratch:\n%s", step, diff(got, again))
			}
		}
		n.adopt(nil)
		if got := n.save(); got != empty {
			t.Errorf("without services: \n%s", diff(empty, got))
		}
		n.Do(func() {
			if err := Cleanup(); err != nil {
				t.Error(err)
			}
		})
		for line := range strings.Lines(n.save()) {
			if strings.Contains(line, "KUBE-") || strings.Contains(line, "RUTTER") {
				t.Errorf("after the cleanup: %s", line)
			}
		}
	})
}

// randomService is one of a few services, with anything that one can have. Its
// front ends are its own.
func randomService(r *rand.Rand) plan.Service {
	id := r.IntN(6)
	s := plan.Service{Name: catalog.ServiceName{Namespace: "ns", Name: fmt.Sprintf("s%d", id)}}
	if r.IntN(5) == 0 {
		return s // gone
	}
	for i := range 1 + r.IntN(2) {
		for _, v6 := range []bool{false, true} {
			p := plan.Port{Name: fmt.Sprintf("p%d", i), Protocol: []catalog.Protocol{catalog.TCP, catalog.UDP}[r.IntN(2)]}
			ip, pod, vip := "10.96.1.", "10.244.0.", "192.0.2."
			if v6 {
				ip, pod, vip = "fd00:10:96::", "fd00:10:244::", "2001:db8::"
			}
			p.ClusterIP = netip.AddrPortFrom(addr(fmt.Sprintf("%s%d", ip, id+1)), uint16(80+i))
			if r.IntN(2) == 0 {
				p.NodePort = uint16(30000 + 10*id + i)
			}
			if r.IntN(3) == 0 {
				p.Affinity = 3 * time.Hour
			}
			if r.IntN(2) == 0 {
				a := addr(fmt.Sprintf("%s%d", vip, id+1))
				e := plan.External{Addr: a, LoadBalancer: r.IntN(2) == 0}
				if e.LoadBalancer && r.IntN(2) == 0 {
					e.Sources = []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
				}
				p.External = append(p.External, e)
			}
			p.InternalLocal, p.ExternalLocal = r.IntN(3) == 0, r.IntN(3) == 0 && p.ExternallyAccessible()
			var all []netip.AddrPort
			for j := range r.IntN(5) {
				all = append(all, netip.AddrPortFrom(addr(fmt.Sprintf("%s%d", pod, 20*id+j+1)), 8080))
			}
			p.Usable = len(all) > 0
			if !p.InternalLocal || p.ExternallyAccessible() {
				p.Cluster = all
			}
			if p.InternalLocal || p.ExternalLocal {
				p.Local = all[:r.IntN(len(all)+1)]
			}
			s.Ports = append(s.Ports, p)
		}
	}
	return s
}
