package iptables

import (
	"context"
	"errors"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// largeCluster is the number of endpoints from which on rules of endpoints have
// no comments, as with kube-proxy.
const largeCluster = 1000

// blockChains bounds the chains in one transaction of the nft back end.
// iptables-nft looks for each chain that a rule names in a list that it keeps
// sorted: 110,000 chains in one transaction take it more than ten minutes, in
// parts 20 s. The legacy back end replaces the table with each transaction:
// there everything goes into one.
const blockChains = 500

// apply makes the kernel hold the services as planned.
func (f *family) apply(ctx context.Context, want []plan.Service) ([]dataplane.Refusal, error) {
	comments := f.endpoints <= largeCluster
	var changes []*change
	for i := range want {
		s := &want[i]
		old := f.services[s.Name]
		c := &change{name: s.Name}
		before, after := &rules{}, f.style.service(s, comments)
		if old != nil {
			before = f.style.service(&old.plan, old.comments)
		}
		c.held = newHeld(s, after, comments)
		c.differ(before, after)
		if c.empty() {
			f.settle(c)
			continue
		}
		changes = append(changes, c)
	}
	return f.commit(ctx, changes)
}

func newHeld(s *plan.Service, r *rules, comments bool) *held {
	if len(r.chains) == 0 && r.sharedRules() == 0 {
		return nil
	}
	h := &held{plan: *s, comments: comments, size: endpoints(s)}
	for i := range r.chains {
		h.nat += len(r.chains[i].rules)
	}
	for i := range sharedCount {
		if sharedChains[i].table == "nat" {
			h.nat += len(r.shared[i])
		} else {
			h.filter += len(r.shared[i])
		}
	}
	return h
}

func (r *rules) sharedRules() (n int) {
	for i := range sharedCount {
		n += len(r.shared[i])
	}
	return n
}

// endpoints counts those that the service's ports lead to.
func endpoints(s *plan.Service) (n int) {
	for i := range s.Ports {
		n += max(len(s.Ports[i].Cluster), len(s.Ports[i].Local))
	}
	return n
}

// commit carries out changes. If they are refused they are split, until those
// at fault stand alone.
func (f *family) commit(ctx context.Context, changes []*change) ([]dataplane.Refusal, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	var in input
	for rest := changes; len(rest) > 0; {
		n := f.block(rest)
		in.changes(rest[:n])
		rest = rest[n:]
	}
	err := f.restore(ctx, &in)
	var refusal *xtables.RestoreError
	switch {
	case err == nil:
		for _, c := range changes {
			f.settle(c)
		}
		return nil, nil
	case !errors.As(err, &refusal):
		return nil, err
	case len(changes) == 1:
		return []dataplane.Refusal{{Service: changes[0].name, Err: err}}, nil
	}
	half := len(changes) / 2
	first, err := f.commit(ctx, changes[:half])
	if err != nil {
		return first, err
	}
	second, err := f.commit(ctx, changes[half:])
	return append(first, second...), err
}

// block tells how many of the changes go into the next transaction.
func (f *family) block(changes []*change) int {
	if f.progs.Backend != xtables.NFT {
		return len(changes)
	}
	chains := 0
	for i, c := range changes {
		if chains += len(c.chains) + len(c.stale); chains > blockChains && i > 0 {
			return i
		}
	}
	return len(changes)
}

// settle records that the kernel holds what the change makes.
func (f *family) settle(c *change) {
	if old := f.services[c.name]; old != nil {
		f.endpoints -= old.size
		f.stats.holds(old, -1)
	}
	f.stats.holds(c.held, 1)
	if c.held == nil {
		delete(f.services, c.name)
		return
	}
	f.endpoints += c.held.size
	f.services[c.name] = c.held
}

// restore gives input to the program, and lets who watches know that it is our
// doing.
func (f *family) restore(ctx context.Context, in *input) error {
	defer f.watch.end()
	err := f.progs.RestoreAs(ctx, in.Bytes(), f.watch.ours)
	if err != nil {
		f.stats.failed(f.adopted)
	} else {
		f.stats.wrote(in.Bytes())
	}
	return err
}

func serviceNames(list []plan.Service) map[catalog.ServiceName]bool {
	names := make(map[catalog.ServiceName]bool, len(list))
	for i := range list {
		names[list[i].Name] = true
	}
	return names
}
