package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// table is the table of one family and what we know it holds.
type table struct {
	conn  *nfnetlink.Conn
	rules rules
	log   *slog.Logger
	fam   byte

	services map[catalog.ServiceName]*service
	// Addresses that several services or ports may share, with how often.
	clusterIPs map[netip.Addr]int
	hairpins   map[netip.Addr]int
	spreads    map[spread]int  // chains in the kernel, with how many elements go there
	affinity   bool            // the affinity map was made
	numbers    map[uint32]bool // of service ports with affinity: true if one has it
	dnsUntil   time.Time       // when the node-dns elements time out; zero if there are none

	w batch // the transaction being built
	b builder

	key, data []byte // of an element that is compared
}

func newTable(c *nfnetlink.Conn, v6 bool, cfg *Config) *table {
	t := &table{
		conn:       c,
		rules:      rules{v6: v6, r: registersOf(v6), sets: setSpecs(v6), plan: cfg.Rules, mark: 1 << cfg.MasqueradeBit, counters: cfg.Counters, bytes: cfg.CountBytes},
		fam:        unix.NFPROTO_IPV4,
		services:   make(map[catalog.ServiceName]*service),
		clusterIPs: make(map[netip.Addr]int),
		hairpins:   make(map[netip.Addr]int),
		spreads:    make(map[spread]int),
		numbers:    make(map[uint32]bool),
	}
	if v6 {
		t.fam = unix.NFPROTO_IPV6
	}
	t.log = cfg.Logger.With("family", t.family())
	t.b.need = func(s spread) {
		if _, ok := t.spreads[s]; !ok {
			t.spreads[s] = -1 // wanted, not made
		}
	}
	t.b.number = t.takeNumber
	return t
}

// takeNumber takes the lowest free number for a service port with affinity.
func (t *table) takeNumber() (uint32, bool) {
	for n := uint32(0); n < maxNumber; n++ {
		if _, taken := t.numbers[n]; !taken {
			t.numbers[n] = true
			return n, true
		}
	}
	return 0, false
}

// freeNumbers gives back the numbers that s has and other has not.
func (t *table) freeNumbers(s, other *service) {
	if s == nil {
		return
	}
	for i := range s.ports {
		p := &s.ports[i]
		if p.sticky == nil {
			continue
		}
		if o := other.port(p); o == nil || o.sticky == nil || o.sticky.number != p.sticky.number {
			delete(t.numbers, p.sticky.number>>endpointBits)
		}
	}
}

func (t *table) family() string {
	if t.rules.v6 {
		return "IPv6"
	}
	return "IPv4"
}

func (t *table) begin() *batch {
	t.w.family = t.fam
	t.w.Reset(t.fam, t.conn)
	return &t.w
}

// skeleton makes the table, its sets and the chains that do not depend on
// services, in one transaction. What is there already stays; rules of chains
// that exist are replaced without a moment without them.
func (t *table) skeleton() error {
	w := t.begin()
	w.addTable()
	for id := range t.rules.sets {
		if t.rules.made(setID(id)) {
			w.addSet(uint32(id+1), &t.rules.sets[id])
		}
	}
	chains := t.rules.staticChains()
	for i := range chains {
		w.addChain(&chains[i])
	}
	for i := range chains {
		if err := w.setRules(&chains[i]); err != nil {
			return err
		}
	}
	return t.conn.Commit(&w.Batch)
}

// makeSpreads makes the chains that were found wanting. It returns those that
// the kernel refuses.
func (t *table) makeSpreads() (refused map[spread]error, err error) {
	var missing []spread
	for s, n := range t.spreads {
		if n < 0 {
			missing = append(missing, s)
		}
	}
	// A transaction's size is bounded; a chain is at most 3 kB.
	for part := range slices.Chunk(missing, 32) {
		err := t.commitSpreads(part)
		for i := 0; err != nil && i < len(part); i++ {
			// One at fault must not keep the others out.
			var refusal *nfnetlink.Error
			switch err := t.commitSpreads(part[i : i+1]); {
			case err == nil:
			case !errors.As(err, &refusal) || refusal.Errno == unix.EPERM:
				return nil, fmt.Errorf("make the chains that spread connections: %w", err)
			default:
				if refused == nil {
					refused = make(map[spread]error)
				}
				refused[part[i]] = fmt.Errorf("make chain %s: %w", part[i].name(), err)
			}
		}
	}
	return refused, nil
}

func (t *table) commitSpreads(list []spread) error {
	w := t.begin()
	affinity := slices.ContainsFunc(list, func(s spread) bool { return s.affinity != 0 })
	if affinity && !t.affinity {
		w.addSet(uint32(setAffinity+1), &t.rules.sets[setAffinity])
	}
	for _, s := range list {
		c := t.rules.spreadChain(s)
		w.addChain(&c)
		if err := w.setRules(&c); err != nil {
			return err
		}
	}
	if err := t.conn.Commit(&w.Batch); err != nil {
		return err
	}
	t.affinity = t.affinity || affinity
	for _, s := range list {
		t.spreads[s] = 0
	}
	return nil
}

// needs returns why one of the chains that the service goes to is missing.
func (s *service) needs(missing map[spread]error) (err error) {
	if s == nil {
		return nil
	}
	for i := range s.ports {
		s.ports[i].elements(func(element) {}, func(sp spread) {
			if e, ok := missing[sp]; ok {
				err = e
			}
		})
	}
	return err
}

// Refusal is a service that the kernel would not take.
type Refusal struct {
	Service catalog.ServiceName
	Err     error
}

// apply makes the kernel hold the services as planned. Each replaces what its
// name had before.
func (t *table) apply(ctx context.Context, want []plan.Service) ([]Refusal, error) {
	t.b.reset()
	changes := make([]change, 0, len(want))
	for i := range want {
		old := t.services[want[i].Name]
		c := t.b.change(want[i].Name, old, &want[i], t.rules.v6, old.port)
		if c.old != nil || c.new != nil {
			changes = append(changes, c)
		}
	}
	// What is released comes before what may be claimed.
	slices.SortStableFunc(changes, func(a, b change) int { return order(a) - order(b) })
	return t.run(ctx, changes)
}

func order(c change) int {
	if c.new == nil {
		return 0
	}
	return 1
}

// run carries changes out in transactions of bounded size.
func (t *table) run(ctx context.Context, changes []change) ([]Refusal, error) {
	missing, err := t.makeSpreads()
	if err != nil {
		return nil, err
	}
	var refused []Refusal
	if len(missing) > 0 {
		changes = slices.DeleteFunc(changes, func(c change) bool {
			err := c.new.needs(missing)
			if err != nil {
				t.freeNumbers(c.new, c.old)
				refused = append(refused, Refusal{c.name, err})
			}
			return err != nil
		})
	}
	for len(changes) > 0 {
		if err := ctx.Err(); err != nil {
			return refused, err
		}
		n, size := 0, 0
		for n < len(changes) {
			s := changes[n].size()
			if n > 0 && size+s > t.conn.MaxBatch {
				break
			}
			size += s
			n++
		}
		r, err := t.commit(changes[:n])
		refused = append(refused, r...)
		if err != nil {
			return refused, err
		}
		changes = changes[n:]
	}
	return refused, nil
}

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
func (t *table) commit(changes []change) ([]Refusal, error) {
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
		return []Refusal{{changes[0].name, err}}, nil
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

// elementList is a message that adds to a set or deletes from it; it becomes
// several when it gets too long.
type elementList struct {
	w    *batch
	set  setID
	name string
	add  bool
	nest int // 0 when no message is open
}

func (t *table) list(w *batch, set setID, add bool) elementList {
	return elementList{w: w, set: set, name: t.rules.sets[set].name, add: add}
}

// The length of an attribute has 16 bits.
const maxElementList = 60000

func (l *elementList) open(more int) {
	if l.nest != 0 && len(l.w.Buf)-l.nest+more > maxElementList {
		l.close()
	}
	if l.nest != 0 {
		return
	}
	if l.add {
		l.w.start(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	} else {
		l.w.start(unix.NFT_MSG_DELSETELEM, 0)
	}
	l.w.String(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	l.w.String(unix.NFTA_SET_ELEM_LIST_SET, l.name)
	l.nest = l.w.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (l *elementList) close() {
	if l.nest != 0 {
		l.w.EndNest(l.nest)
		l.w.End()
		l.nest = 0
	}
}

func (l *elementList) put(arena []byte, o *op) {
	if o.set != l.set || o.add != l.add {
		return
	}
	l.open(int(o.to - o.from))
	l.w.Buf = append(l.w.Buf, arena[o.from:o.to]...)
}

func (l *elementList) addrs(a ...netip.Addr) {
	l.open(128)
	l.w.Buf = appendAddrs(l.w.Buf, a...)
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

// sweep removes chains that nothing goes to any more. It is not done with the
// change that left them: endpoint counts go back and forth, and kernels before
// 6.2 hold a chain for a moment after the last element that names it.
func (t *table) sweep() error {
	var first error
	for s, n := range t.spreads {
		if n != 0 {
			continue
		}
		w := t.begin()
		w.deleteChain(s.name())
		switch err := t.conn.Commit(&w.Batch); {
		case err == nil, errors.Is(err, unix.ENOENT):
			delete(t.spreads, s)
		case errors.Is(err, unix.EBUSY): // next time
		case first == nil:
			first = fmt.Errorf("delete chain %s: %w", s.name(), err)
		}
	}
	return first
}

// keepDNS makes the elements that keep queries on this node last for d more;
// zero removes them.
func (t *table) keepDNS(d time.Duration) error {
	now := time.Now()
	w := t.begin()
	var elements []element
	for _, a := range t.rules.plan.NodeDNS {
		if a.Addr().Is6() == t.rules.v6 {
			elements = append(elements,
				element{set: setNodeDNS, front: front{a.Addr(), a.Port(), catalog.UDP}},
				element{set: setNodeDNS, front: front{a.Addr(), a.Port(), catalog.TCP}})
		}
	}
	if len(elements) == 0 {
		return nil
	}
	// Kernels before 6.12 cannot set a new timeout on an element: it is
	// replaced. Adding first makes the delete valid whether it is there or has
	// timed out.
	t.nodeDNS(w, elements, true, time.Hour)
	t.nodeDNS(w, elements, false, 0)
	if d > 0 {
		t.nodeDNS(w, elements, true, d)
	}
	if err := t.conn.Commit(&w.Batch); err != nil {
		return fmt.Errorf("refresh set %s: %w", t.rules.sets[setNodeDNS].name, err)
	}
	t.dnsUntil = now.Add(d)
	return nil
}

func (t *table) nodeDNS(w *batch, elements []element, add bool, timeout time.Duration) {
	l := t.list(w, setNodeDNS, add)
	for _, e := range elements {
		l.open(128)
		at := len(w.Buf)
		w.Buf = nfnetlink.AppendNest(w.Buf, unix.NFTA_LIST_ELEM)
		w.Buf = appendKey(w.Buf, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return appendFront(b, e.front) })
		if add {
			ms := uint64(timeout.Milliseconds())
			w.Buf = nfnetlink.AppendAttr(w.Buf, unix.NFTA_SET_ELEM_TIMEOUT, []byte{byte(ms >> 56), byte(ms >> 48), byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)})
		}
		nfnetlink.EndNest(w.Buf, at)
	}
	l.close()
}
