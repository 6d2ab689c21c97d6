package catalog

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

type sliceKey struct{ namespace, name string }

// ApplyService puts s in the place of what was known under its name.
func (c *Catalog) ApplyService(s *Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setService(s.Name, s)
}

// RemoveService forgets the Service object; its slices stay until they are
// removed themselves.
func (c *Catalog) RemoveService(name ServiceName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setService(name, nil)
}

// ReplaceServices makes list the complete set of services: what is not in it
// is removed. It marks the kind as synced. Services that are as they were are
// not reported as changed.
func (c *Catalog) ReplaceServices(list []*Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := make(map[ServiceName]struct{}, len(list))
	for _, s := range list {
		keep[s.Name] = struct{}{}
		c.setService(s.Name, s)
	}
	for name, e := range c.services {
		if _, ok := keep[name]; !ok && e.Service != nil {
			c.setService(name, nil)
		}
	}
	c.markSynced(Services)
}

func (c *Catalog) setService(name ServiceName, s *Service) {
	old := c.services[name]
	switch {
	case s == nil && (old == nil || old.Service == nil):
		return
	case s != nil && old != nil && old.Service != nil && reflect.DeepEqual(old.Service, s):
		return // a resync or a change of a field that is not kept
	}
	e := &Entry{Service: s}
	if old != nil {
		e.Slices = old.Slices
		if old.Service != nil {
			c.counts.Services--
		}
	}
	if s != nil {
		c.counts.Services++
	}
	c.setEntry(name, e)
}

// ApplySlice puts s in the place of the slice of its name. A slice may move to
// another service; then both change.
func (c *Catalog) ApplySlice(s *EndpointSlice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setSlice(s)
}

// RemoveSlice forgets the slice.
func (c *Catalog) RemoveSlice(namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropSlice(sliceKey{namespace, name})
}

// ReplaceSlices makes list the complete set of endpoint slices, as
// ReplaceServices does.
func (c *Catalog) ReplaceSlices(list []*EndpointSlice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := make(map[sliceKey]struct{}, len(list))
	for _, s := range list {
		keep[sliceKey{s.Namespace, s.Name}] = struct{}{}
		c.setSlice(s)
	}
	for k := range c.slices {
		if _, ok := keep[k]; !ok {
			c.dropSlice(k)
		}
	}
	c.markSynced(EndpointSlices)
}

func (c *Catalog) setSlice(s *EndpointSlice) {
	k := sliceKey{s.Namespace, s.Name}
	if s.Service == "" {
		c.dropSlice(k) // a slice without the service-name label belongs to nobody
		return
	}
	name := ServiceName{s.Namespace, s.Service}
	if owner, ok := c.slices[k]; ok && owner != name {
		c.dropSlice(k)
	}
	old := c.services[name]
	e := &Entry{}
	var was []*EndpointSlice
	if old != nil {
		e.Service, was = old.Service, old.Slices
	}
	i, found := slices.BinarySearchFunc(was, s.Name, func(s *EndpointSlice, name string) int { return strings.Compare(s.Name, name) })
	if found {
		if reflect.DeepEqual(was[i], s) {
			return
		}
		c.counts.Endpoints -= len(was[i].Endpoints)
		e.Slices = slices.Clone(was)
		e.Slices[i] = s
	} else {
		e.Slices = make([]*EndpointSlice, 0, len(was)+1)
		e.Slices = append(append(append(e.Slices, was[:i]...), s), was[i:]...)
	}
	c.counts.Endpoints += len(s.Endpoints)
	c.slices[k] = name
	c.setEntry(name, e)
}

func (c *Catalog) dropSlice(k sliceKey) {
	name, ok := c.slices[k]
	if !ok {
		return
	}
	delete(c.slices, k)
	old := c.services[name]
	e := &Entry{Service: old.Service}
	for _, s := range old.Slices {
		if s.Name == k.name {
			c.counts.Endpoints -= len(s.Endpoints)
			continue
		}
		e.Slices = append(e.Slices, s)
	}
	c.setEntry(name, e)
}

func (c *Catalog) setEntry(name ServiceName, e *Entry) {
	if e.Service == nil && len(e.Slices) == 0 {
		delete(c.services, name)
	} else {
		c.services[name] = e
	}
	for sub := range c.subs {
		sub.service(name)
	}
}

// ApplyNamespace puts n in the place of the namespace of its name.
func (c *Catalog) ApplyNamespace(n *Namespace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setNamespace(n.Name, n)
}

// RemoveNamespace forgets the namespace; its services stay until they are
// removed themselves.
func (c *Catalog) RemoveNamespace(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setNamespace(name, nil)
}

// ReplaceNamespaces makes list the complete set of namespaces.
func (c *Catalog) ReplaceNamespaces(list []*Namespace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	replace(c.namespaces, list, func(n *Namespace) string { return n.Name }, c.setNamespace)
	c.markSynced(Namespaces)
}

func (c *Catalog) setNamespace(name string, n *Namespace) {
	if !assign(c.namespaces, name, n) {
		return
	}
	for sub := range c.subs {
		sub.namespace(name)
	}
}

// ApplyNode puts n in the place of the node of its name.
func (c *Catalog) ApplyNode(n *Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setNode(n.Name, n)
}

// RemoveNode forgets the node.
func (c *Catalog) RemoveNode(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setNode(name, nil)
}

// ReplaceNodes makes list the complete set of nodes.
func (c *Catalog) ReplaceNodes(list []*Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	replace(c.nodes, list, func(n *Node) string { return n.Name }, c.setNode)
	c.markSynced(Nodes)
}

func (c *Catalog) setNode(name string, n *Node) {
	if !assign(c.nodes, name, n) {
		return
	}
	for sub := range c.subs {
		sub.node(name)
	}
}

// ApplyPod puts p in the place of the pod of its name.
func (c *Catalog) ApplyPod(p *Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setPod(ServiceName{p.Namespace, p.Name}, p)
}

// RemovePod forgets the pod.
func (c *Catalog) RemovePod(namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setPod(ServiceName{namespace, name}, nil)
}

// ReplacePods makes list the complete set of pods.
func (c *Catalog) ReplacePods(list []*Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	replace(c.pods, list, func(p *Pod) ServiceName { return ServiceName{p.Namespace, p.Name} }, c.setPod)
	c.markSynced(Pods)
}

func (c *Catalog) setPod(name ServiceName, p *Pod) {
	old := c.pods[name]
	if !assign(c.pods, name, p) {
		return
	}
	if old != nil {
		for _, ip := range old.IPs {
			if c.podsByIP[ip] == old {
				delete(c.podsByIP, ip)
			}
		}
	}
	// A host network pod has its node's address and a finished pod's address
	// may be taken again: neither says whose the address is.
	if p != nil && !p.HostNetwork && !p.Done {
		for _, ip := range p.IPs {
			c.podsByIP[ip] = p
		}
	}
	for sub := range c.subs {
		sub.pod(name)
	}
}

// PodByIP returns the running pod that has the address, or nil. Pods on the
// host's network are not found by it.
func (c *Catalog) PodByIP(ip netip.Addr) *Pod {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.podsByIP[ip]
}

func replace[K comparable, V any](m map[K]*V, list []*V, key func(*V) K, set func(K, *V)) {
	keep := make(map[K]struct{}, len(list))
	for _, v := range list {
		keep[key(v)] = struct{}{}
		set(key(v), v)
	}
	for k := range m {
		if _, ok := keep[k]; !ok {
			set(k, nil)
		}
	}
}

// assign stores v (or deletes k when v is nil) and tells whether that changed
// anything.
func assign[K comparable, V any](m map[K]*V, k K, v *V) bool {
	old, had := m[k]
	if v == nil {
		delete(m, k)
		return had
	}
	if had && reflect.DeepEqual(old, v) {
		return false
	}
	m[k] = v
	return true
}

func (c *Catalog) markSynced(k Kind) {
	c.stale &^= k
	c.addSynced(k)
}

func (c *Catalog) addSynced(k Kind) {
	before := c.synced&c.required == c.required
	c.synced |= k
	if !before && c.synced&c.required == c.required {
		close(c.syncedCh)
		for sub := range c.subs {
			sub.wake()
		}
	}
}
