// Package nftables makes the kernel hold a plan, in nf_tables, over netlink.
//
// It owns `table ip rutter` and `table ip6 rutter` and touches nothing else.
// Read in this order: layout.go (what the tables look like), chains.go (the
// chains that all services share), spread.go and affinity.go (how a connection
// finds its endpoint), change.go (what a change of a service costs), commit.go
// (how it gets to the kernel), adopt.go (how a start takes over what a former
// process left), monitor.go (what others do to the tables).
package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Dataplane holds plans in the kernel's tables of the network namespace it was
// opened in. Its methods may be called by several goroutines.
type Dataplane struct {
	name   string // of the tables
	mu     sync.Mutex
	conn   *nfnetlink.Conn
	tables []*table
}

// Open connects to the kernel and makes the tables, without services, unless
// they exist; then they are left working as they are until Adopt.
func Open(cfg dataplane.Config) (*Dataplane, error) { return open(cfg, tableName, false) }

// OpenRelayed opens tables of another name, for plans whose endpoints are
// sockets of this node: what goes to these keeps its source, whatever the rules
// say. Connections from there to the endpoints carry the masquerade mark.
func OpenRelayed(cfg dataplane.Config, name string) (*Dataplane, error) { return open(cfg, name, true) }

func open(cfg dataplane.Config, name string, relayed bool) (*Dataplane, error) {
	c, err := nfnetlink.Dial()
	if err != nil {
		return nil, explain(err)
	}
	d := &Dataplane{name: name, conn: c}
	for _, f := range []struct{ on, v6 bool }{{cfg.IPv4, false}, {cfg.IPv6, true}} {
		if !f.on {
			continue
		}
		t := newTable(c, f.v6, &cfg, name)
		t.rules.relayed = relayed
		if err := t.open(); err != nil {
			c.Close()
			return nil, explain(err)
		}
		d.tables = append(d.tables, t)
	}
	return d, nil
}

func (t *table) open() error {
	version, exists, err := t.layout()
	if err != nil {
		return err
	}
	if exists && version != layoutVersion {
		t.log.Info("the kernel's table has another layout and is replaced", "table", t.name, "found", version, "want", layoutVersion)
		w := t.begin()
		w.deleteTable()
		if err := t.conn.Commit(&w.Batch); err != nil {
			return fmt.Errorf("delete table %s: %w", t.name, err)
		}
	}
	if err := t.skeleton(); err != nil {
		return fmt.Errorf("make table %s (%s): %w", t.name, t.family(), err)
	}
	return nil
}

// explain names what is missing on this host when the kernel says no.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("nftables: %w: programming services needs CAP_NET_ADMIN in this network namespace: run as root, or grant the capability", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("nftables: %w: this kernel lacks nf_tables or a part of it: load modules nf_tables, nft_chain_nat, nft_masq, nft_reject, nft_fib, nft_numgen, or use Linux 5.13 or later with CONFIG_NF_TABLES", err)
	}
	return fmt.Errorf("nftables: %w", err)
}

// Close ends the connection to the kernel. The tables stay and go on working.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn.Close()
}

// Adopt makes the kernel hold these services and no others, changing only what
// differs. Services that the kernel refuses are returned, the others are in
// place. After an error the kernel holds what it held before, or a part of the
// way: Adopt is to be called again.
func (d *Dataplane) Adopt(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.each(func(t *table) ([]dataplane.Refusal, error) { return t.adopt(ctx, services) })
}

// Apply makes the kernel hold these services as planned; a plan without ports
// removes the service. Others are not touched. As to refusals and errors it is
// like Adopt.
func (d *Dataplane) Apply(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.each(func(t *table) ([]dataplane.Refusal, error) { return t.apply(ctx, services) })
}

// Sweep removes what past changes left unused.
func (d *Dataplane) Sweep() error {
	_, err := d.each(func(t *table) ([]dataplane.Refusal, error) { return nil, t.sweep() })
	return err
}

// KeepNodeDNS makes queries to Rules.NodeDNS stay on this node for d more;
// with 0 they go to the endpoints of the service at once.
func (d *Dataplane) KeepNodeDNS(timeout time.Duration) error {
	_, err := d.each(func(t *table) ([]dataplane.Refusal, error) { return nil, t.keepDNS(timeout) })
	return err
}

func (d *Dataplane) each(f func(*table) ([]dataplane.Refusal, error)) ([]dataplane.Refusal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []dataplane.Refusal
	var errs []error
	for _, t := range d.tables {
		refused, err := f(t)
		all = append(all, refused...)
		if err != nil {
			errs = append(errs, fmt.Errorf("nftables (%s): %w", t.family(), err))
		}
	}
	return all, errors.Join(errs...)
}

// Cleanup removes the tables of both families.
func Cleanup() error { return deleteTables(tableName) }

// CleanupRelayed removes the tables that OpenRelayed made.
func CleanupRelayed(name string) error { return deleteTables(name) }

// deleteTables removes the tables of a name in both families, if they exist.
func deleteTables(name string) error {
	c, err := nfnetlink.Dial()
	if err != nil {
		return explain(err)
	}
	defer c.Close()
	for _, fam := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		var w batch
		w.Reset(fam, c)
		w.table = name
		w.deleteTable()
		err := c.Commit(&w.Batch)
		// A kernel without nf_tables has no tables either.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return explain(fmt.Errorf("delete table %s: %w", name, err))
		}
	}
	return nil
}

// SetRules puts other rules into force. The sets of services are as they were:
// Adopt is to be called next.
func (d *Dataplane) SetRules(r plan.Rules) error {
	_, err := d.each(func(t *table) ([]dataplane.Refusal, error) {
		t.rules.plan = r
		return nil, t.skeleton()
	})
	return err
}
