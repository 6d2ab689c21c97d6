package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// refusable is a service with something that the kernel will not take: ranges
// of one front end that overlap, which no planner would make.
func refusable(s plan.Service) plan.Service {
	p := s.Ports[0]
	p.External = []plan.External{{Addr: netip.MustParseAddr("198.51.100.1"), LoadBalancer: true,
		Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}}}
	s.Ports = []plan.Port{p}
	return s
}

// One that the kernel refuses is named; all others are in place.
func TestRefusal(t *testing.T) {
	d := openWalk(t, testnet.New(t, "refusal"))
	services := fleet(40, 3)
	bad := services[23].Name
	services[23] = refusable(services[23])
	ctx := context.Background()
	for what, program := range map[string]func() ([]dataplane.Refusal, error){
		"at the start": func() ([]dataplane.Refusal, error) { return d.Adopt(ctx, services) },
		"as a change":  func() ([]dataplane.Refusal, error) { return d.Apply(ctx, services) },
	} {
		if _, err := d.Adopt(ctx, nil); err != nil {
			t.Fatal(err)
		}
		refused, err := program()
		if err != nil || len(refused) != 1 || refused[0].Service != bad {
			t.Fatalf("%s: refused %v, error %v", what, refused, err)
		}
		if n := len(kernelState(t, d)[0][setServices]); n != 39 {
			t.Errorf("%s: %d of 39 services are in the kernel", what, n)
		}
	}
	// Mended, it goes in.
	services[23].Ports[0].External[0].Sources = services[23].Ports[0].External[0].Sources[:1]
	if refused, err := d.Apply(ctx, services[23:24]); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	if n := len(kernelState(t, d)[0][setServices]); n != 41 { // its external front end too
		t.Errorf("%d front ends", n)
	}
}

// A service that does not fit into a transaction goes in, changes and goes out
// in several; what others read between is never half of an endpoint list.
func TestBigService(t *testing.T) {
	d := openWalk(t, testnet.New(t, "big"))
	d.tables[0].conn.MaxBatch = 64 << 10 // as in a user namespace, or less
	big := plan.Service{Name: catalog.ServiceName{Namespace: "default", Name: "big"}}
	var list []netip.AddrPort
	for i := range 3000 {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080))
	}
	for i := range 3 {
		big.Ports = append(big.Ports, plan.Port{Name: fmt.Sprint(i), Protocol: catalog.TCP, Affinity: time.Hour * time.Duration(i/2),
			ClusterIP: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(80+i)), Cluster: list, Usable: true})
	}
	ports := big
	for i := range 1000 {
		ports.Ports = append(slices.Clip(ports.Ports), plan.Port{Protocol: catalog.UDP, NodePort: uint16(20000 + i),
			ClusterIP: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(1000+i)), Cluster: list[:5], Usable: true})
	}
	half := big
	half.Ports = slices.Clone(big.Ports)
	for i := range half.Ports {
		half.Ports[i].Cluster = list[1500:]
	}
	gone := plan.Service{Name: big.Name}
	scratch := openWalk(t, testnet.New(t, "scratch"))
	ctx := context.Background()
	if _, err := d.Adopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for i, s := range []plan.Service{big, half, ports, half, big, gone} {
		if refused, err := d.Apply(ctx, []plan.Service{s}); err != nil || len(refused) > 0 {
			t.Fatal(i, refused, err)
		}
		if refused, err := scratch.Adopt(ctx, []plan.Service{s}); err != nil || len(refused) > 0 {
			t.Fatal(i, refused, err)
		}
		want, got := normal(t, kernelState(t, scratch)), normal(t, kernelState(t, d))
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("step %d: %s is %.200q, want %.200q", i, k, got[k], v)
			}
		}
		if len(want) != len(got) {
			t.Fatalf("step %d: %d elements, want %d", i, len(got), len(want))
		}
	}
}

// A chain that the kernel refuses keeps out who needs it, and nobody else.
func TestRefusedChain(t *testing.T) {
	d := openWalk(t, testnet.New(t, "chain"))
	tab := d.tables[0]
	impossible := spread{front: clusterIPFront, n: 0} // numgen of modulus 0
	tab.spreads[impossible] = -1
	services := fleet(50, 3)
	for i := range services {
		services[i].Ports[0].Cluster = services[i].Ports[0].Cluster[:1+i%3]
	}
	if refused, err := d.Apply(context.Background(), services); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	if n := len(kernelState(t, d)[0][setServices]); n != 50 {
		t.Errorf("%d of 50 services are in the kernel", n)
	}
	missing, err := tab.makeSpreads()
	if err != nil || len(missing) != 1 || missing[impossible] == nil {
		t.Errorf("missing %v, %v", missing, err)
	}
	one := tab.services[services[2].Name]
	if err := one.needs(map[spread]error{{front: clusterIPFront, marking: markOffCluster, n: 3}: missing[impossible]}); err == nil {
		t.Error("a service does not need the chain that it goes to")
	}
}
