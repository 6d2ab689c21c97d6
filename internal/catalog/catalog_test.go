package catalog

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"
)

func svc(ns, name string, ip string) *Service {
	return &Service{
		Name:       ServiceName{ns, name},
		ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)},
		Ports:      []ServicePort{{Name: "http", Protocol: TCP, Port: 80}},
	}
}

func slice(ns, service, name string, ips ...string) *EndpointSlice {
	s := &EndpointSlice{Namespace: ns, Name: name, Service: service, Ports: []EndpointPort{{Name: "http", Protocol: TCP, Port: 8080}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.MustParseAddr(ip), Conditions: Ready | Serving})
	}
	return s
}

// TestChanges lists what each call makes readers see.
func TestChanges(t *testing.T) {
	web, db := ServiceName{"default", "web"}, ServiceName{"default", "db"}
	for _, tc := range []struct {
		name   string
		do     func(c *Catalog)
		want   []ServiceName
		counts Counts
	}{
		{"a new service", func(c *Catalog) { c.ApplyService(svc("default", "db", "10.96.0.2")) },
			[]ServiceName{db}, Counts{Services: 2, Slices: 1, Endpoints: 2}},
		{"the same service again", func(c *Catalog) { c.ApplyService(svc("default", "web", "10.96.0.1")) },
			nil, Counts{Services: 1, Slices: 1, Endpoints: 2}},
		{"an altered service", func(c *Catalog) { c.ApplyService(svc("default", "web", "10.96.0.9")) },
			[]ServiceName{web}, Counts{Services: 1, Slices: 1, Endpoints: 2}},
		{"a removed service keeps its slices", func(c *Catalog) { c.RemoveService(web) },
			[]ServiceName{web}, Counts{Slices: 1, Endpoints: 2}},
		{"an unknown service removed", func(c *Catalog) { c.RemoveService(db) },
			nil, Counts{Services: 1, Slices: 1, Endpoints: 2}},
		{"a second slice", func(c *Catalog) { c.ApplySlice(slice("default", "web", "web-a", "10.244.0.9")) },
			[]ServiceName{web}, Counts{Services: 1, Slices: 2, Endpoints: 3}},
		{"the same slice again", func(c *Catalog) { c.ApplySlice(slice("default", "web", "web-x", "10.244.0.1", "10.244.0.2")) },
			nil, Counts{Services: 1, Slices: 1, Endpoints: 2}},
		{"a slice that moves to another service", func(c *Catalog) { c.ApplySlice(slice("default", "db", "web-x", "10.244.0.1")) },
			[]ServiceName{db, web}, Counts{Services: 1, Slices: 1, Endpoints: 1}},
		{"a slice that loses its service", func(c *Catalog) { c.ApplySlice(slice("default", "", "web-x", "10.244.0.1")) },
			[]ServiceName{web}, Counts{Services: 1}},
		{"a removed slice", func(c *Catalog) { c.RemoveSlice("default", "web-x") },
			[]ServiceName{web}, Counts{Services: 1}},
		{"a relist without the service", func(c *Catalog) { c.ReplaceServices([]*Service{svc("default", "db", "10.96.0.2")}) },
			[]ServiceName{db, web}, Counts{Services: 1, Slices: 1, Endpoints: 2}},
		{"a relist that changes nothing", func(c *Catalog) {
			c.ReplaceServices([]*Service{svc("default", "web", "10.96.0.1")})
			c.ReplaceSlices([]*EndpointSlice{slice("default", "web", "web-x", "10.244.0.1", "10.244.0.2")})
		}, nil, Counts{Services: 1, Slices: 1, Endpoints: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := New(Services | EndpointSlices)
			c.ApplyService(svc("default", "web", "10.96.0.1"))
			c.ApplySlice(slice("default", "web", "web-x", "10.244.0.1", "10.244.0.2"))
			sub := c.Subscribe()
			defer sub.Close()
			if got := sub.Take().Services; !slices.Equal(got, []ServiceName{web}) {
				t.Fatalf("a new reader is told of %v, want what exists: %v", got, web)
			}
			tc.do(c)
			got := sub.Take().Services
			slices.SortFunc(got, func(a, b ServiceName) int { return len(a.Name) - len(b.Name) })
			if !slices.Equal(got, tc.want) {
				t.Errorf("changed: %v, want %v", got, tc.want)
			}
			if n := c.Counts(); n != tc.counts {
				t.Errorf("counts: %+v, want %+v", n, tc.counts)
			}
		})
	}
}

func TestEntriesDoNotChangeOnceRead(t *testing.T) {
	c := New(Services)
	c.ApplyService(svc("default", "web", "10.96.0.1"))
	c.ApplySlice(slice("default", "web", "b", "10.244.0.2"))
	before, _ := c.Service(ServiceName{"default", "web"})
	c.ApplySlice(slice("default", "web", "a", "10.244.0.1"))
	c.ApplySlice(slice("default", "web", "b"))
	c.RemoveSlice("default", "b")
	if len(before.Slices) != 1 || len(before.Slices[0].Endpoints) != 1 {
		t.Errorf("an entry in a reader's hands changed: %+v", before)
	}
}

func TestSyncedNeedsEveryRequiredKind(t *testing.T) {
	c := New(Services | EndpointSlices)
	sub := c.Subscribe()
	c.ReplaceServices(nil)
	if sub.Take().Synced || c.Missing() != EndpointSlices {
		t.Fatalf("synced while %v is missing", c.Missing())
	}
	c.ReplaceSlices(nil)
	select {
	case <-sub.C():
	default:
		t.Error("becoming synced did not wake the reader")
	}
	if !sub.Take().Synced {
		t.Error("not synced though every kind was listed")
	}
}

func TestPodByIP(t *testing.T) {
	ip := netip.MustParseAddr("10.244.0.7")
	c := New(Pods)
	c.ApplyPod(&Pod{Namespace: "default", Name: "old", IPs: []netip.Addr{ip}})
	c.ApplyPod(&Pod{Namespace: "default", Name: "old", IPs: []netip.Addr{ip}, Done: true})
	c.ApplyPod(&Pod{Namespace: "default", Name: "new", IPs: []netip.Addr{ip}})
	c.RemovePod("default", "old")
	if p := c.PodByIP(ip); p == nil || p.Name != "new" {
		t.Errorf("PodByIP = %+v, want the pod that has the address now", p)
	}
	c.ApplyPod(&Pod{Namespace: "default", Name: "host", IPs: []netip.Addr{ip}, HostNetwork: true})
	if p := c.PodByIP(ip); p == nil || p.Name != "new" {
		t.Errorf("PodByIP = %+v: a host network pod must not claim its node's address", p)
	}
}

// TestRandomChangesAgainstModel applies random changes to the catalogue and to
// plain maps, and demands that a reader who follows the changes ends with the
// same picture.
func TestRandomChangesAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := New(Services | EndpointSlices)
		sub := c.Subscribe()
		services := map[ServiceName]*Service{}
		slicesOf := map[sliceKey]*EndpointSlice{}
		seen := map[ServiceName]Entry{}
		follow := func() {
			for _, n := range sub.Take().Services {
				if e, ok := c.Service(n); ok {
					seen[n] = e
				} else {
					delete(seen, n)
				}
			}
		}
		for range 500 {
			n := ServiceName{"ns", fmt.Sprint("s", r.IntN(6))}
			k := sliceKey{"ns", fmt.Sprint("slice", r.IntN(9))}
			switch r.IntN(6) {
			case 0, 1:
				services[n] = svc(n.Namespace, n.Name, fmt.Sprintf("10.96.0.%d", r.IntN(200)+1))
				c.ApplyService(services[n])
			case 2:
				delete(services, n)
				c.RemoveService(n)
			case 3, 4:
				slicesOf[k] = slice("ns", n.Name, k.name, fmt.Sprintf("10.244.0.%d", r.IntN(200)+1))
				c.ApplySlice(slicesOf[k])
			case 5:
				if r.IntN(10) == 0 {
					c.ReplaceServices(slices.Collect(maps.Values(services)))
					c.ReplaceSlices(slices.Collect(maps.Values(slicesOf)))
					break
				}
				delete(slicesOf, k)
				c.RemoveSlice(k.namespace, k.name)
			}
			if r.IntN(3) == 0 {
				follow()
			}
		}
		follow()
		want := map[ServiceName]Entry{}
		for n, s := range services {
			want[n] = Entry{Service: s}
		}
		for _, k := range slices.SortedFunc(maps.Keys(slicesOf), func(a, b sliceKey) int { return len(a.name)*100 + int(a.name[5]) - len(b.name)*100 - int(b.name[5]) }) {
			n := ServiceName{k.namespace, slicesOf[k].Service}
			e := want[n]
			e.Slices = append(e.Slices, slicesOf[k])
			want[n] = e
		}
		if !reflect.DeepEqual(seen, want) {
			t.Fatalf("seed %d: the reader sees\n%v\nwant\n%v", seed, seen, want)
		}
	}
}

func TestSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalogue")
	c := New(Services | EndpointSlices)
	if _, err := c.Restore(path); err != ErrNoSnapshot {
		t.Fatalf("Restore without a file: %v, want ErrNoSnapshot", err)
	}
	if err := c.Save(path); err == nil {
		t.Fatal("an incomplete catalogue was saved")
	}
	s := slice("default", "web", "web-x", "10.244.0.1", "fd00::1")
	s.Endpoints[0].Hints = &Hints{Zones: []string{"a"}}
	s.Endpoints[1].Hints = &Hints{Zones: []string{"a"}}
	c.ReplaceServices([]*Service{svc("default", "web", "10.96.0.1")})
	c.ReplaceSlices([]*EndpointSlice{s})
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", fi.Mode())
	}

	r := New(Services | EndpointSlices)
	sub := r.Subscribe()
	if _, err := r.Restore(path); err != nil {
		t.Fatal(err)
	}
	if ch := sub.Take(); !ch.Synced || len(ch.Services) != 1 || r.Stale() != Services|EndpointSlices {
		t.Errorf("restored: changes %+v, stale %v", ch, r.Stale())
	}
	web := ServiceName{"default", "web"}
	got, _ := r.Service(web)
	want, _ := c.Service(web)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("restored %+v, want %+v", got, want)
	}
	if e := got.Slices[0].Endpoints; e[0].Hints != e[1].Hints {
		t.Error("equal hints are two values after a restore")
	}
	// The first real list takes over: what went away meanwhile is removed.
	r.ReplaceServices(nil)
	if ch := sub.Take(); len(ch.Services) != 1 || r.Stale() != EndpointSlices {
		t.Errorf("after a list: changes %+v, stale %v", ch, r.Stale())
	}

	// What was listed before is fresher than the file and stays as it is.
	r = New(Services | EndpointSlices)
	r.ReplaceServices([]*Service{svc("default", "new", "10.96.0.9")})
	if _, err := r.Restore(path); err != nil || r.Stale() != EndpointSlices {
		t.Fatalf("restore after a list: %v, stale %v", err, r.Stale())
	}
	if e, _ := r.Service(web); e.Service != nil || len(e.Slices) != 1 {
		t.Errorf("restored %+v, want the slice but not the service, which the list lacks", e)
	}

	whole, _ := os.ReadFile(path)
	for name, b := range map[string][]byte{
		"a flipped bit": append(append(slices.Clone(whole[:60]), whole[60]^1), whole[61:]...),
		"cut short":     whole[:len(whole)-1],
		"another file":  []byte("hello"),
		"empty":         nil,
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r := New(Services | EndpointSlices)
		if _, err := r.Restore(path); err == nil || r.HasSynced() || r.Counts() != (Counts{}) {
			t.Errorf("%s: Restore = %v and the catalogue holds %+v; want an error and nothing", name, err, r.Counts())
		}
	}
}

// fill makes n services of per endpoints each, as a source would.
func fill(c *Catalog, n, per int) {
	for i := range n {
		name := fmt.Sprintf("svc-%d", i)
		s := svc("default", name, fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255))
		c.ApplyService(s)
		c.ApplySlice(bigSlice(name, i, per))
	}
	c.ReplaceNamespaces([]*Namespace{{Name: "default"}})
}

func bigSlice(service string, i, per int) *EndpointSlice {
	es := &EndpointSlice{Namespace: "default", Name: service + "-x", Service: service, Ports: []EndpointPort{{Name: "http", Protocol: TCP, Port: 8080}}}
	es.Endpoints = make([]Endpoint, 0, per)
	names := ""
	for j := range per {
		names += fmt.Sprintf("%s-%d", service, j)
	}
	for j := range per {
		k := i*per + j
		es.Endpoints = append(es.Endpoints, Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)}),
			Pod:  names[:len(service)+2], Node: "node", Zone: "zone", Conditions: Ready | Serving,
		})
	}
	return es
}

// BenchmarkChange is the cost of one endpoint change, told to one reader, with
// 10,000 services of 10 endpoints in the catalogue: it should equal the cost
// with 100 services.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			c := New(Namespaces)
			fill(c, n, 10)
			sub := c.Subscribe()
			sub.Take()
			name := fmt.Sprintf("svc-%d", n/2)
			two := [2]*EndpointSlice{bigSlice(name, 1, 10), bigSlice(name, 2, 10)}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				c.ApplySlice(two[i&1])
				if ch := sub.Take(); len(ch.Services) != 1 {
					b.Fatal("the change was not seen")
				}
				i++
			}
		})
	}
}

// BenchmarkMemory reports the bytes held per endpoint at 10,000 services of 10
// endpoints, everything included.
func BenchmarkMemory(b *testing.B) {
	var per float64
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		c := New(Namespaces)
		fill(c, 10_000, 10)
		runtime.GC()
		runtime.ReadMemStats(&after)
		per = float64(after.HeapAlloc-before.HeapAlloc) / 100_000
		runtime.KeepAlive(c)
	}
	b.ReportMetric(per, "B/endpoint")
	b.ReportMetric(0, "ns/op")
}
