package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// Cleanup removes the chains of this mode, which are kube-proxy's too, of both
// back ends and families. What a host does not have needs no removal.
func Cleanup() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var errs []error
	for _, v6 := range []bool{false, true} {
		all, err := xtables.All(v6)
		if err != nil && !errors.Is(err, xtables.ErrMissing) {
			errs = append(errs, err)
		}
		for _, p := range all {
			errs = append(errs, cleanup(ctx, p), p.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	return nil
}

func cleanup(ctx context.Context, p *xtables.Programs) error {
	var in input
	ours := []string{servicesChain, nodePortsChain, externalChain, firewallChain, forwardChain, postroutingChain, markChain, canaryChain, nodeDNSChain}
	f := &family{progs: p, style: style{v6: p.V6}, listChains: listChains}
	for _, table := range []string{"nat", "mangle", "filter", "raw"} {
		listed, err := f.listTable(ctx, table)
		if err != nil {
			return fmt.Errorf("list table %s: %w", table, err)
		}
		if table == "nat" && slices.ContainsFunc(listed.Chains[servicesChain], func(r string) bool { return strings.Contains(r, "--match-set KUBE-") }) {
			// ipvs mode has taken over, which has some of the same names.
			ours = []string{nodePortsChain, externalChain, canaryChain}
		}
		if _, kubelet := listed.Chains["KUBE-KUBELET-CANARY"]; table == "mangle" && !kubelet {
			ours = append(ours, kubeletChain) // no kubelet here
		}
		remove(&in, table, ours, listed.Table)
	}
	if in.Len() == 0 {
		return nil
	}
	if p.Backend == xtables.Legacy {
		in.join()
	}
	return p.Restore(ctx, in.Bytes())
}

// remove writes what removes chains of these names, those of services, and the
// jumps to them from a table.
func remove(in *input, table string, ours []string, listed xtables.Table) {
	var chains []string
	for name := range listed.Chains {
		if slices.Contains(ours, name) || table == "nat" && isServiceChain(name) {
			chains = append(chains, name)
		}
	}
	if len(chains) == 0 {
		return
	}
	sortByJumps(chains)
	in.line("*" + table)
	all := append(jumps(), jump{"raw", "PREROUTING", nodeDNSChain, ""}, jump{"raw", "OUTPUT", nodeDNSChain, ""})
	for _, j := range all {
		if j.table != table || !slices.Contains(ours, j.to) {
			continue
		}
		for _, rule := range listed.Chains[j.from] {
			if rule == j.rule() {
				in.line("-D", j.from, rule)
			}
		}
	}
	for block := range slices.Chunk(chains, blockChains) {
		for _, name := range block {
			in.declare(name)
		}
		for _, name := range block {
			in.line("-X", name)
		}
		in.line("COMMIT")
		in.line("*" + table)
	}
	in.line("COMMIT")
}

// sortByJumps puts chains before those that they jump to, so that each can go
// when those before it are gone.
func sortByJumps(chains []string) {
	rank := func(name string) int {
		for i, prefix := range []string{sourcesPrefix, outsidePrefix, clusterPrefix, localPrefix, endpointPrefix, markChain} {
			if strings.HasPrefix(name, prefix) {
				return i + 1
			}
		}
		return 0
	}
	slices.SortFunc(chains, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
}

// rivals names rules of another service proxy: in the back end that is not
// used, where nobody keeps them up to date, and kube-proxy's in nftables mode.
func (f *family) rivals() ([]string, error) {
	var found []string
	err := f.progs.Do(func() error {
		all, err := xtables.All(f.style.v6)
		if err != nil {
			return err
		}
		for _, p := range all {
			if p.Backend != f.progs.Backend {
				text, err := p.Save(context.Background(), "nat")
				if err == nil && strings.Contains(string(text), "\n:"+servicesChain+" ") {
					found = append(found, p.String()+" table nat")
				}
			}
			p.Close()
		}
		c, err := nfnetlink.Dial()
		if err != nil {
			return nil // a kernel without nf_tables has none of its tables
		}
		defer c.Close()
		family, name := byte(unix.NFPROTO_IPV4), "table ip kube-proxy"
		if f.style.v6 {
			family, name = unix.NFPROTO_IPV6, "table ip6 kube-proxy"
		}
		there := false
		_ = c.Dump(family, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, nil, func() { there = false }, func(attrs []byte) {
			there = there || tableOf(attrs) == "kube-proxy"
		})
		if there {
			found = append(found, name)
		}
		return nil
	})
	return found, err
}
