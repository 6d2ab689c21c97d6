package cache

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

const shards = 256

// store holds entries up to a number and a size, both per shard. When a shard
// is full, entries at random make room.
type store struct {
	seed     maphash.Seed
	shards   [shards]shard
	entries  atomic.Int64
	bytes    atomic.Int64
	maxCount int // per shard
	maxBytes int // per shard
}

type shard struct {
	mu      sync.RWMutex
	entries map[uint64]*entry
	bytes   int
}

// Bounds per shard: CoreDNS's number, and 1 KiB for each entry but at least
// room for the largest message there can be.
const (
	minPerShard   = 4
	bytesPerEntry = 1 << 10
	minShardBytes = 66 << 10
)

func newStore(capacity int) *store {
	n := max(capacity/shards, minPerShard)
	s := &store{seed: maphash.MakeSeed(), maxCount: n, maxBytes: max(n*bytesPerEntry, minShardBytes)}
	for i := range s.shards {
		s.shards[i].entries = make(map[uint64]*entry)
	}
	return s
}

// capacity is the number of entries that fit at most.
func (s *store) capacity() int { return shards * s.maxCount }

// key hashes a question; name is in wire form and lower case.
func key(seed maphash.Seed, name []byte, qtype, qclass uint16, do, cd bool) uint64 {
	rest := uint64(qtype)<<32 | uint64(qclass)<<16
	if do {
		rest |= 1
	}
	if cd {
		rest |= 2
	}
	// The multiplication spreads the few bits of rest over the word.
	return maphash.Bytes(seed, name) ^ (rest+1)*0x9e3779b97f4a7c15
}

// get returns the entry for a question, or nil.
func (s *store) get(name []byte, qtype, qclass uint16, do, cd bool) *entry {
	k := key(s.seed, name, qtype, qclass, do, cd)
	sh := &s.shards[k%shards]
	sh.mu.RLock()
	e := sh.entries[k]
	sh.mu.RUnlock()
	// Another question may have the same hash.
	if e == nil || e.qtype != qtype || e.qclass != qclass || e.do != do || e.cd != cd || e.name != string(name) {
		return nil
	}
	return e
}

// put stores e and returns how many entries had to go for it.
func (s *store) put(e *entry) (evicted int) {
	k := key(s.seed, []byte(e.name), e.qtype, e.qclass, e.do, e.cd)
	size := e.size()
	if size > s.maxBytes {
		return 0
	}
	sh := &s.shards[k%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.drop(sh, k)
	for len(sh.entries) >= s.maxCount || sh.bytes+size > s.maxBytes {
		for victim := range sh.entries { // Go begins at a random place
			s.drop(sh, victim)
			evicted++
			break
		}
	}
	sh.entries[k] = e
	sh.bytes += size
	s.entries.Add(1)
	s.bytes.Add(int64(size))
	return evicted
}

// remove forgets the entry for e's question.
func (s *store) remove(q question) {
	k := key(s.seed, []byte(q.name), q.qtype, q.qclass, q.do, q.cd)
	sh := &s.shards[k%shards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.drop(sh, k)
}

// drop removes an entry of a locked shard.
func (s *store) drop(sh *shard, k uint64) {
	e := sh.entries[k]
	if e == nil {
		return
	}
	delete(sh.entries, k)
	n := e.size()
	sh.bytes -= n
	s.entries.Add(-1)
	s.bytes.Add(-int64(n))
}

// take copies the entries of another store that pass keep.
func (s *store) take(other *store, keep func(*entry) bool) {
	if s == other {
		return
	}
	for i := range other.shards {
		sh := &other.shards[i]
		sh.mu.RLock()
		list := make([]*entry, 0, len(sh.entries))
		for _, e := range sh.entries {
			list = append(list, e)
		}
		sh.mu.RUnlock()
		for _, e := range list {
			if keep(e) {
				s.put(e)
			}
		}
	}
}
