package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// listChains is the number of chains up to which iptables-save lists the rules
// of table nat. That of the nft back end asks the kernel about each chain
// alone: 0.4 s for eleven thousand, but minutes for a hundred thousand. Beyond
// it only the chains that services share are listed. Of the others the kernel
// tells how often each is used: once by each of its rules, and by each jump to
// it.
const listChains = 30000

// listing is what a table holds.
type listing struct {
	xtables.Table
	// counted has the chains whose rules were not listed, with their uses.
	counted map[string]uint32
}

// list lists the tables that we have a part in.
func (f *family) list(ctx context.Context) (map[string]listing, error) {
	listed := make(map[string]listing)
	for _, table := range f.tables() {
		l, err := f.listTable(ctx, table)
		if err != nil {
			return nil, fmt.Errorf("list table %s: %w", table, err)
		}
		listed[table] = l
	}
	return listed, nil
}

func (f *family) listTable(ctx context.Context, table string) (listing, error) {
	if f.progs.Backend == xtables.NFT && table == "nat" {
		l, err := f.countUses(ctx)
		if err != nil || l.counted != nil {
			return l, err
		}
	}
	text, err := f.progs.Save(ctx, table)
	if err != nil {
		return listing{}, err
	}
	return listing{Table: xtables.Parse(string(text))}, nil
}

// countUses lists table nat if it is too big for iptables-save.
func (f *family) countUses(ctx context.Context) (listing, error) {
	uses := make(map[string]uint32)
	chains, err := f.progs.Chains()
	for _, c := range chains {
		if c.Table == "nat" {
			uses[c.Name] = c.Uses
		}
	}
	if err != nil || len(uses) <= f.listChains {
		return listing{}, err
	}
	l := listing{Table: xtables.Table{Chains: make(map[string][]string, len(uses))}, counted: make(map[string]uint32, len(uses))}
	for chain, n := range uses {
		l.Chains[chain] = nil
		switch {
		case isServiceChain(chain):
			l.counted[chain] = n
		case n > 0:
			text, err := f.progs.Run(ctx, "-t", "nat", "-S", chain)
			if err != nil {
				return listing{}, err
			}
			l.Chains[chain] = xtables.Parse(string(text)).Chains[chain]
		}
	}
	return l, nil
}

// jumpsTo counts the jumps to each chain that these services' rules have.
func (f *family) jumpsTo(services []plan.Service) map[string]uint32 {
	count := make(map[string]uint32)
	note := func(rule string) {
		if _, target, ok := strings.Cut(rule, "-j KUBE-"); ok {
			count["KUBE-"+target]++
		}
	}
	for i := range services {
		r := f.style.service(&services[i], false)
		for _, c := range r.chains {
			for _, rule := range c.rules {
				note(rule)
			}
		}
		for _, list := range r.shared {
			for _, rule := range list {
				note(rule)
			}
		}
	}
	return count
}

// holds tells whether a chain has these rules. If they were only counted it is
// trusted to have what we wrote, if the uses are right.
func (l *listing) holds(c *chain, wrote *rules, jumps uint32) bool {
	if n, ok := l.counted[c.name]; ok {
		return wrote != nil && n == uint32(len(c.rules))+jumps && slices.ContainsFunc(wrote.chains, func(w chain) bool {
			return w.name == c.name && slices.Equal(w.rules, c.rules)
		})
	}
	rules, ok := l.Chains[c.name]
	return ok && slices.Equal(rules, c.rules)
}
