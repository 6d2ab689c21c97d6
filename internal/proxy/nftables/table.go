package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// table is the table of one family and what we know it holds.
type table struct {
	name  string
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

	w batch // the transaction being built
	b builder

	key, data []byte // of an element that is compared
}

func newTable(c *nfnetlink.Conn, v6 bool, cfg *dataplane.Config, name string) *table {
	t := &table{
		name:       name,
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
	t.w.family, t.w.table = t.fam, t.name
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

// apply makes the kernel hold the services as planned. Each replaces what its
// name had before.
func (t *table) apply(ctx context.Context, want []plan.Service) ([]dataplane.Refusal, error) {
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
func (t *table) run(ctx context.Context, changes []change) ([]dataplane.Refusal, error) {
	missing, err := t.makeSpreads()
	if err != nil {
		return nil, err
	}
	var refused []dataplane.Refusal
	if len(missing) > 0 {
		changes = slices.DeleteFunc(changes, func(c change) bool {
			err := c.new.needs(missing)
			if err != nil {
				t.freeNumbers(c.new, c.old)
				refused = append(refused, dataplane.Refusal{Service: c.name, Err: err})
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
