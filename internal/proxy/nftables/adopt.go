package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// found is what the kernel holds: for each set its elements' keys with their
// data, both in the kernel's form.
type found [setCount]map[string]string

// adopt makes the table hold these services and nothing else, touching only
// what differs from what the kernel holds, whoever put it there.
func (t *table) adopt(ctx context.Context, want []plan.Service) ([]dataplane.Refusal, error) {
	// Whoever took something away may have taken more than elements.
	if err := t.open(); err != nil {
		return nil, err
	}
	held, err := t.listSets()
	if err != nil {
		return nil, err
	}
	t.services = make(map[catalog.ServiceName]*service, len(want))
	clear(t.clusterIPs)
	clear(t.hairpins)
	clear(t.spreads)
	t.affinity = false
	// Numbers in use are not given to others before their ports were looked at.
	clear(t.numbers)
	for _, data := range held[setAffinityServices] {
		t.numbers[parseNumber(data)>>endpointBits] = false
	}
	t.b.reset()
	// Part by part, so that the memory it takes does not grow with the cluster.
	var changes []change
	var refused []dataplane.Refusal
	flush := func() error {
		r, err := t.run(ctx, changes)
		refused = append(refused, r...)
		t.b.reset()
		changes = changes[:0]
		return err
	}
	for i := range want {
		// Everything the service needs, less what is there.
		c := t.b.change(want[i].Name, nil, &want[i], t.rules.v6, func(p *port) *port { return t.asHeld(held, p) })
		if c.new == nil {
			continue
		}
		c.ops = t.missing(held, c.ops)
		for _, p := range c.new.ports {
			delete(held[setClusterIPs], string(appendAddr(nil, p.ClusterIP.Addr())))
		}
		for _, a := range c.new.local {
			delete(held[setHairpins], string(appendAddr(appendAddr(nil, a), a)))
		}
		if changes = append(changes, c); len(t.b.arena) >= t.conn.MaxBatch {
			if err := flush(); err != nil {
				return refused, err
			}
		}
	}
	maps.DeleteFunc(t.numbers, func(_ uint32, used bool) bool { return !used })
	changes = append(changes, t.nodePortAddrs(held), t.leftover(held))
	err = flush()
	t.b.release()
	t.w.Buf = nil
	if err != nil {
		return refused, err
	}
	return refused, t.deleteForeignChains()
}

// listSets lists all sets that follow from the plan.
func (t *table) listSets() (*found, error) {
	held := new(found)
	for id := range setCount {
		if !planned(id) {
			continue
		}
		m := make(map[string]string)
		held[id] = m
		attrs := nfnetlink.AppendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
		attrs = nfnetlink.AppendString(attrs, unix.NFTA_SET_ELEM_LIST_SET, t.rules.sets[id].name)
		err := t.conn.Dump(t.fam, subsystem|unix.NFT_MSG_GETSETELEM, attrs, func() { clear(m) }, func(b []byte) {
			nfnetlink.Attributes(b, func(typ uint16, list []byte) {
				if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					return
				}
				nfnetlink.Attributes(list, func(_ uint16, elem []byte) {
					key, data := parseElement(elem)
					m[key] = data
				})
			})
		})
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", t.rules.sets[id].name, err)
		}
	}
	return held, nil
}

// parseElement returns an element's key, with the end of its range if it is
// one, and its data: the value, or a verdict's code and chain.
func parseElement(elem []byte) (key, data string) {
	k, d := appendParsed(nil, nil, elem)
	return string(k), string(d)
}

// appendParsed is parseElement into buffers.
func appendParsed(key, data, elem []byte) (k, d []byte) {
	nfnetlink.Attributes(elem, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY, nftaSetElemKeyEnd:
			nfnetlink.Attributes(v, func(_ uint16, v []byte) { key = append(key, v...) })
		case unix.NFTA_SET_ELEM_DATA:
			nfnetlink.Attributes(v, func(typ uint16, v []byte) {
				if typ == unix.NFTA_DATA_VALUE {
					data = append(data, v...)
					return
				}
				nfnetlink.Attributes(v, func(typ uint16, v []byte) {
					if typ == unix.NFTA_VERDICT_CODE || typ == unix.NFTA_VERDICT_CHAIN {
						data = append(data, v...)
					}
				})
			})
		}
	})
	return key, data
}

// asHeld returns what the kernel holds of a port: the endpoints in their slots,
// and the numbers that session affinity knows them by.
func (t *table) asHeld(held *found, p *port) *port {
	have := &port{}
	if len(held[setEndpoints])+len(held[setAffinityServices]) == 0 {
		return have
	}
	if number, ok := held[setAffinityServices][string(appendFront(nil, p.key()))]; ok && p.Affinity != 0 {
		t.recall(have, parseNumber(number))
	}
	p.lists(func(f front, base uint32, _ []netip.AddrPort) {
		list := &have.Cluster
		if base == localSlots {
			list = &have.Local
		}
		if *list != nil {
			return // under another front end before
		}
		key := nfnetlink.Native.AppendUint32(appendFront(nil, f), base)
		for {
			nfnetlink.Native.PutUint32(key[len(key)-4:], base+uint32(len(*list)))
			data, ok := held[setEndpoints][string(key)]
			if !ok {
				return
			}
			*list = append(*list, parseAddrPort(data))
			if data, ok := held[setAffinitySlots][string(key)]; ok && have.sticky != nil {
				if number := parseNumber(data); number&^endpointMask == have.sticky.number {
					have.sticky.ids[(*list)[len(*list)-1]] = number & endpointMask
				}
			}
		}
	})
	return have
}

// recall gives the port the number that the kernel knows it by, if no other has
// it.
func (t *table) recall(p *port, number uint32) {
	if n := number >> endpointBits; !t.numbers[n] {
		t.numbers[n] = true
		p.sticky = &sticky{number: number, ids: make(map[netip.AddrPort]uint32)}
	}
}

func parseNumber(data string) uint32 {
	if len(data) != 4 {
		return 0
	}
	return nfnetlink.Native.Uint32([]byte(data))
}

func parseAddrPort(data string) netip.AddrPort {
	b := []byte(data)
	if len(b) < 8 {
		return netip.AddrPort{}
	}
	addr, _ := netip.AddrFromSlice(b[:len(b)-4])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[len(b)-4:]))
}

// missing returns the adds that are needed, with a delete before those that
// replace something, and strikes from held what the service needs.
func (t *table) missing(held *found, ops []op) []op {
	if !slices.ContainsFunc(held[:], func(m map[string]string) bool { return len(m) > 0 }) {
		return ops
	}
	var out []op
	for _, o := range ops {
		entry := t.b.arena[o.from:o.to]
		t.key, t.data = t.key[:0], t.data[:0]
		nfnetlink.Attributes(entry, func(_ uint16, elem []byte) { t.key, t.data = appendParsed(t.key, t.data, elem) })
		was, ok := held[o.set][string(t.key)]
		if ok {
			delete(held[o.set], string(t.key))
			if was == string(t.data) {
				continue
			}
			from := uint32(len(t.b.arena))
			t.b.arena = appendKeyOnly(t.b.arena, entry)
			out = append(out, op{o.set, false, o.phase, true, from, uint32(len(t.b.arena))})
		}
		out = append(out, o)
	}
	return out
}

// appendKeyOnly appends the list entry less its data.
func appendKeyOnly(b, entry []byte) []byte {
	at := len(b)
	b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
	nfnetlink.Attributes(entry[4:], func(typ uint16, v []byte) {
		if typ == unix.NFTA_SET_ELEM_KEY || typ == nftaSetElemKeyEnd {
			b = nfnetlink.AppendAttr(b, typ|nfnetlink.Nested, v)
		}
	})
	nfnetlink.EndNest(b, at)
	return b
}

// nodePortAddrs is the change that makes the set of node port addresses right.
func (t *table) nodePortAddrs(held *found) change {
	first := len(t.b.ops)
	for _, a := range t.rules.plan.NodePortAddrs {
		if a.Is6() != t.rules.v6 {
			continue
		}
		key := string(appendAddr(nil, a))
		if _, ok := held[setNodePortIPs][key]; ok {
			delete(held[setNodePortIPs], key)
			continue
		}
		t.b.put(setNodePortIPs, true, phaseFronts, false, func(b []byte) []byte { return appendAddrs(b, a) })
	}
	return change{ops: t.b.ops[first:len(t.b.ops):len(t.b.ops)]}
}

// leftover is the change that removes what nobody needs.
func (t *table) leftover(held *found) change {
	first := len(t.b.ops)
	for id := range setCount {
		ph := phaseFronts
		if id == setEndpoints || id == setAffinitySlots {
			ph = phaseSurplus
		}
		_, keyLen := concat(t.rules.sets[id].key)
		for key := range held[id] {
			t.b.put(id, false, ph, false, func(b []byte) []byte {
				at := len(b)
				b = nfnetlink.AppendNest(b, unix.NFTA_LIST_ELEM)
				b = appendKey(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return append(b, key[:min(int(keyLen), len(key))]...) })
				if len(key) > int(keyLen) {
					b = appendKey(b, nftaSetElemKeyEnd, func(b []byte) []byte { return append(b, key[keyLen:]...) })
				}
				nfnetlink.EndNest(b, at)
				return b
			})
		}
	}
	return change{ops: t.b.ops[first:len(t.b.ops):len(t.b.ops)]}
}

// deleteForeignChains removes chains that are none of ours any more.
func (t *table) deleteForeignChains() error {
	names, err := t.chains()
	if err != nil {
		return err
	}
	ours := make(map[string]bool)
	for _, c := range t.rules.staticChains() {
		ours[c.name] = true
	}
	for s := range t.spreads {
		ours[s.name()] = true
	}
	for _, name := range names {
		if ours[name] {
			continue
		}
		w := t.begin()
		w.deleteChain(name)
		if err := t.conn.Commit(&w.Batch); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			t.log.Warn("cannot remove a chain that is not ours", "chain", name, "err", err)
		}
	}
	return nil
}

func (t *table) chains() ([]string, error) {
	var names []string
	err := t.conn.Dump(t.fam, subsystem|unix.NFT_MSG_GETCHAIN, nil, func() { names = nil }, func(b []byte) {
		var table, name string
		nfnetlink.Attributes(b, func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				table = cString(v)
			case unix.NFTA_CHAIN_NAME:
				name = cString(v)
			}
		})
		if table == t.name {
			names = append(names, name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

func cString(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// layout tells the layout version of the table that the kernel holds; ok is
// false if there is none.
func (t *table) layout() (version string, ok bool, err error) {
	err = t.conn.Dump(t.fam, subsystem|unix.NFT_MSG_GETTABLE, nil, func() { ok = false }, func(b []byte) {
		var name, comment string
		nfnetlink.Attributes(b, func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				name = cString(v)
			case nftaTableUserdata:
				if len(v) > 2 {
					comment = cString(v[2:])
				}
			}
		})
		if name == t.name {
			version, ok = comment, true
		}
	})
	if err != nil {
		err = fmt.Errorf("list tables: %w", err)
	}
	return version, ok, err
}
