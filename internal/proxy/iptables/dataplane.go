// Package iptables makes the kernel hold a plan in the chains that kube-proxy's
// iptables mode has: the same names, rules and meaning. It goes by the programs
// iptables-restore and iptables-save, of either back end.
//
// Read in this order: names.go (the chains), service.go (the rules of a
// service), base.go (what all services share), restore.go (what a change of a
// service costs), commit.go (how it gets to the kernel), adopt.go (how a start
// takes over what is there), monitor.go (what others do to it).
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// Dataplane holds plans in the kernel's tables of the network namespace it was
// opened in. Its methods may be called by several goroutines.
type Dataplane struct {
	mu       sync.Mutex
	families []*family
}

// family is the tables of one address family and what we know they hold.
type family struct {
	progs *xtables.Programs
	style style
	log   *slog.Logger

	services  map[catalog.ServiceName]*held
	endpoints int // endpoints that services' ports lead to, in all

	listChains int // see there

	nodeDNS nodeDNS
	watch   *watch // nil unless somebody watches
	adopted bool   // the tables hold services
	stats   stats
}

// held is what the kernel holds for a service.
type held struct {
	plan     plan.Service
	comments bool // its endpoints' rules have them
	size     int  // endpoints that its ports lead to
	// Rules by table.
	nat, filter int
}

// Open finds the programs and chooses the back end. The kernel's tables are not
// touched before Adopt.
func Open(cfg dataplane.Config) (*Dataplane, error) {
	d := &Dataplane{}
	for _, f := range []struct{ on, v6 bool }{{cfg.IPv4, false}, {cfg.IPv6, true}} {
		if !f.on {
			continue
		}
		fam, err := openFamily(&cfg, f.v6)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("iptables: %w", err), d.Close())
		}
		d.families = append(d.families, fam)
	}
	return d, nil
}

func openFamily(cfg *dataplane.Config, v6 bool) (*family, error) {
	f := &family{services: make(map[catalog.ServiceName]*held), listChains: listChains}
	f.log = cfg.Logger.With("family", familyName(v6))
	progs, err := xtables.Find(context.Background(), f.log, v6)
	if err != nil {
		return nil, err
	}
	f.progs = progs
	f.style = style{v6: v6, rules: cfg.Rules, mark: 1 << cfg.MasqueradeBit, randomFully: progs.RandomFully(), accounts: make(map[string]bool)}
	f.nodeDNS.seconds = 3
	f.stats.total, f.stats.frame = make(map[string]int), make(map[string]int)
	if err := progs.Do(func() error {
		liberal, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
		f.style.liberal = err == nil && strings.TrimSpace(string(liberal)) != "0"
		f.style.accounts = ensureAccounts(f.log)
		return nil
	}); err != nil {
		return nil, err
	}
	return f, nil
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// Close ends the upkeep. The tables stay and go on working.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, f := range d.families {
		errs = append(errs, f.progs.Close())
	}
	return errors.Join(errs...)
}

// Adopt makes the kernel hold these services and no others, changing only what
// differs.
func (d *Dataplane) Adopt(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.each(func(f *family) ([]dataplane.Refusal, error) { return f.adopt(ctx, services) })
}

// Apply makes the kernel hold these services as planned; a plan without ports
// removes the service.
func (d *Dataplane) Apply(ctx context.Context, services []plan.Service) ([]dataplane.Refusal, error) {
	return d.each(func(f *family) ([]dataplane.Refusal, error) { return f.apply(ctx, services) })
}

// SetRules puts other rules into force: Adopt is to be called next.
func (d *Dataplane) SetRules(r plan.Rules) error {
	_, err := d.each(func(f *family) ([]dataplane.Refusal, error) {
		f.style.rules = r
		return nil, nil
	})
	return err
}

// Sweep has nothing to do: what a change leaves unused goes with it.
func (d *Dataplane) Sweep() error { return nil }

// KeepNodeDNS makes queries to Rules.NodeDNS stay on this node for d more;
// with 0 they go to the endpoints of the service at once.
func (d *Dataplane) KeepNodeDNS(timeout time.Duration) error {
	_, err := d.each(func(f *family) ([]dataplane.Refusal, error) { return nil, f.keepDNS(timeout) })
	return err
}

// Counters counts nothing: to list the table for that would cost more than it
// tells.
func (d *Dataplane) Counters() (map[dataplane.Flow]dataplane.Count, error) { return nil, nil }

// Rivals names what another service proxy left in the kernel, or keeps there.
// The chains of a kube-proxy in iptables mode are no rival's: they are taken
// over.
func (d *Dataplane) Rivals() (found []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.families {
		names, err := f.rivals()
		if err != nil {
			return nil, fmt.Errorf("iptables (%s): %w", familyName(f.style.v6), err)
		}
		found = append(found, names...)
	}
	return found, nil
}

// each calls a method for each family, at the same time: most of it is waiting
// for a program.
func (d *Dataplane) each(do func(*family) ([]dataplane.Refusal, error)) ([]dataplane.Refusal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused := make([][]dataplane.Refusal, len(d.families))
	errs := make([]error, len(d.families))
	var wg sync.WaitGroup
	for i, f := range d.families {
		wg.Go(func() {
			if refused[i], errs[i] = do(f); errs[i] != nil {
				errs[i] = fmt.Errorf("iptables (%s): %w", familyName(f.style.v6), errs[i])
			}
		})
	}
	wg.Wait()
	var all []dataplane.Refusal
	for _, r := range refused {
		all = append(all, r...)
	}
	return all, errors.Join(errs...)
}
