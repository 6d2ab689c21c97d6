package kubernetes

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

const wantKinds = catalog.Services | catalog.EndpointSlices | catalog.Namespaces

// fixture is a store that follows a catalogue step by step.
type fixture struct {
	t     *testing.T
	cat   *catalog.Catalog
	sub   *catalog.Subscription
	store *Store
	view  *view
	clock time.Time
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, cat: catalog.New(wantKinds), store: NewStore(nil), clock: time.Unix(1000, 0)}
	f.store.Now = func() time.Time { return f.clock }
	f.view = f.store.view(selection{})
	f.cat.ReplaceNamespaces([]*catalog.Namespace{{Name: "ns"}})
	f.cat.ReplaceServices(nil)
	f.cat.ReplaceSlices(nil)
	f.sub = f.cat.Subscribe()
	t.Cleanup(f.sub.Close)
	f.store.Publish(f.cat, f.sub.Take())
	return f
}

// addresses returns what A answers for svc.ns; nil when the name is not there.
func (f *fixture) addresses(svc string) []string {
	key := appendLabel(appendLabel(nil, svc), "ns")
	s := f.view.service(key, []byte(svc), []byte("ns"))
	if s == nil || s.now.Load().obj == nil {
		return nil
	}
	out := []string{}
	for b := s.now.Load().v4; len(b) > 0; b = b[4:] {
		out = append(out, netip.AddrFrom4([4]byte(b)).String())
	}
	return out
}

func object(name string, ips ...string) *catalog.Service {
	s := &catalog.Service{Name: catalog.ServiceName{Namespace: "ns", Name: name}, Headless: len(ips) == 0}
	for _, ip := range ips {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(ip))
	}
	return s
}

func endpoints(svc string, ips ...string) *catalog.EndpointSlice {
	s := &catalog.EndpointSlice{Namespace: "ns", Name: svc + "-1", Service: svc}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, catalog.Endpoint{Addr: netip.MustParseAddr(ip), Conditions: catalog.Ready})
	}
	return s
}

// A name is answered with an address only between Publish and the Withdraw of
// the change that takes the address away (design §3.4).
func TestPublishOrder(t *testing.T) {
	f := newFixture(t)
	check := func(when string, svc string, want []string) {
		t.Helper()
		if got := f.addresses(svc); !slices.Equal(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %s is %v, want %v", when, svc, got, want)
		}
	}
	step := func() catalog.Changes {
		ch := f.sub.Take()
		f.store.Withdraw(f.cat, ch)
		return ch
	}

	f.cat.ApplyService(object("new", "10.96.0.1"))
	ch := step()
	check("before the dataplane has it", "new", nil)
	f.store.Publish(f.cat, ch)
	check("published", "new", []string{"10.96.0.1"})

	f.cat.ApplyService(object("new", "10.96.0.2"))
	ch = step()
	check("while the address changes", "new", nil)
	f.store.Publish(f.cat, ch)
	check("published again", "new", []string{"10.96.0.2"})

	f.cat.ApplySlice(endpoints("new", "10.244.0.1"))
	ch = step()
	check("while endpoints change", "new", []string{"10.96.0.2"})
	f.store.Publish(f.cat, ch)

	f.cat.ApplyService(object("new"))
	step()
	check("headless at once", "new", []string{"10.244.0.1"})

	f.cat.RemoveService(catalog.ServiceName{Namespace: "ns", Name: "new"})
	step()
	check("gone at once", "new", nil)
}

func TestSerialFollowsRecords(t *testing.T) {
	f := newFixture(t)
	changes := func(what string, want bool, change func()) {
		t.Helper()
		before := f.view.serial.Load()
		f.clock = f.clock.Add(time.Second)
		change()
		f.store.Publish(f.cat, f.sub.Take())
		after := f.view.serial.Load()
		if changed := after != before; changed != want {
			t.Errorf("%s: serial %d -> %d", what, before, after)
		}
		if want && int64(after) != f.clock.Unix() {
			t.Errorf("%s: serial %d is not the time %d", what, after, f.clock.Unix())
		}
	}
	changes("a service", true, func() { f.cat.ApplyService(object("a", "10.96.0.1")) })
	changes("an annotation", false, func() {
		s := object("a", "10.96.0.1")
		s.HealthCheckNodePort = 1
		f.cat.ApplyService(s)
	})
	changes("endpoints", true, func() { f.cat.ApplySlice(endpoints("a", "10.244.0.1")) })
	changes("a condition nobody looks at", false, func() {
		s := endpoints("a", "10.244.0.1")
		s.Endpoints[0].Conditions |= catalog.Serving
		f.cat.ApplySlice(s)
	})
	changes("an endpoint that is not ready", false, func() {
		s := endpoints("a", "10.244.0.1", "10.244.0.2")
		s.Endpoints[1].Conditions = 0
		f.cat.ApplySlice(s)
	})
	changes("a namespace", true, func() { f.cat.RemoveNamespace("ns") })
}

// The indexes after any sequence of changes are those of the final state.
func TestViewEqualsFreshView(t *testing.T) {
	f := newFixture(t)
	rng := rand.New(rand.NewPCG(1, 2))
	ips := make([]string, 40)
	for i := range ips {
		ips[i] = fmt.Sprintf("10.244.0.%d", i)
	}
	for range 2000 {
		name := fmt.Sprintf("s%d", rng.IntN(12))
		switch rng.IntN(6) {
		case 0:
			f.cat.ApplyService(object(name))
		case 1:
			f.cat.ApplyService(object(name, fmt.Sprintf("10.96.0.%d", rng.IntN(20))))
		case 2:
			f.cat.RemoveService(catalog.ServiceName{Namespace: "ns", Name: name})
		case 3, 4:
			rng.Shuffle(len(ips), func(i, j int) { ips[i], ips[j] = ips[j], ips[i] })
			f.cat.ApplySlice(endpoints(name, ips[:rng.IntN(12)]...))
		case 5:
			f.cat.RemoveSlice("ns", name+"-1")
		}
		if rng.IntN(3) == 0 {
			ch := f.sub.Take()
			f.store.Withdraw(f.cat, ch)
			f.store.Publish(f.cat, ch)
		}
	}
	f.store.Publish(f.cat, f.sub.Take())
	fresh := newView(f.store.hash, time.Now, selection{})
	for name, n := range f.store.namespaces {
		fresh.setNamespace(name, n)
	}
	for name, e := range f.store.services {
		fresh.setService(name, e)
	}
	got, want := contents(f.view), contents(fresh)
	if !maps.Equal(got, want) {
		t.Errorf("after changes %v\nfrom scratch  %v", got, want)
	}
	if n := len(want); n < 50 {
		t.Fatalf("only %d facts compared", n)
	}
}

// contents counts every fact that a view's indexes hold.
func contents(v *view) map[string]int {
	facts := make(map[string]int)
	for s := range v.services.all() {
		facts[fmt.Sprintf("%v v4=%x ready=%d exposed=%v", s.name, s.now.Load().v4, s.now.Load().ready, s.ns.exposed.Load())]++
	}
	for a := range v.addrs.all() {
		facts[fmt.Sprintf("%v -> %v", a.addr, a.slot.name)]++
	}
	for n := range v.namespaces.all() {
		facts[fmt.Sprintf("ns %s users=%d", n.name, n.users)]++
	}
	facts["n"] = v.services.n*10000 + v.addrs.n
	return facts
}

func (t *table[V]) all() func(func(V) bool) {
	return func(yield func(V) bool) {
		heads := t.heads.Load()
		if heads == nil {
			return
		}
		for i := range *heads {
			for n := (*heads)[i].Load(); n != nil; n = n.next {
				if !yield(n.value) {
					return
				}
			}
		}
	}
}
