package iptables

import (
	"context"
	"errors"
	"fmt"

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
	err := f.commit(ctx, changes)
	var refusal *xtables.RestoreError
	if !errors.As(err, &refusal) {
		return nil, err
	}
	return f.salvage(ctx, want, comments, err)
}

// commented tells whether the rules that a service has now have comments.
func (f *family) commented(name catalog.ServiceName) bool { return f.services[name].comments }

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

// commit carries out changes.
func (f *family) commit(ctx context.Context, changes []*change) error {
	var in input
	f.write(&in, changes)
	if in.Len() > 0 {
		if err := f.restore(ctx, &in); err != nil {
			return err
		}
	}
	for _, c := range changes {
		f.settle(c)
	}
	return nil
}

// write writes changes in as many transactions as the back end needs.
func (f *family) write(in *input, changes []*change) {
	for rest := changes; len(rest) > 0; {
		n := f.block(rest)
		in.changes(rest[:n])
		rest = rest[n:]
	}
}

// salvage brings in what can be of services that were refused together. Of such
// an input a part may have been carried out, because each table is a
// transaction of its own: what the tables hold is looked at again.
func (f *family) salvage(ctx context.Context, want []plan.Service, comments bool, cause error) ([]dataplane.Refusal, error) {
	f.log.Warn("the rules are not taken as a whole: each service for itself", "err", cause)
	refused, err := f.split(ctx, want, comments)
	if err != nil {
		return refused, err
	}
	all := make([]plan.Service, 0, len(f.services))
	for _, h := range f.services {
		all = append(all, h.plan)
	}
	listed, err := f.list(ctx)
	if err != nil {
		return refused, err
	}
	a := f.compare(listed, all, f.commented)
	if err := f.commitLeftover(ctx, a); err != nil {
		return refused, fmt.Errorf("remove rules that are no service's: %w", err)
	}
	return refused, nil
}

func (f *family) commitLeftover(ctx context.Context, a *adoption) error {
	var in input
	if f.write(&in, a.parts(blockChains)); in.Len() == 0 {
		return nil
	}
	return f.restore(ctx, &in)
}

// split makes the tables hold these services besides what they hold. If they
// are refused, it halves them until those at fault stand alone.
func (f *family) split(ctx context.Context, want []plan.Service, comments bool) ([]dataplane.Refusal, error) {
	listed, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	a := f.compare(listed, want, func(catalog.ServiceName) bool { return comments })
	if a.frame.Len() > 0 {
		if err := f.restore(ctx, &a.frame); err != nil {
			return nil, fmt.Errorf("make the chains that services share: %w", err)
		}
	}
	err = f.commit(ctx, a.services)
	var refusal *xtables.RestoreError
	switch {
	case err == nil:
		for i := range want {
			f.settle(&change{name: want[i].Name, held: newHeld(&want[i], f.style.service(&want[i], comments), comments)})
		}
		return nil, nil
	case !errors.As(err, &refusal):
		return nil, err
	case len(want) == 1:
		return []dataplane.Refusal{{Service: want[0].Name, Err: err}}, nil
	}
	half := len(want) / 2
	first, err := f.split(ctx, want[:half], comments)
	if err != nil {
		return first, err
	}
	second, err := f.split(ctx, want[half:], comments)
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
