package nftables

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// size bounds the bytes that a change takes in a transaction.
func (c *change) size() int {
	const header, addrs = 256, 128 // of messages; of an entry of the shared sets
	n := header
	for _, s := range []*service{c.old, c.new} {
		if s != nil {
			n += addrs * (len(s.local) + 1)
		}
	}
	for i := range c.ops {
		n += int(c.ops[i].to-c.ops[i].from) + 4
	}
	return n
}

// commit carries out changes in one transaction. If the kernel refuses it the
// changes are split, until those at fault stand alone.
func (t *table) commit(changes []change) ([]dataplane.Refusal, error) {
	size := 0
	for i := range changes {
		size += changes[i].size()
	}
	var err error
	if len(changes) == 1 && size > t.conn.MaxBatch {
		err = t.commitInParts(&changes[0])
	} else {
		w := t.begin()
		t.build(w, changes, nil)
		err = t.conn.Commit(&w.Batch)
	}
	var refusal *nfnetlink.Error
	switch {
	case err == nil:
		for i := range changes {
			t.settle(&changes[i])
		}
		return nil, nil
	case !errors.As(err, &refusal) || refusal.Errno == unix.EPERM:
		return nil, err
	case len(changes) == 1:
		t.freeNumbers(changes[0].new, changes[0].old)
		return []dataplane.Refusal{{Service: changes[0].name, Err: err}}, nil
	}
	half := len(changes) / 2
	first, err := t.commit(changes[:half])
	if err != nil {
		return first, err
	}
	second, err := t.commit(changes[half:])
	return append(first, second...), err
}

// build puts changes into a transaction: first all deletes, then all adds, so
// that an element can be replaced and a front end change hands. only, if not
// nil, is the part of the ops to take; then what services share is left out.
func (t *table) build(w *batch, changes []change, only []op) {
	for _, add := range []bool{false, true} {
		for set := range setCount {
			l := t.list(w, set, add)
			if only != nil {
				for i := range only {
					l.put(t.b.arena, &only[i])
				}
			} else {
				for c := range changes {
					for i := range changes[c].ops {
						l.put(t.b.arena, &changes[c].ops[i])
					}
				}
			}
			l.close()
		}
		if only == nil {
			t.buildShared(w, changes, add)
		}
	}
}

// commitInParts carries out one big change in several transactions, in an
// order in which each state between is a working one.
func (t *table) commitInParts(c *change) error {
	slices.SortStableFunc(c.ops, func(a, b op) int { return int(a.phase) - int(b.phase) })
	// The hairpin addresses come first, in a transaction of their own.
	w := t.begin()
	t.buildShared(w, []change{*c}, true)
	if err := t.conn.Commit(&w.Batch); err != nil {
		return err
	}
	for ops := c.ops; len(ops) > 0; {
		n, size := 0, 1024
		for n < len(ops) {
			size += int(ops[n].to-ops[n].from) + 4
			if size > t.conn.MaxBatch-1024 && n > 0 && !ops[n-1].pair {
				break
			}
			n++
		}
		w := t.begin()
		t.build(w, nil, ops[:n])
		if err := t.conn.Commit(&w.Batch); err != nil {
			return err
		}
		ops = ops[n:]
	}
	w = t.begin()
	t.buildShared(w, []change{*c}, false)
	return t.conn.Commit(&w.Batch)
}

// shared calls plus and minus for each address that a service brings to, or
// takes from, the sets that services share.
func (c *change) shared(clusterIP, hairpin func(a netip.Addr, by int)) {
	for _, s := range []struct {
		*service
		by int
	}{{c.old, -1}, {c.new, 1}} {
		if s.service == nil {
			continue
		}
		for i := range s.ports {
			clusterIP(s.ports[i].ClusterIP.Addr(), s.by)
		}
		for _, a := range s.local {
			hairpin(a, s.by)
		}
	}
}

func (t *table) buildShared(w *batch, changes []change, add bool) {
	var clusterIPs, hairpins map[netip.Addr]int
	for i := range changes {
		c := &changes[i]
		if c.old != nil && c.new != nil && slices.Equal(c.old.local, c.new.local) && sameClusterIPs(c.old, c.new) {
			continue
		}
		if clusterIPs == nil {
			clusterIPs, hairpins = make(map[netip.Addr]int), make(map[netip.Addr]int)
		}
		c.shared(func(a netip.Addr, by int) { clusterIPs[a] += by }, func(a netip.Addr, by int) { hairpins[a] += by })
	}
	for _, s := range []struct {
		set   setID
		delta map[netip.Addr]int
		held  map[netip.Addr]int
	}{{setClusterIPs, clusterIPs, t.clusterIPs}, {setHairpins, hairpins, t.hairpins}} {
		l := t.list(w, s.set, add)
		for a, by := range s.delta {
			n := s.held[a]
			if add && n == 0 && n+by > 0 || !add && n > 0 && n+by == 0 {
				if s.set == setHairpins {
					l.addrs(a, a)
				} else {
					l.addrs(a)
				}
			}
		}
		l.close()
	}
}

func sameClusterIPs(a, b *service) bool {
	return slices.EqualFunc(a.ports, b.ports, func(a, b port) bool { return a.ClusterIP.Addr() == b.ClusterIP.Addr() })
}

// settle records that the kernel holds c.new instead of c.old.
func (t *table) settle(c *change) {
	count := func(held map[netip.Addr]int) func(netip.Addr, int) {
		return func(a netip.Addr, by int) {
			if held[a] += by; held[a] == 0 {
				delete(held, a)
			}
		}
	}
	c.shared(count(t.clusterIPs), count(t.hairpins))
	for _, s := range []struct {
		*service
		by int
	}{{c.old, -1}, {c.new, 1}} {
		if s.service == nil {
			continue
		}
		for i := range s.ports {
			s.ports[i].elements(func(element) {}, func(sp spread) { t.spreads[sp] += s.by })
		}
	}
	t.freeNumbers(c.old, c.new)
	if c.new == nil {
		delete(t.services, c.name)
	} else {
		t.services[c.name] = c.new
	}
}
