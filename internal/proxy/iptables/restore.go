package iptables

import (
	"bytes"
	"slices"

	"github.com/rutter-project/rutter/internal/catalog"
)

// change is what one service, or the tables' frame, costs: the chains that
// differ, written anew, and single rules in and out of the shared chains.
// Nothing else is mentioned, however much there is.
type change struct {
	name catalog.ServiceName
	held *held // what the kernel holds then; nil for nothing

	chains []chain // of table nat, to be emptied or made, and filled
	stale  []string
	insert [sharedCount][]string // in front: the order of services is of no account
	remove [sharedCount][]string
}

func (c *change) empty() bool {
	for i := range sharedCount {
		if len(c.insert[i])+len(c.remove[i]) > 0 {
			return false
		}
	}
	return len(c.chains)+len(c.stale) == 0
}

// differ fills in how to get from old to new rules.
func (c *change) differ(old, new *rules) {
	has := make(map[string][]string, len(old.chains))
	for _, ch := range old.chains {
		has[ch.name] = ch.rules
	}
	for _, ch := range new.chains {
		rules, ok := has[ch.name]
		if !ok || !slices.Equal(rules, ch.rules) {
			c.chains = append(c.chains, ch)
		}
		delete(has, ch.name)
	}
	for _, ch := range old.chains {
		if _, ok := has[ch.name]; ok {
			c.stale = append(c.stale, ch.name)
		}
	}
	for i := range sharedCount {
		c.insert[i], c.remove[i] = multisetDiff(old.shared[i], new.shared[i])
	}
}

// multisetDiff tells what to add to old, and what to take away, to get new.
func multisetDiff(old, new []string) (add, take []string) {
	if slices.Equal(old, new) {
		return nil, nil
	}
	count := make(map[string]int, len(old))
	for _, s := range old {
		count[s]++
	}
	for _, s := range new {
		if count[s] > 0 {
			count[s]--
		} else {
			add = append(add, s)
		}
	}
	for _, s := range old {
		if count[s] > 0 {
			count[s]--
			take = append(take, s)
		}
	}
	return add, take
}

// input is text for iptables-restore.
type input struct{ bytes.Buffer }

func (in *input) line(words ...string) {
	for i, w := range words {
		if i > 0 {
			in.WriteByte(' ')
		}
		in.WriteString(w)
	}
	in.WriteByte('\n')
}

func (in *input) declare(name string) { in.line(":"+name, "-", "[0:0]") }

func (in *input) fill(c *chain) {
	for _, r := range c.rules {
		in.line("-A", c.name, r)
	}
}

// changes writes changes as one transaction per table. Where a front end
// changes hands the new rule comes before the old goes.
func (in *input) changes(list []*change) {
	for _, table := range []string{"filter", "nat"} {
		began := false
		begin := func() {
			if !began {
				in.line("*" + table)
				began = true
			}
		}
		if table == "nat" {
			for _, c := range list {
				for i := range c.chains {
					begin()
					in.declare(c.chains[i].name)
				}
				for _, name := range c.stale {
					begin()
					in.declare(name)
				}
			}
			for _, c := range list {
				for i := range c.chains {
					in.fill(&c.chains[i])
				}
			}
		}
		for _, add := range []bool{true, false} {
			for _, c := range list {
				for i := range sharedCount {
					if sharedChains[i].table != table {
						continue
					}
					verb, rules := "-I", c.insert[i]
					if !add {
						verb, rules = "-D", c.remove[i]
					}
					// Each goes before the one that was inserted last.
					for _, r := range slices.Backward(rules) {
						begin()
						in.line(verb, sharedChains[i].chain, r)
					}
				}
			}
		}
		if table == "nat" {
			for _, c := range list {
				for _, name := range c.stale {
					in.line("-X", name)
				}
			}
		}
		if began {
			in.line("COMMIT")
		}
	}
}
