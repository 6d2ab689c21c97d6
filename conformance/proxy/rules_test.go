package proxy

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
)

// compareRules holds the rules of Rutter's iptables mode against kube-proxy's:
// for the same services on the same node iptables-save lists the same chains
// with the same rules in the same order, in both families. Only where each
// service has its rules in a chain that all share, their order is of no
// account: kube-proxy's is another with each change.
func (r *runner) compareRules() {
	var peer *column
	for _, c := range r.columns {
		if c.proxy == "kube-proxy" && c.mode == "iptables" {
			peer = c
		}
	}
	if peer == nil {
		return // left out by -kinds
	}
	for _, c := range r.columns {
		if c.proxy != "rutter" || c.mode != "iptables" {
			continue
		}
		for _, program := range []string{"iptables", "ip6tables"} {
			want, got := peer.chains(r, program), c.chains(r, program)
			for name, rules := range want {
				want[name] = slices.DeleteFunc(rules, func(rule string) bool {
					return slices.ContainsFunc(redundant, func(comment string) bool { return strings.Contains(rule, comment) }) && !slices.Contains(got[name], rule)
				})
			}
			for _, name := range slices.Sorted(maps.Keys(want)) {
				if _, ok := got[name]; !ok {
					r.t.Errorf("%s: %s-save has no chain %s; kube-proxy: %q", c.kind, program, name, want[name])
				}
			}
			for _, name := range slices.Sorted(maps.Keys(got)) {
				rules, ok := want[name]
				switch {
				case !ok:
					r.t.Errorf("%s: %s-save has chain %s, which kube-proxy has not: %q", c.kind, program, name, got[name])
				case !slices.Equal(rules, got[name]):
					r.t.Errorf("%s: %s-save: chain %s:\n  has %s\n  lacks %s", c.kind, program, name, only(got[name], rules), only(rules, got[name]))
				}
			}
		}
	}
}

// redundant are kube-proxy's rules that no packet reaches, because one before
// them matches the same, by their comments: docs/compatibility.md lists them as
// "rules that no packet reaches".
var redundant = []string{
	`"default/ranges-overlap:tcp loadbalancer IP"`, `"default/ranges-overlap:udp loadbalancer IP"`, `"default/ranges-overlap:sctp loadbalancer IP"`,
	`"default/external-is-vip:tcp external IP"`, `"default/external-is-vip:udp external IP"`, `"default/external-is-vip:sctp external IP"`,
}

// chains is what iptables-save lists on n1: rules by table and chain.
func (c *column) chains(r *runner, program string) map[string][]string {
	chains := make(map[string][]string)
	for _, table := range []string{"mangle", "filter", "nat"} {
		var out []byte
		err := c.world.spaces["n1"].Do(func() (err error) {
			out, err = exec.Command(c.iptables(program)+"-save", "-t", table).Output()
			return err
		})
		if err != nil {
			r.t.Fatalf("%s: %s-save: %v", c.kind, program, err)
		}
		for line := range strings.Lines(string(out)) {
			line = strings.Join(strings.Fields(line), " ")
			if name, ok := strings.CutPrefix(line, ":"); ok {
				name, _, _ = strings.Cut(name, " ")
				chains[table+" "+name] = nil
			}
			if rule, ok := strings.CutPrefix(line, "-A "); ok {
				name, rule, _ := strings.Cut(rule, " ")
				chains[table+" "+name] = append(chains[table+" "+name], rule)
			}
		}
	}
	for name, rules := range chains {
		if strings.HasSuffix(name, "SERVICES") || strings.HasSuffix(name, "KUBE-NODEPORTS") || strings.HasSuffix(name, "FIREWALL") {
			last := 0
			if name == "nat KUBE-SERVICES" {
				last = 1 // the one for node ports, which must be the last
			}
			slices.Sort(rules[:max(0, len(rules)-last)])
		}
	}
	return chains
}

// only are the rules of a that b has not.
func only(a, b []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(a), func(rule string) bool { return slices.Contains(b, rule) }), "\n    ")
}
