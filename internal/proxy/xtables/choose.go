package xtables

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// Choose chooses among the programs that All found those whose back end the
// host uses, by the convention of the iptables wrappers that Kubernetes' images
// have: a chain that kubelet makes as a hint, else the back end with more
// rules. On a host without rules it is what the host calls iptables.
//
// A mix of both is told in the log: packets see both, and what the other back
// end holds is not ours to remove.
func Choose(ctx context.Context, log *slog.Logger, all []*Programs) (*Programs, error) {
	if len(all) == 0 {
		return nil, ErrMissing
	}
	best, why := all[0], "the host's default"
	use := make([]usage, len(all))
	for i, p := range all {
		var err error
		if use[i], err = p.usage(ctx); err != nil {
			log.Warn("cannot look at the rules of an iptables back end", "programs", p.String(), "err", err)
		}
	}
	most := use[0]
	for i, p := range all[1:] {
		switch u := use[i+1]; {
		case u.hint && !most.hint:
			best, most = p, u
		case u.hint == most.hint && u.rules > most.rules:
			best, most = p, u
		}
	}
	switch {
	case most.hint:
		why = "it has kubelet's hint"
	case len(all) > 1 && most.rules > 0:
		why = "it has more rules"
	}
	log.Info("iptables back end chosen", "programs", best.String(), "because", why)
	for i, p := range all {
		if p != best && use[i].rules > 0 {
			log.Warn("rules are in both iptables back ends, and packets see both: move them to one, or remove those of the other",
				"chosen", best.String(), "also", p.String(), "rules", use[i].rules)
		}
	}
	return best, nil
}

// usage is what the tables of a back end hold.
type usage struct {
	hint  bool // of kubelet
	rules int  // roughly: it is compared with the other back end's
}

func isHint(chain string) bool {
	return chain == "KUBE-IPTABLES-HINT" || chain == "KUBE-KUBELET-CANARY"
}

var tableNames = []string{"mangle", "filter", "nat", "raw"}

func (p *Programs) usage(ctx context.Context) (u usage, err error) {
	if p.Backend == NFT {
		// The program takes minutes to list very many chains.
		chains, err := p.Chains()
		for _, c := range chains {
			u.rules += int(c.Uses)
			u.hint = u.hint || c.Table == "mangle" && isHint(c.Name)
		}
		return u, err
	}
	for _, table := range tableNames {
		text, e := p.Save(ctx, table)
		if e != nil {
			err = fmt.Errorf("list table %s: %w", table, e)
			continue
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "-") {
				u.rules++
			}
			if name, ok := strings.CutPrefix(line, ":"); ok && table == "mangle" {
				name, _, _ = strings.Cut(name, " ")
				u.hint = u.hint || isHint(name)
			}
		}
	}
	return u, err
}

// Find returns the programs to use for a family, chosen among All.
func Find(ctx context.Context, log *slog.Logger, v6 bool) (*Programs, error) {
	all, err := All(v6)
	if err != nil {
		return nil, err
	}
	best, err := Choose(ctx, log, all)
	for _, p := range all {
		if p != best {
			p.Close()
		}
	}
	return best, err
}
