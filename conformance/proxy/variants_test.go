package proxy

// variant is another configuration of the proxies, seen through services of the
// table that nothing happens to. Only n1 has a proxy: what n2 routes to r is
// not captured there.
type variant struct {
	name string
	// config replaces the line "clusterCIDR"; lines that are indented, which
	// come first, go to the block of the mode.
	config func(kind) string
	paths  []path
}

func config(text string) func(kind) string { return func(kind) string { return text } }

const clusterCIDR = "clusterCIDR: " + podCIDRs + "\n"

var variants = []variant{
	{name: "masquerade all, node ports on a secondary address",
		config: config("  masqueradeAll: true\n  masqueradeBit: 20\n" + clusterCIDR + "nodePortAddresses: [192.0.2.0/24, \"2001:db8:1::/64\"]\n"),
		paths: []path{
			ask("ca", all, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("n1", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("a1", both, "clusterip/cluster", "b1(n1)"),
			// masqueradeAll is about cluster IPs; a short circuit to external
			// addresses keeps the pod's.
			ask("ca", both, "etp-local/vip", "a1(ca) b1(ca)"),
			ask("out", both, "etp-local/vip", "a1(out)"),
			ask("out", both, "plain/nodeport@n1.out", "a1(n1.gw) b1(n1)"),
			ask("ca", both, "plain/nodeport@n1.out", "a1(n1.gw) b1(n1)"),
			ask("out", both, "plain/nodeport@n1", "refused"),
			ask("n1", both, "plain/nodeport@n1", "refused"),
			ask("n1", both, "plain/nodeport@lo", "refused"),
			ask("out", both, "etp-local/nodeport@n1.out", "a1(out)"),
			ask("out", both, "none/nodeport@n1.out", "refused"),
			health("out", "etp-local/health@n1.out", "200, weight 1"),
			health("out", "etp-local/health@n1", "refused"),
		}},
	{name: "local pods by NodeCIDR, node ports everywhere",
		config: config("detectLocalMode: NodeCIDR\nnodePortAddresses: [0.0.0.0/0, \"::/0\"]\n"),
		paths: []path{
			ask("ca", both, "plain/cluster", "a1(ca) b1(ca)"),
			ask("n1", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("out", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("out", both, "plain/nodeport@n1.out", "a1(n1.gw) b1(n1)"),
			ask("ca", both, "plain/nodeport@n1.gw", "a1(n1.gw) b1(n1)"),
			ask("n1", both, "plain/nodeport@lo", "refused", but("iptables 4", "a1(n1.gw) b1(n1)")),
			ask("ca", both, "etp-local/nodeport@n1", "a1(ca) b1(ca)"),
			ask("cb", both, "etp-local/nodeport@n1", "a1(cb)"), // a pod of another node is outside
			ask("cb", both, "etp-local-away/nodeport@n1", "silence"),
			ask("out", both, "etp-local-away/nodeport@n1.out", "silence"),
		}},
	{name: "local pods by InterfaceNamePrefix",
		config: config("detectLocalMode: InterfaceNamePrefix\ndetectLocal:\n  interfaceNamePrefix: c\n"),
		paths: []path{
			ask("ca", both, "plain/cluster", "a1(ca) b1(ca)"),
			ask("a1", both, "clusterip/cluster", "b1(n1)"), // from interface a1
			ask("n1", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("out", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("ca", both, "etp-local/vip", "a1(ca) b1(ca)"),
			ask("a2", both, "etp-local/vip", "a1(a2)"),
			ask("n1", both, "etp-local/vip", "a1(n1.gw) b1(n1)"),
		}},
	{name: "local pods by BridgeInterface",
		config: config("detectLocalMode: BridgeInterface\ndetectLocal:\n  bridgeInterface: ca\n"),
		paths: []path{
			ask("ca", both, "plain/cluster", "a1(ca) b1(ca)"),
			ask("a1", both, "clusterip/cluster", "b1(n1)"),
			ask("n1", both, "plain/cluster", "a1(n1.gw) b1(n1)"),
			ask("ca", both, "etp-local-away/vip", "b1(ca)"),
			ask("a2", both, "etp-local-away/vip", "silence"),
		}},
	{name: "no way to tell local pods, no node ports on localhost, no external IPs",
		config: func(k kind) string {
			text := "featureGates: {AllowServiceExternalIPs: false}\n"
			if k.mode == "iptables" {
				text = "  localhostNodePorts: false\n" + text
			}
			return text
		},
		paths: []path{
			ask("ca", both, "plain/cluster", "a1(ca) b1(ca)"),
			ask("n1", both, "plain/cluster", "a1(n1) b1(n1)"),
			ask("out", both, "plain/cluster", "a1(out) b1(out)"),
			ask("a1", both, "plain/cluster", "a1(n1.gw) b1(a1)"),
			ask("out", both, "plain/nodeport@n1", "a1(n1.gw) b1(n1)"),
			ask("n1", both, "plain/nodeport@lo", "refused"),
			ask("ca", both, "etp-local/vip", "a1(ca)"),
			ask("n1", both, "etp-local/vip", "a1(n1.gw) b1(n1)"),
			ask("ca", both, "etp-local-away/vip", "silence"),
			ask("ca", both, "plain/external", "r(ca)"),
			ask("ca", both, "plain/vip", "a1(n1.gw) b1(n1)"),
		}},
	{name: "of IPv4 pods only",
		config: config("clusterCIDR: 10.244.0.0/16\n"),
		paths: []path{
			ask("ca", both, "plain/cluster", "a1(ca) b1(ca)"),
			ask("out", both, "plain/cluster", "a1(n1.gw) b1(n1)", but("6", "a1(out) b1(out)")),
			ask("ca", both, "etp-local/vip", "a1(ca) b1(ca)", but("6", "a1(ca)")),
		}},
}
