// Package catalog holds what exists in the cluster: services, their endpoints,
// namespaces, nodes and pods, in a compact typed form.
//
// A source (internal/source/kube) applies changes; readers (DNS, the service
// proxy, explain) are told exactly which objects changed and read those. The
// unit of change is a service: applying or reading a change costs O(that
// service), whatever else exists.
//
// Everything handed out is immutable: a change replaces the value, it never
// alters one, so readers keep what they got without locks or copies.
package catalog

import (
	"net/netip"
	"sync"
)

// Entry is everything known about one service name. Service is nil when only
// endpoint slices exist (a slice may arrive before its Service, or outlive it).
type Entry struct {
	Service *Service
	Slices  []*EndpointSlice // ordered by name
}

// Catalog is the present state. Its zero value is not usable; call New.
type Catalog struct {
	mu         sync.RWMutex
	services   map[ServiceName]*Entry
	slices     map[sliceKey]ServiceName // which service a slice belongs to
	namespaces map[string]*Namespace
	nodes      map[string]*Node
	pods       map[ServiceName]*Pod // a pod's key has the same shape: namespace and name
	podsByIP   map[netip.Addr]*Pod
	synced     Kind // kinds whose first list is complete, or that were restored
	stale      Kind // kinds that were restored and not listed since
	required   Kind
	syncedCh   chan struct{}
	counts     Counts
	subs       map[*Subscription]struct{}
}

// New returns an empty catalogue that counts as synced once every kind in
// required has been replaced by a full list.
func New(required Kind) *Catalog {
	return &Catalog{
		services:   make(map[ServiceName]*Entry),
		slices:     make(map[sliceKey]ServiceName),
		namespaces: make(map[string]*Namespace),
		nodes:      make(map[string]*Node),
		pods:       make(map[ServiceName]*Pod),
		podsByIP:   make(map[netip.Addr]*Pod),
		required:   required,
		syncedCh:   make(chan struct{}),
		subs:       make(map[*Subscription]struct{}),
	}
}

// Counts are the numbers of objects held.
type Counts struct {
	Services, Slices, Endpoints, Namespaces, Nodes, Pods int
}

// Counts returns how much the catalogue holds. Services counts Service
// objects, not names known from slices alone.
func (c *Catalog) Counts() Counts {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := c.counts
	n.Slices = len(c.slices)
	n.Namespaces = len(c.namespaces)
	n.Nodes = len(c.nodes)
	n.Pods = len(c.pods)
	return n
}

// Service returns what is known about name; ok is false when nothing is.
func (c *Catalog) Service(name ServiceName) (e Entry, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if p := c.services[name]; p != nil {
		return *p, true
	}
	return Entry{}, false
}

// Services calls yield for each known name until it returns false. The order
// is not defined. The catalogue is locked for reading meanwhile: yield must
// not call back into it.
func (c *Catalog) Services(yield func(ServiceName, Entry) bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for name, e := range c.services {
		if !yield(name, *e) {
			return
		}
	}
}

// Namespace returns the namespace, or nil.
func (c *Catalog) Namespace(name string) *Namespace {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.namespaces[name]
}

// Namespaces calls yield for each namespace, as Services does.
func (c *Catalog) Namespaces(yield func(*Namespace) bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, n := range c.namespaces {
		if !yield(n) {
			return
		}
	}
}

// Node returns the node, or nil.
func (c *Catalog) Node(name string) *Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.nodes[name]
}

// Nodes calls yield for each node, as Services does.
func (c *Catalog) Nodes(yield func(*Node) bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, n := range c.nodes {
		if !yield(n) {
			return
		}
	}
}

// Pod returns the pod, or nil. Only pods that the source was asked to watch
// are known.
func (c *Catalog) Pod(namespace, name string) *Pod {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.pods[ServiceName{namespace, name}]
}
