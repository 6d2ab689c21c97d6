package kubernetes

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/rutter-project/rutter/internal/catalog"
)

// selection is which objects a server block shows.
type selection struct {
	labels          labels.Selector // of services, slices and pods; nil for all
	namespaceLabels labels.Selector
	namespaces      []string // nil for all
	pods            bool     // keep pods, for pods verified
}

func (s selection) key() string {
	var parts []string
	for _, sel := range []labels.Selector{s.labels, s.namespaceLabels} {
		if sel != nil {
			parts = append(parts, sel.String())
		}
		parts = append(parts, "\x00")
	}
	if s.pods {
		parts = append(parts, "pods")
	}
	return strings.Join(append(parts, s.namespaces...), "\x00")
}

func selects(sel labels.Selector, of map[string]string) bool {
	return sel == nil || sel.Matches(labels.Set(of))
}

// view is the published objects of one selection, laid out for answering:
// readers find a service, an address, a namespace or a pod without a lock.
type view struct {
	sel        selection
	hash       hashes
	services   table[*slot] // by SVC.NS in wire form
	addrs      table[addrOf]
	namespaces table[*namespace]
	pods       table[podOf]
	serial     atomic.Uint32 // Unix time of the last change of a record

	// The writer's.
	users   int
	clock   func() time.Time
	names   map[string]*namespace
	diff    map[netip.Addr]uint8
	scratch []byte
}

// slot is a service name's place; what is known about the name replaces its
// content, so that whatever points here stays valid.
type slot struct {
	name catalog.ServiceName
	ns   *namespace
	now  atomic.Pointer[service]
}

// service is what is published about one name, ready to be answered.
type service struct {
	obj    *catalog.Service // nil: only slices exist, and no name but PTR's
	slices []*catalog.EndpointSlice
	// A and AAAA records of the service name: the cluster IPs, or each ready
	// address of a headless service once.
	v4, v6 []byte
	ready  int // ready endpoints
}

type addrOf struct {
	addr netip.Addr
	slot *slot
}

type podOf struct {
	addr netip.Addr
	pod  *catalog.Pod
}

// namespace is known as soon as a service in it is; it is exposed once the
// Namespace object is there and selected.
type namespace struct {
	name    string
	exposed atomic.Bool
	users   int // slots, and the Namespace object
	exists  bool
}

func newView(h hashes, clock func() time.Time, sel selection) *view {
	return &view{sel: sel, hash: h, clock: clock, names: make(map[string]*namespace), diff: make(map[netip.Addr]uint8)}
}

// service returns the slot of SVC.NS, given in lower case wire form.
func (v *view) service(key, svc, ns []byte) *slot {
	h := v.hash.name(key)
	for n := v.services.find(h); n != nil; n = n.next {
		if n.hash == h && n.value.name.Name == string(svc) && n.value.name.Namespace == string(ns) {
			return n.value
		}
	}
	return nil
}

// exposed tells whether a namespace is visible.
func (v *view) exposed(label []byte) bool {
	h := v.hash.name(label)
	for n := v.namespaces.find(h); n != nil; n = n.next {
		if n.hash == h && n.value.name == string(label) {
			return n.value.exposed.Load()
		}
	}
	return false
}

// podIn tells whether a pod of the namespace has the address.
func (v *view) podIn(addr netip.Addr, ns []byte) bool {
	h := v.hash.addr(addr)
	for n := v.pods.find(h); n != nil; n = n.next {
		if n.hash == h && n.value.addr == addr && n.value.pod.Namespace == string(ns) {
			return true
		}
	}
	return false
}

func (v *view) touch() { v.serial.Store(uint32(v.clock().Unix())) }

func (v *view) namespaceOf(name string) *namespace {
	ns := v.names[name]
	if ns == nil {
		ns = &namespace{name: name}
		v.names[name] = ns
		v.namespaces.add(v.hash.name([]byte(name)), ns)
	}
	ns.users++
	return ns
}

func (v *view) dropNamespace(ns *namespace) {
	if ns.users--; ns.users == 0 {
		delete(v.names, ns.name)
		v.namespaces.remove(v.hash.name([]byte(ns.name)), func(n *namespace) bool { return n == ns })
	}
}

func (v *view) setNamespace(name string, n *catalog.Namespace) {
	ns := v.names[name]
	if n == nil {
		if ns != nil && ns.exists {
			ns.exists = false
			ns.exposed.Store(false)
			v.dropNamespace(ns)
			v.touch()
		}
		return
	}
	if ns == nil || !ns.exists {
		ns = v.namespaceOf(name)
		ns.exists = true
	}
	listed := v.sel.namespaces == nil || slices.Contains(v.sel.namespaces, name)
	exposed := listed && selects(v.sel.namespaceLabels, n.Labels)
	if ns.exposed.Swap(exposed) != exposed {
		v.touch()
	}
}

func (v *view) setPod(was, now *catalog.Pod) {
	if !v.sel.pods {
		return
	}
	// Only the primary address: CoreDNS knows no other (status.podIP).
	shown := func(p *catalog.Pod) (netip.Addr, bool) {
		if p == nil || p.Done || p.Terminating || len(p.IPs) == 0 || !selects(v.sel.labels, p.Labels) {
			return netip.Addr{}, false
		}
		return p.IPs[0], true
	}
	a, had := shown(was)
	b, has := shown(now)
	if has {
		v.pods.add(v.hash.addr(b), podOf{b, now})
	}
	if had {
		v.pods.remove(v.hash.addr(a), func(p podOf) bool { return p.pod == was })
	}
	if had != has || a != b {
		v.touch()
	}
}

func (v *view) setService(name catalog.ServiceName, e catalog.Entry) {
	v.scratch = appendLabel(appendLabel(v.scratch[:0], name.Name), name.Namespace)
	h := v.hash.name(v.scratch)
	var s *slot
	for n := v.services.find(h); n != nil; n = n.next {
		if n.value.name == name {
			s = n.value
		}
	}
	next := v.compile(e)
	var was *service
	if s != nil {
		was = s.now.Load()
	}
	switch {
	case next == nil && s == nil:
		return
	case next == nil:
		v.services.remove(h, func(x *slot) bool { return x == s })
		v.link(s, was, nil)
		v.dropNamespace(s.ns)
		v.touch()
		return
	case s == nil:
		s = &slot{name: name, ns: v.namespaceOf(name.Namespace)}
		s.now.Store(next)
		v.services.add(h, s)
	default:
		s.now.Store(next)
	}
	v.link(s, was, next)
	if !sameRecords(was, next) {
		v.touch()
	}
}

// compile lays out what of e is selected; nil for nothing.
func (v *view) compile(e catalog.Entry) *service {
	s := &service{slices: e.Slices}
	if e.Service != nil && selects(v.sel.labels, e.Service.Labels) {
		s.obj = e.Service
	}
	if v.sel.labels != nil {
		s.slices = nil
		for _, sl := range e.Slices {
			if selects(v.sel.labels, sl.Labels) {
				s.slices = append(s.slices, sl)
			}
		}
	}
	if s.obj == nil && len(s.slices) == 0 {
		return nil
	}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			if sl.Endpoints[i].Ready() {
				s.ready++
			}
		}
	}
	if s.obj == nil {
		return s
	}
	if !s.obj.Headless {
		for _, ip := range s.obj.ClusterIPs {
			s.add(ip)
		}
		return s
	}
	n := [2]int{}
	for _, sl := range s.slices {
		if sl.IPv6 {
			n[1] += len(sl.Endpoints)
		} else {
			n[0] += len(sl.Endpoints)
		}
	}
	s.v4, s.v6 = make([]byte, 0, 4*n[0]), make([]byte, 0, 16*n[1])
	var seen map[netip.Addr]struct{}
	if len(s.slices) > 1 { // an address may move from slice to slice
		seen = make(map[netip.Addr]struct{}, n[0]+n[1])
	}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			ep := &sl.Endpoints[i]
			if !ep.Ready() {
				continue
			}
			if seen != nil {
				if _, ok := seen[ep.Addr]; ok {
					continue
				}
				seen[ep.Addr] = struct{}{}
			}
			s.add(ep.Addr)
		}
	}
	return s
}

func (s *service) add(ip netip.Addr) {
	if ip.Is4() {
		b := ip.As4()
		s.v4 = append(s.v4, b[:]...)
	} else {
		b := ip.As16()
		s.v6 = append(s.v6, b[:]...)
	}
}

// each calls f for the addresses under which the service can be found.
func (s *service) each(f func(netip.Addr)) {
	if s == nil {
		return
	}
	if s.obj != nil {
		for _, ip := range s.obj.ClusterIPs {
			f(ip)
		}
	}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			if sl.Endpoints[i].Ready() {
				f(sl.Endpoints[i].Addr)
			}
		}
	}
}

// link makes the addresses of next, and no longer those of was, lead to s.
func (v *view) link(s *slot, was, next *service) {
	was.each(func(a netip.Addr) { v.diff[a] |= 1 })
	next.each(func(a netip.Addr) { v.diff[a] |= 2 })
	for a, in := range v.diff {
		switch in {
		case 1:
			v.addrs.remove(v.hash.addr(a), func(x addrOf) bool { return x.slot == s && x.addr == a })
		case 2:
			v.addrs.add(v.hash.addr(a), addrOf{a, s})
		}
	}
	if len(v.diff) > 1024 {
		v.diff = make(map[netip.Addr]uint8)
	} else {
		clear(v.diff)
	}
}

// sameRecords tells whether both lead to the same records. Conditions that are
// not looked at, annotations and the like make no difference.
func sameRecords(a, b *service) bool {
	if a == nil || b == nil {
		return a == b
	}
	if (a.obj == nil) != (b.obj == nil) || len(a.slices) != len(b.slices) || a.ready != b.ready {
		return false
	}
	if a.obj != nil && a.obj != b.obj {
		x, y := a.obj, b.obj
		if x.Headless != y.Headless || x.Type != y.Type || x.ExternalName != y.ExternalName || !slices.Equal(x.ClusterIPs, y.ClusterIPs) {
			return false
		}
		if !slices.EqualFunc(x.Ports, y.Ports, func(p, q catalog.ServicePort) bool {
			return p.Name == q.Name && p.Protocol == q.Protocol && p.Port == q.Port
		}) {
			return false
		}
	}
	for i, x := range a.slices {
		y := b.slices[i]
		if x != y && (!slices.Equal(x.Ports, y.Ports) || !sameEndpoints(x.Endpoints, y.Endpoints)) {
			return false
		}
	}
	return true
}

func sameEndpoints(a, b []catalog.Endpoint) bool {
	i, j := 0, 0
	for {
		for i < len(a) && !a[i].Ready() {
			i++
		}
		for j < len(b) && !b[j].Ready() {
			j++
		}
		if i == len(a) || j == len(b) {
			return i == len(a) && j == len(b)
		}
		if a[i].Addr != b[j].Addr || a[i].Hostname != b[j].Hostname || a[i].Pod != b[j].Pod {
			return false
		}
		i++
		j++
	}
}
