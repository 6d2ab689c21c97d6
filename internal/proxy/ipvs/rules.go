package ipvs

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// The rules do not depend on services: these are in sets. They are written at
// the start, when the node changes, and when somebody else changed them. Chains
// and sets have kube-proxy's names, and do what kube-proxy's do.

// chain is a chain of ours.
type chain struct {
	table, name string
	// shared tells that mode iptables has a chain of the same name.
	shared bool
}

var chains = []chain{
	{"nat", "KUBE-SERVICES", true},
	{"nat", "KUBE-POSTROUTING", true},
	{"nat", "KUBE-NODE-PORT", false},
	{"nat", "KUBE-LOAD-BALANCER", false},
	{"nat", "KUBE-MARK-MASQ", true},
	{"filter", "KUBE-FORWARD", true},
	{"filter", "KUBE-NODE-PORT", false},
	{"filter", "KUBE-PROXY-FIREWALL", true},
	{"filter", "KUBE-SOURCE-RANGES-FIREWALL", false},
	{"filter", "KUBE-IPVS-FILTER", false},
	{"mangle", "KUBE-IPVS-OUT-FILTER", false},
	{"mangle", "RUTTER-AWAY", false},
}

// jump leads from a chain of the kernel's to one of ours.
type jump struct{ table, from, match, to string }

// firewallJump has a comment that tells it from mode iptables' jump to the same
// chain.
const firewallJump = "kube-proxy firewall rules"

func (j jump) rule() string { return j.match + " -j " + j.to }

// jumps are inserted at the top, each before the ones above it.
var jumps = []jump{
	{"nat", "OUTPUT", comment("kubernetes service portals"), "KUBE-SERVICES"},
	{"nat", "PREROUTING", comment("kubernetes service portals"), "KUBE-SERVICES"},
	{"nat", "POSTROUTING", comment("kubernetes postrouting rules"), "KUBE-POSTROUTING"},
	{"filter", "FORWARD", comment("kubernetes forwarding rules"), "KUBE-FORWARD"},
	{"filter", "INPUT", comment("kubernetes health check rules"), "KUBE-NODE-PORT"},
	{"filter", "INPUT", comment(firewallJump), "KUBE-PROXY-FIREWALL"},
	{"filter", "FORWARD", comment(firewallJump), "KUBE-PROXY-FIREWALL"},
	{"filter", "INPUT", comment("kubernetes ipvs access filter"), "KUBE-IPVS-FILTER"},
	// A node's own packets are IPVS's before table filter sees them
	// (NF_IP_PRI_NAT_DST + 2), and so are filtered in table mangle.
	{"mangle", "OUTPUT", comment("kubernetes ipvs access filter"), "KUBE-IPVS-OUT-FILTER"},
	{"mangle", "PREROUTING", comment("rutter: no endpoint on this node"), "RUTTER-AWAY"},
	{"mangle", "OUTPUT", comment("rutter: no endpoint on this node"), "RUTTER-AWAY"},
}

func comment(text string) string { return fmt.Sprintf("-m comment --comment %q", text) }

// ruleset is the rules of a family.
type ruleset struct {
	programs *xtables.Programs
	v6       bool
	mark     uint
	// As the kernel told them after they were written: chains by table and
	// name. Its text differs from ours.
	made  map[string][]string
	looks int
}

var tableNames = []string{"nat", "filter", "mangle"}

// set matches packets whose address and port are in a set.
func (r *ruleset) set(id setID, dirs string) string {
	return fmt.Sprintf("-m set --match-set %s %s", setName(id, r.v6), dirs)
}

// text is the rules in the form of iptables-save, by table.
func (r *ruleset) text(p *plan.Rules) map[string][]string {
	rules := make(map[string][]string)
	table := ""
	add := func(chain string, parts ...string) {
		parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
		rules[table] = append(rules[table], "-A "+chain+" "+strings.Join(parts, " "))
	}
	mark := fmt.Sprintf("%#x", uint32(1)<<r.mark)
	marked := mark + "/" + mark
	both, bothAndSource := "dst,dst", "dst,dst,src"
	own := "-m addrtype --src-type LOCAL"
	isNew := "-m conntrack --ctstate NEW"

	table = "nat"
	loopback := "127.0.0.0/8"
	if r.v6 {
		loopback = "::1/128"
	}
	add("KUBE-SERVICES", "-s", loopback, "-j RETURN")
	add("KUBE-SERVICES", comment("Kubernetes service lb portal"), r.set(setLoadBalancer, both), "-j KUBE-LOAD-BALANCER")
	cluster := comment("Kubernetes service cluster ip + port for masquerade purpose")
	switch {
	case p.MasqueradeAll:
		add("KUBE-SERVICES", cluster, r.set(setClusterIP, both), "-j KUBE-MARK-MASQ")
	case p.Detect.Works(r.v6):
		add("KUBE-SERVICES", cluster, r.set(setClusterIP, both), notLocal(&p.Detect, r.v6), "-j KUBE-MARK-MASQ")
	default:
		// Service addresses are the host's: it takes one as the source of what
		// it sends there, and no other host could answer to that.
		add("KUBE-SERVICES", cluster, r.set(setClusterIP, "src,dst"), "-j KUBE-MARK-MASQ")
		add("KUBE-SERVICES", cluster, r.set(setClusterIP, both), r.set(setIPVSIPs, "src"), "-j KUBE-MARK-MASQ")
	}
	add("KUBE-SERVICES", comment("Kubernetes service external ip + port for masquerade and filter purpose"), r.set(setExternalIP, both), "-j KUBE-MARK-MASQ")
	add("KUBE-SERVICES", r.set(setExternalIPLocal, both), own, "-j KUBE-MARK-MASQ")
	add("KUBE-SERVICES", r.set(setExternalIP, both), "-j ACCEPT")
	add("KUBE-SERVICES", comment("Kubernetes service external ip + port with externalTrafficPolicy=local"), r.set(setExternalIPLocal, both), "-j ACCEPT")
	add("KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT")
	add("KUBE-SERVICES", r.set(setClusterIP, both), "-j ACCEPT")
	add("KUBE-SERVICES", r.set(setLoadBalancer, both), "-j ACCEPT")
	add("KUBE-LOAD-BALANCER", r.set(setLoadBalancerLocal, both), own, "-j KUBE-MARK-MASQ")
	add("KUBE-LOAD-BALANCER", comment("Kubernetes service load balancer ip + port with externalTrafficPolicy=local"), r.set(setLoadBalancerLocal, both), "-j RETURN")
	add("KUBE-LOAD-BALANCER", "-j KUBE-MARK-MASQ")
	for _, n := range []struct {
		proto, dirs string
		local, all  setID
	}{
		{"tcp", "dst", setNodePortLocalTCP, setNodePortTCP},
		{"udp", "dst", setNodePortLocalUDP, setNodePortUDP},
		{"sctp", both, setNodePortLocalSCTP, setNodePortSCTP},
	} {
		name := strings.ToUpper(n.proto)
		add("KUBE-NODE-PORT", "-p", n.proto, r.set(n.local, n.dirs), own, "-j KUBE-MARK-MASQ")
		add("KUBE-NODE-PORT", "-p", n.proto, comment("Kubernetes nodeport "+name+" port with externalTrafficPolicy=local"), r.set(n.local, n.dirs), "-j RETURN")
		add("KUBE-NODE-PORT", "-p", n.proto, comment("Kubernetes nodeport "+name+" port for masquerade purpose"), r.set(n.all, n.dirs), "-j KUBE-MARK-MASQ")
	}
	masquerade := "-j MASQUERADE"
	if r.programs != nil && r.programs.RandomFully() {
		masquerade += " --random-fully"
	}
	add("KUBE-POSTROUTING", comment("Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"), r.set(setLoopBack, bothAndSource), "-j MASQUERADE")
	add("KUBE-POSTROUTING", "-m mark ! --mark", marked, "-j RETURN")
	add("KUBE-POSTROUTING", "-j MARK --xor-mark", mark)
	add("KUBE-POSTROUTING", comment("kubernetes service traffic requiring SNAT"), masquerade)
	add("KUBE-MARK-MASQ", "-j MARK --or-mark", mark)

	table = "filter"
	add("KUBE-FORWARD", comment("kubernetes forwarding rules"), "-m mark --mark", marked, "-j ACCEPT")
	add("KUBE-FORWARD", comment("kubernetes forwarding conntrack rule"), "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	add("KUBE-NODE-PORT", comment("Kubernetes health check node port"), r.set(setHealthCheckNodePort, "dst"), "-j ACCEPT")
	add("KUBE-PROXY-FIREWALL", isNew, comment("Kubernetes service load balancer ip + port for load balancer with sourceRange"), r.set(setLoadBalancerFW, both), "-j KUBE-SOURCE-RANGES-FIREWALL")
	add("KUBE-SOURCE-RANGES-FIREWALL", r.set(setLoadBalancerSourceCIDR, bothAndSource), "-j RETURN")
	add("KUBE-SOURCE-RANGES-FIREWALL", r.set(setLoadBalancerSourceIP, bothAndSource), "-j RETURN")
	add("KUBE-SOURCE-RANGES-FIREWALL", "-j DROP")
	// A service address is the host's, but what the host listens on is not to
	// be reached by it.
	for _, id := range []setID{setLoadBalancer, setClusterIP, setExternalIP, setExternalIPLocal} {
		add("KUBE-IPVS-FILTER", r.set(id, both), "-j RETURN")
	}
	add("KUBE-IPVS-FILTER", r.set(setHealthCheckNodePort, "dst"), "-j RETURN")
	add("KUBE-IPVS-FILTER", isNew, r.set(setIPVSIPs, "dst"), "-j REJECT")

	table = "mangle"
	add("KUBE-IPVS-OUT-FILTER", "-m set ! --match-set", setName(setLoadBalancerFW, r.v6), both, "-j RETURN")
	add("KUBE-IPVS-OUT-FILTER", r.set(setLoadBalancerSourceCIDR, bothAndSource), "-j RETURN")
	add("KUBE-IPVS-OUT-FILTER", r.set(setLoadBalancerSourceIP, bothAndSource), "-j RETURN")
	add("KUBE-IPVS-OUT-FILTER", isNew, "-j DROP")
	add("RUTTER-AWAY", isNew, r.set(setAwayInternal, both), "-j DROP")
	outside := ""
	if p.Detect.Works(r.v6) {
		outside = notLocal(&p.Detect, r.v6)
	}
	add("RUTTER-AWAY", isNew, r.set(setAwayExternal, both), "-m addrtype ! --src-type LOCAL", outside, "-j DROP")
	return rules
}

// notLocal matches packets that do not come from a local pod.
func notLocal(d *plan.Detector, v6 bool) string {
	switch d.Mode {
	case plan.DetectInterface:
		return "! -i " + d.Interface
	case plan.DetectInterfacePrefix:
		return "! -i " + d.Interface + "+"
	}
	return "! -s " + d.CIDR(v6).String()
}

// write puts the rules into force: each table's at once.
func (r *ruleset) write(ctx context.Context, p *plan.Rules) error {
	present, err := r.read(ctx, tableNames...)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	rules := r.text(p)
	for _, table := range tableNames {
		fmt.Fprintf(&b, "*%s\n", table)
		for _, c := range chains {
			if c.table == table {
				fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
			}
		}
		for _, j := range jumps {
			if j.table == table && !hasJump(present[table].Chains[j.from], j) {
				fmt.Fprintf(&b, "-I %s %s\n", j.from, j.rule())
			}
		}
		for _, line := range rules[table] {
			fmt.Fprintln(&b, line)
		}
		fmt.Fprintln(&b, "COMMIT")
	}
	if err := r.programs.Restore(ctx, b.Bytes()); err != nil {
		return explainRules(err)
	}
	present, err = r.read(ctx, tableNames...)
	r.made = ours(present)
	return err
}

// explainRules says what a host may lack when rules are not taken.
func explainRules(err error) error {
	return fmt.Errorf("write iptables rules: %w (they need modules ip_set, xt_set, xt_addrtype, xt_conntrack, xt_mark, xt_comment, xt_MASQUERADE)", err)
}

func (r *ruleset) read(ctx context.Context, names ...string) (map[string]xtables.Table, error) {
	tables := make(map[string]xtables.Table)
	for _, table := range names {
		text, err := r.programs.Save(ctx, table)
		if err != nil {
			return nil, fmt.Errorf("list table %s: %w", table, err)
		}
		tables[table] = xtables.Parse(string(text))
	}
	return tables, nil
}

// intact tells whether the rules are as they were written. It costs running
// programs: table nat, without which nothing is masqueraded, is looked at each
// time, the others in turn.
func (r *ruleset) intact(ctx context.Context) (bool, error) {
	r.looks++
	look := []string{"nat", []string{"filter", "mangle"}[r.looks%2]}
	present, err := r.read(ctx, look...)
	if err != nil {
		return true, err
	}
	made := maps.Clone(r.made)
	maps.DeleteFunc(made, func(name string, _ []string) bool {
		table, _, _ := strings.Cut(name, " ")
		return !slices.Contains(look, table)
	})
	return maps.EqualFunc(ours(present), made, slices.Equal), nil
}

// ours are the rules of our chains, and the jumps to them.
func ours(present map[string]xtables.Table) map[string][]string {
	mine := make(map[string][]string)
	for _, c := range chains {
		if rules, ok := present[c.table].Chains[c.name]; ok {
			mine[c.table+" "+c.name] = rules
		}
	}
	for _, j := range jumps {
		if hasJump(present[j.table].Chains[j.from], j) {
			mine[j.table+" "+j.from+" to "+j.to] = nil
		}
	}
	return mine
}

func hasJump(rules []string, j jump) bool {
	return slices.Contains(rules, j.rule())
}

// remove removes the rules. Those of chains that mode iptables has too are left
// to it if they are not ours.
func (r *ruleset) remove(ctx context.Context) error {
	present, err := r.read(ctx, tableNames...)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	services := strings.Join(present["nat"].Chains["KUBE-SERVICES"], "\n")
	// Both modes have the chain; ours looks into sets.
	isOurs := strings.Contains(services, "--match-set "+setName(setClusterIP, r.v6)) || services == ""
	for _, table := range tableNames {
		goes := make(map[string]bool)
		fmt.Fprintf(&b, "*%s\n", table)
		for _, c := range chains {
			if _, there := present[table].Chains[c.name]; c.table == table && there && (isOurs || !c.shared) {
				goes[c.name] = true
				fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
			}
		}
		for _, j := range jumps {
			// Mode iptables' jumps to a chain that it shares may be the same.
			if j.table == table && (goes[j.to] || j.match == comment(firewallJump)) {
				for _, rule := range present[table].Chains[j.from] {
					if rule == j.rule() {
						fmt.Fprintf(&b, "-D %s %s\n", j.from, rule)
					}
				}
			}
		}
		for _, c := range chains {
			if c.table == table && goes[c.name] {
				fmt.Fprintf(&b, "-X %s\n", c.name)
			}
		}
		fmt.Fprintln(&b, "COMMIT")
	}
	if !strings.Contains(b.String(), "\n-") {
		return nil
	}
	if err := r.programs.Restore(ctx, b.Bytes()); err != nil {
		return fmt.Errorf("remove iptables rules: %w", err)
	}
	return nil
}
