package kubernetes

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
)

// table is a hash table with one writer and any number of readers that neither
// lock nor allocate. Several values may have the same hash, equal ones too.
// Nodes never change once they are linked: a removal links copies of the nodes
// before it.
type table[V any] struct {
	heads atomic.Pointer[[]atomic.Pointer[node[V]]]
	n     int // writer's
}

type node[V any] struct {
	hash  uint64
	value V
	next  *node[V]
}

// find returns the first node of the hash's bucket; the reader follows next and
// compares.
func (t *table[V]) find(hash uint64) *node[V] {
	heads := t.heads.Load()
	if heads == nil {
		return nil
	}
	return (*heads)[hash&uint64(len(*heads)-1)].Load()
}

func (t *table[V]) add(hash uint64, v V) {
	heads := t.heads.Load()
	if heads == nil || t.n >= len(*heads) {
		heads = t.resize(max(16, 2*t.n))
	}
	head := &(*heads)[hash&uint64(len(*heads)-1)]
	head.Store(&node[V]{hash, v, head.Load()})
	t.n++
}

// remove removes the first value of the hash for which is is true.
func (t *table[V]) remove(hash uint64, is func(V) bool) {
	heads := t.heads.Load()
	if heads == nil {
		return
	}
	head := &(*heads)[hash&uint64(len(*heads)-1)]
	first := head.Load()
	for n := first; n != nil; n = n.next {
		if n.hash != hash || !is(n.value) {
			continue
		}
		rest := n.next
		for c := first; c != n; c = c.next { // buckets are short
			rest = &node[V]{c.hash, c.value, rest}
		}
		head.Store(rest)
		t.n--
		if t.n > 64 && t.n < len(*heads)/8 {
			t.resize(2 * t.n)
		}
		return
	}
}

// resize moves everything to a new array; readers go on in the old one.
func (t *table[V]) resize(want int) *[]atomic.Pointer[node[V]] {
	size := 16
	for size < want {
		size *= 2
	}
	heads := make([]atomic.Pointer[node[V]], size)
	if old := t.heads.Load(); old != nil {
		for i := range *old {
			for n := (*old)[i].Load(); n != nil; n = n.next {
				head := &heads[n.hash&uint64(size-1)]
				head.Store(&node[V]{n.hash, n.value, head.Load()})
			}
		}
	}
	t.heads.Store(&heads)
	return &heads
}

// hashes makes the keys of tables. Names come from clients, so the seed is
// random.
type hashes struct{ seed maphash.Seed }

// name hashes labels in wire form.
func (h hashes) name(labels []byte) uint64 { return maphash.Bytes(h.seed, labels) }

func (h hashes) addr(a netip.Addr) uint64 {
	b := a.As16()
	return maphash.Bytes(h.seed, b[:])
}

// appendLabel appends s as one label in wire form.
func appendLabel(b []byte, s string) []byte {
	b = append(b, byte(len(s)))
	return append(b, s...)
}
