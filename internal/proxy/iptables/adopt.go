package iptables

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// adoption is the way from what the tables hold to what they must hold. Its
// three parts are carried out in this order, so that no packet finds neither
// the old nor the new.
type adoption struct {
	frame    input     // chains that all services share, and the jumps to them
	services []*change // what they lack
	leftover change    // what is no service's any more
	comments bool
}

func (a *adoption) empty() bool {
	return a.frame.Len() == 0 && len(a.services) == 0 && a.leftover.empty()
}

// parts is what is left over, in changes of so many chains.
func (a *adoption) parts(size int) []*change {
	first := a.leftover
	first.stale = nil
	list := []*change{&first}
	for block := range slices.Chunk(a.leftover.stale, size) {
		list = append(list, &change{stale: block})
	}
	return list
}

// adopt makes the kernel hold these services and no others.
func (f *family) adopt(ctx context.Context, want []plan.Service) ([]dataplane.Refusal, error) {
	listed, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	a := f.compare(listed, want, nil)
	names := serviceNames(want)
	for name := range f.services {
		if !names[name] {
			f.settle(&change{name: name})
		}
	}
	var all input
	all.Write(a.frame.Bytes())
	f.write(&all, a.services)
	f.write(&all, a.parts(blockChains))
	if f.progs.Backend == xtables.Legacy {
		all.join()
	}
	f.adopted = false
	if all.Len() > 0 {
		err = f.restore(ctx, &all)
	}
	f.adopted = true
	var refusal *xtables.RestoreError
	switch {
	case err == nil:
		for _, c := range a.services {
			f.settle(c)
		}
		return nil, nil
	case !errors.As(err, &refusal):
		return nil, err
	}
	return f.salvage(ctx, want, a.comments, err)
}

func (f *family) tables() []string {
	tables := []string{"mangle", "filter", "nat"}
	if f.hasNodeDNS() {
		tables = append(tables, "raw")
	}
	return tables
}

// compare finds what to do to what is listed so that it holds the services. If
// as is not nil it tells which style a service was written in; else all are
// written in one.
func (f *family) compare(listed map[string]listing, want []plan.Service, as func(catalog.ServiceName) bool) *adoption {
	a := &adoption{}
	for _, table := range f.tables() {
		f.frame(&a.frame, table, listed[table])
	}
	comments := true
	if as == nil {
		n := 0
		for i := range want {
			n += endpoints(&want[i])
		}
		comments = n <= largeCluster
	}
	a.comments = comments
	// What is listed and in no service's rules is left over.
	nat := listed["nat"]
	var jumps map[string]uint32
	if nat.counted != nil {
		jumps = f.jumpsTo(want)
	}
	used := make(map[string]bool, len(nat.Chains))
	var left [sharedCount]map[string]int
	for i, c := range sharedChains {
		left[i] = make(map[string]int)
		for _, r := range listed[c.table].Chains[c.chain] {
			left[i][r]++
		}
	}
	for i := range want {
		s := &want[i]
		if as != nil {
			comments = as(s.Name)
		}
		r := f.style.service(s, comments)
		c := &change{name: s.Name, held: newHeld(s, r, comments)}
		var wrote *rules
		if h := f.services[s.Name]; nat.counted != nil && h != nil {
			wrote = f.style.service(&h.plan, h.comments)
		}
		for _, ch := range r.chains {
			if !nat.holds(&ch, wrote, jumps[ch.name]) {
				c.chains = append(c.chains, ch)
			}
			used[ch.name] = true
		}
		for i := range sharedCount {
			for _, rule := range r.shared[i] {
				if left[i][rule] > 0 {
					left[i][rule]--
				} else {
					c.insert[i] = append(c.insert[i], rule)
				}
			}
		}
		if c.empty() {
			if as == nil {
				f.settle(c)
			}
			continue
		}
		a.services = append(a.services, c)
	}
	for _, rule := range f.style.last() {
		left[natServices][rule]--
	}
	for i, c := range sharedChains {
		for _, rule := range listed[c.table].Chains[c.chain] {
			if left[i][rule] > 0 {
				left[i][rule]--
				a.leftover.remove[i] = append(a.leftover.remove[i], rule)
			}
		}
	}
	for name := range nat.Chains {
		if isServiceChain(name) && !used[name] {
			a.leftover.stale = append(a.leftover.stale, name)
		}
	}
	sortByJumps(a.leftover.stale)
	return a
}

// frame writes what a table lacks besides services' rules.
func (f *family) frame(in *input, table string, listed listing) {
	var t input
	for _, c := range sharedChains {
		if _, ok := listed.Chains[c.chain]; c.table == table && !ok {
			t.declare(c.chain)
		}
	}
	fixed := f.fixed(table)
	f.stats.frames(table, fixed)
	missing := make([]bool, len(fixed))
	for i := range fixed {
		rules, ok := listed.Chains[fixed[i].name]
		if missing[i] = !ok || !slices.Equal(rules, fixed[i].rules); missing[i] {
			t.declare(fixed[i].name)
		}
	}
	// kubelet's chain may have kubelet's rules.
	if _, ok := listed.Chains[kubeletChain]; table == "filter" && !ok && !slices.ContainsFunc(fixed, func(c chain) bool { return c.name == kubeletChain }) {
		t.declare(kubeletChain)
	}
	for i := range fixed {
		if missing[i] {
			t.fill(&fixed[i])
		}
	}
	if last := f.style.last(); table == "nat" {
		rules := listed.Chains[servicesChain]
		if n := len(rules) - len(last); n < 0 || !slices.Equal(rules[n:], last) {
			for _, r := range last {
				if slices.Contains(rules, r) {
					t.line("-D", servicesChain, r)
				}
				t.line("-A", servicesChain, r)
			}
		}
	}
	for _, j := range f.jumps() {
		if j.table == table && !slices.Contains(listed.Chains[j.from], j.rule()) {
			t.line("-I", j.from, j.rule())
		}
	}
	if t.Len() > 0 {
		in.line("*" + table)
		in.Write(t.Bytes())
		in.line("COMMIT")
	}
}

// verify tells whether the tables hold what we think.
func (f *family) verify(ctx context.Context) (bool, error) {
	listed, err := f.list(ctx)
	if err != nil {
		return false, err
	}
	want := make([]plan.Service, 0, len(f.services))
	for _, h := range f.services {
		want = append(want, h.plan)
	}
	return f.compare(listed, want, f.commented).empty(), nil
}

// join makes one transaction per table of several, for the back end that
// replaces the whole table with each: all that declares chains first.
func (in *input) join() {
	var order []string
	parts := make(map[string]*[2]strings.Builder)
	var table *[2]strings.Builder
	for line := range strings.Lines(in.String()) {
		switch {
		case line[0] == '*':
			name := strings.TrimSpace(line[1:])
			if parts[name] == nil {
				parts[name] = new([2]strings.Builder)
				order = append(order, name)
			}
			table = parts[name]
		case line[0] == ':':
			table[0].WriteString(line)
		case line != "COMMIT\n":
			table[1].WriteString(line)
		}
	}
	in.Reset()
	for _, name := range order {
		in.line("*" + name)
		in.WriteString(parts[name][0].String())
		in.WriteString(parts[name][1].String())
		in.line("COMMIT")
	}
}
