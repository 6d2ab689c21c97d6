package catalog

import (
	"context"
	"sync"
)

// Changes names what changed since the reader last asked. It says which
// objects to read again, not how they were before; many changes of one object
// are one entry. The order within a list is not defined.
type Changes struct {
	Services   []ServiceName
	Namespaces []string
	Nodes      []string
	Pods       []ServiceName
	// Synced tells that the catalogue was complete when the changes were
	// taken. Until then what is missing may only be late.
	Synced bool
}

// Empty tells whether nothing changed.
func (ch *Changes) Empty() bool {
	return len(ch.Services)+len(ch.Namespaces)+len(ch.Nodes)+len(ch.Pods) == 0
}

// Subscription is one reader's view of what changed. Its methods may be called
// by one goroutine at a time.
type Subscription struct {
	c  *Catalog
	ch chan struct{} // capacity 1: a burst of changes is one wake-up

	mu         sync.Mutex
	services   map[ServiceName]struct{}
	namespaces map[string]struct{}
	nodes      map[string]struct{}
	pods       map[ServiceName]struct{}
}

// Subscribe returns a reader for which everything that exists counts as
// changed. Close it when done.
func (c *Catalog) Subscribe() *Subscription {
	s := &Subscription{
		c:          c,
		ch:         make(chan struct{}, 1),
		services:   make(map[ServiceName]struct{}),
		namespaces: make(map[string]struct{}),
		nodes:      make(map[string]struct{}),
		pods:       make(map[ServiceName]struct{}),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.services {
		s.services[n] = struct{}{}
	}
	for n := range c.namespaces {
		s.namespaces[n] = struct{}{}
	}
	for n := range c.nodes {
		s.nodes[n] = struct{}{}
	}
	for n := range c.pods {
		s.pods[n] = struct{}{}
	}
	c.subs[s] = struct{}{}
	s.wake()
	return s
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.subs, s)
}

// C receives a value when there may be changes to take; for use in a select.
func (s *Subscription) C() <-chan struct{} { return s.ch }

// Take returns what changed since the last call, without waiting.
func (s *Subscription) Take() Changes {
	// Synced is read before the sets are taken, so that true is never said of
	// a picture that was still incomplete.
	synced := s.c.HasSynced()
	s.mu.Lock()
	defer s.mu.Unlock()
	return Changes{
		Services:   drain(&s.services),
		Namespaces: drain(&s.namespaces),
		Nodes:      drain(&s.nodes),
		Pods:       drain(&s.pods),
		Synced:     synced,
	}
}

// Next waits until something changed, or until the catalogue became synced,
// and returns it. The error is ctx's.
func (s *Subscription) Next(ctx context.Context) (Changes, error) {
	select {
	case <-ctx.Done():
		return Changes{}, ctx.Err()
	case <-s.ch:
		return s.Take(), nil
	}
}

func (s *Subscription) wake() {
	select {
	case s.ch <- struct{}{}:
	default:
	}
}

func (s *Subscription) service(n ServiceName) { mark(s, &s.services, n) }
func (s *Subscription) namespace(n string)    { mark(s, &s.namespaces, n) }
func (s *Subscription) node(n string)         { mark(s, &s.nodes, n) }
func (s *Subscription) pod(n ServiceName)     { mark(s, &s.pods, n) }

func mark[K comparable](s *Subscription, set *map[K]struct{}, k K) {
	s.mu.Lock()
	(*set)[k] = struct{}{}
	s.mu.Unlock()
	s.wake()
}

func drain[K comparable](set *map[K]struct{}) []K {
	n := len(*set)
	if n == 0 {
		return nil
	}
	list := make([]K, 0, n)
	for k := range *set {
		list = append(list, k)
	}
	// clear costs O(capacity): after a burst (the first list) a new small map
	// keeps the cost of later changes their own.
	if n > 64 {
		*set = make(map[K]struct{})
	} else {
		clear(*set)
	}
	return list
}

// HasSynced tells whether every required kind has been listed completely once.
func (c *Catalog) HasSynced() bool {
	select {
	case <-c.syncedCh:
		return true
	default:
		return false
	}
}

// Synced is closed once the catalogue is complete for the first time.
func (c *Catalog) Synced() <-chan struct{} { return c.syncedCh }

// Missing returns the required kinds that were not listed yet.
func (c *Catalog) Missing() Kind {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.required &^ c.synced
}
