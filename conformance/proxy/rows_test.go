package proxy

// The table's words. A path is "who asks, how, which address of the service,
// and what comes of it": places are those of world_test.go, outcomes those of
// ask_test.go. For a front end: cluster, external, vip (of the load balancer),
// nodeport@PLACE, health@PLACE (the health check node port), address@PLACE,
// unallocated (a cluster IP that is no service's); ":PORT" for another port than 80.

// Every path is a row for each of its protocols, in IPv4 and in IPv6.
const (
	both = "tcp udp"
	all  = "tcp udp sctp"
)

// ask: everybody who answers, and the address that they see.
func ask(from, protos, to, want string, but ...exception) path {
	return path{how: "ask", from: from, protos: protos, to: to, want: want, but: but}
}

// stick: whether one endpoint takes all of a client's connections, or several.
func stick(from, protos, to, want string, but ...exception) path {
	return path{how: "stick", from: from, protos: protos, to: to, want: want, but: but}
}

// spread: whether all endpoints take equal parts of 400 connections.
func spread(from, protos, to, want string, but ...exception) path {
	return path{how: "spread", from: from, protos: protos, to: to, want: want, but: but}
}

// health: what the health check node port says.
func health(from, to, want string, but ...exception) path {
	return path{how: "health", from: from, protos: "tcp", to: to, want: want, but: but}
}

// page: what the proxy's own servers say; to is PORT/PATH@PLACE.
func page(from, protos, to, want string, but ...exception) path {
	return path{how: "http", from: from, protos: protos, to: to, want: want, but: but}
}

// but is another outcome for some: words of kind, protocol or family.
func but(words, outcome string) exception { return exception{words: words, outcome: outcome} }

// till is but for what a chance of the moment mends.
func till(words, outcome string) exception {
	return exception{words: words, outcome: outcome, passing: true}
}

// static are the scenarios that nothing happens to.
var static = []scenario{
	{name: "plain", service: "lb external", endpoints: "a1 b1", paths: []path{
		ask("ca", all, "cluster", "a1(ca) b1(ca)"),
		ask("cb", both, "cluster", "a1(cb) b1(cb)"),
		ask("n1", all, "cluster", "a1(n1.gw) b1(n1)"),
		ask("n2", both, "cluster", "a1(n2) b1(n2.gw)"),
		ask("out", all, "cluster", "a1(n1.gw) b1(n1)"),
		ask("a1", all, "cluster", "a1(n1.gw) b1(a1)"), // hairpin
		ask("ca", all, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("cb", both, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("a1", both, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("n1", all, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("n2", both, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("out", all, "nodeport@n1", "a1(n1.gw) b1(n1)"),
		ask("out.n2", both, "nodeport@n2", "a1(n2) b1(n2.gw)"),
		ask("ca", both, "nodeport@n2", "a1(n2) b1(n2.gw)"), // through both nodes
		ask("n1", both, "nodeport@n2", "a1(n2) b1(n2.gw)"),
		ask("ca", all, "external", "a1(n1.gw) b1(n1)"),
		ask("n1", both, "external", "a1(n1.gw) b1(n1)"),
		ask("out", all, "external", "a1(n1.gw) b1(n1)"),
		ask("ca", all, "vip", "a1(n1.gw) b1(n1)"),
		ask("a1", both, "vip", "a1(n1.gw) b1(n1)"),
		ask("cb", both, "vip", "a1(n2) b1(n2.gw)"),
		ask("n1", both, "vip", "a1(n1.gw) b1(n1)"),
		ask("out", all, "vip", "a1(n1.gw) b1(n1)"),
		// Node ports on addresses that are not the node's primary ones.
		ask("out", both, "nodeport@n1.out", "refused", but("iptables", "a1(n1.gw) b1(n1)"), but("ipvs", "a1(n1.gw) b1(n1)")),
		ask("n1", both, "nodeport@lo", "refused", but("iptables 4", "a1(n1.gw) b1(n1)")),
		// Ports that the service does not have.
		ask("ca", both, "cluster:81", "refused", but("iptables", "r(ca)")),
		ask("n1", both, "cluster:81", "refused", but("udp", "forbidden"), but("iptables", "r(n1)"), but("ipvs", "refused")),
		ask("out", both, "cluster:81", "refused", but("iptables", "r(out)")),
		ask("ca", both, "external:81", "r(ca)", but("ipvs", "refused")),
		ask("out", both, "vip:81", "r(out)", but("ipvs", "refused")),
		ask("ca", both, "unallocated", "silence", but("iptables", "r(ca)"), but("ipvs", "r(ca)")),
		ask("n1", both, "unallocated", "silence", but("udp", "forbidden"), but("iptables", "r(n1)"), but("ipvs", "r(n1)")),
		ask("out", both, "unallocated", "silence", but("iptables", "r(out)"), but("ipvs", "r(out)")),
		// Ping.
		ask("ca", "icmp", "cluster", "refused", but("iptables", "reply")),
		ask("n1", "icmp", "cluster", "forbidden", but("iptables", "reply"), but("ipvs", "refused")),
		ask("out", "icmp", "vip", "reply", but("ipvs", "refused")),
		ask("ca", "icmp", "unallocated", "silence", but("iptables", "reply"), but("ipvs", "reply")),
		ask("out", "icmp", "nodeport@n1", "reply"),
	}},
	{name: "clusterip", service: "", endpoints: "b1", paths: []path{
		ask("ca", all, "cluster", "b1(ca)"),
		ask("n1", both, "cluster", "b1(n1)"),
		ask("b1", both, "cluster", "b1(n2.gw)"), // hairpin
	}},
	{name: "none", service: "lb external", endpoints: "", paths: []path{
		ask("ca", all, "cluster", "refused"),
		ask("cb", both, "cluster", "refused"),
		ask("n1", all, "cluster", "refused", but("udp", "forbidden"), but("sctp", "forbidden")),
		ask("out", both, "cluster", "refused"),
		ask("ca", both, "nodeport@n1", "refused"),
		ask("n1", both, "nodeport@n1", "refused", but("ipvs udp", "forbidden")),
		ask("out", all, "nodeport@n1", "refused"),
		ask("ca", both, "external", "refused"),
		ask("out", all, "external", "refused"),
		ask("ca", both, "vip", "refused"),
		// In iptables mode the node's own packets to external addresses are not
		// filtered, and go where the route leads.
		ask("n1", both, "vip", "refused", but("udp", "forbidden"), but("iptables", "r(n1)")),
		ask("out", all, "vip", "refused"),
	}},

	// Traffic policies.
	{name: "itp-local", service: "itp-local", endpoints: "a1 b1", paths: []path{
		ask("ca", all, "cluster", "a1(ca)"),
		ask("cb", both, "cluster", "b1(cb)"),
		ask("n1", both, "cluster", "a1(n1.gw)"),
		ask("out", both, "cluster", "a1(n1.gw)"),
	}},
	{name: "itp-local-away", service: "lb itp-local", endpoints: "b1", paths: []path{
		ask("ca", all, "cluster", "silence"),
		ask("cb", both, "cluster", "b1(cb)"),
		ask("n1", both, "cluster", "silence", but("udp", "forbidden")),
		ask("out", both, "cluster", "silence"),
		ask("out", both, "vip", "b1(n1)"),
		ask("ca", both, "nodeport@n1", "b1(n1)"),
	}},
	{name: "itp-local-none", service: "itp-local", endpoints: "", paths: []path{
		ask("ca", both, "cluster", "refused"),
		ask("n1", "tcp", "cluster", "refused"),
	}},
	{name: "itp-local-unready", service: "itp-local", endpoints: "a1:notready b1:notready", paths: []path{
		ask("ca", both, "cluster", "refused"),
	}},
	{name: "itp-local-draining", service: "itp-local", endpoints: "a1:terminating b1", paths: []path{
		ask("ca", both, "cluster", "a1(ca)"),
		ask("cb", both, "cluster", "b1(cb)"),
	}},
	{name: "etp-local", service: "lb external etp-local", endpoints: "a1 b1", paths: []path{
		ask("out", all, "vip", "a1(out)"),
		ask("out", all, "nodeport@n1", "a1(out)"),
		ask("out", both, "external", "a1(out)"),
		ask("out.n2", both, "nodeport@n2", "b1(out.n2)"),
		ask("ca", both, "vip", "a1(ca) b1(ca)", but("ipvs", "a1(ca)")),
		ask("ca", both, "nodeport@n1", "a1(ca) b1(ca)", but("ipvs", "a1(ca)")),
		ask("ca", both, "external", "a1(ca) b1(ca)", but("ipvs", "a1(ca)")),
		ask("a1", both, "vip", "a1(n1.gw) b1(a1)", but("ipvs", "a1(n1.gw)")),
		ask("n1", both, "vip", "a1(n1.gw) b1(n1)", but("ipvs", "a1(n1.gw)")),
		ask("n1", both, "nodeport@n1", "a1(n1.gw) b1(n1)", but("ipvs", "a1(n1.gw)")),
		ask("ca", both, "cluster", "a1(ca) b1(ca)"),
		ask("out", both, "cluster", "a1(n1.gw) b1(n1)"),
		ask("n2", both, "nodeport@n1", "a1(n2)"),
		health("out", "health@n1", "200, weight 1"),
		health("ca", "health@n2", "200, weight 1"),
		health("n1", "health@lo", "200, weight 1", but("nftables", "refused")),
		health("out", "health@n1.out", "200, weight 1", but("nftables", "refused")),
	}},
	{name: "etp-local-away", service: "lb external etp-local", endpoints: "b1", paths: []path{
		ask("out", all, "vip", "silence"),
		ask("out", all, "nodeport@n1", "silence"),
		ask("out", both, "external", "silence"),
		ask("out.n2", both, "nodeport@n2", "b1(out.n2)"),
		ask("ca", both, "vip", "b1(ca)"),
		ask("ca", both, "nodeport@n1", "b1(ca)"),
		ask("n1", both, "vip", "b1(n1)"),
		ask("n1", both, "nodeport@n1", "b1(n1)"),
		ask("ca", both, "cluster", "b1(ca)"),
		health("out", "health@n1", "503, weight 0"),
		health("ca", "health@n2", "200, weight 1"),
	}},
	{name: "etp-local-none", service: "lb external etp-local", endpoints: "", paths: []path{
		ask("out", both, "vip", "refused"),
		ask("out", both, "nodeport@n1", "refused"),
		ask("out", both, "external", "refused"),
		ask("ca", both, "vip", "refused"),
		ask("n1", both, "nodeport@n1", "refused", but("ipvs udp", "forbidden")),
		health("out", "health@n1", "503, weight 0"),
	}},
	{name: "etp-local-draining", service: "lb etp-local", endpoints: "a1:terminating b1", paths: []path{
		ask("out", both, "vip", "a1(out)"),
		ask("out", both, "nodeport@n1", "a1(out)"),
		ask("ca", both, "vip", "b1(ca)", but("ipvs", "a1(ca)")),
		ask("ca", both, "cluster", "b1(ca)"),
		health("out", "health@n1", "503, weight 0"),
	}},
	{name: "both-local", service: "lb itp-local etp-local", endpoints: "a1 b1", paths: []path{
		ask("out", both, "vip", "a1(out)"),
		ask("ca", both, "cluster", "a1(ca)"),
		ask("ca", both, "vip", "a1(ca) b1(ca)", but("ipvs", "a1(ca)")),
		ask("a1", both, "cluster", "a1(n1.gw)"),
	}},
	{name: "both-local-away", service: "nodeport itp-local etp-local", endpoints: "b1", paths: []path{
		ask("out", both, "nodeport@n1", "silence"),
		ask("ca", both, "nodeport@n1", "b1(ca)"),
		ask("ca", both, "cluster", "silence"),
	}},

	// Which endpoints count.
	{name: "draining-some", service: "", endpoints: "a1 b1:terminating", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
	{name: "draining-all", service: "lb", endpoints: "a1:terminating b1:terminating", paths: []path{
		ask("ca", both, "cluster", "a1(ca) b1(ca)"),
		ask("out", both, "vip", "a1(n1.gw) b1(n1)"),
	}},
	{name: "terminated", service: "lb", endpoints: "a1:terminating:notserving b1:terminating:notserving", paths: []path{
		ask("ca", both, "cluster", "refused"),
		ask("out", both, "vip", "refused"),
	}},
	{name: "unready-some", service: "", endpoints: "a1:notready b1", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
	{name: "unready-all", service: "nodeport", endpoints: "a1:notready b1:notready", paths: []path{
		ask("ca", both, "cluster", "refused"),
		ask("out", both, "nodeport@n1", "refused"),
	}},
	{name: "unready-and-draining", service: "", endpoints: "a1:notready b1:terminating", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
	{name: "publish-not-ready", service: "not-ready", endpoints: "a1:notserving b1:ready:terminating:notserving", paths: []path{
		ask("ca", both, "cluster", "a1(ca) b1(ca)"),
	}},
	{name: "moving-slices", service: "", endpoints: "a1 a1:terminating:slice=2 b1:terminating b1:slice=2", paths: []path{
		ask("ca", both, "cluster", "a1(ca) b1(ca)"),
	}},
	{name: "ports-differ", service: "", endpoints: "a1 b1:port=8081", paths: []path{ask("ca", both, "cluster", "a1(ca) b1:2(ca)")}},
	{name: "conditions-unset", service: "", endpoints: "a1:unset b1:notready", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
	{name: "two-addresses", service: "", endpoints: "a1:also=b1", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
	{name: "headless-slice", service: "", endpoints: "a1 b1:slice=2:headless", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
	{name: "without-node", service: "lb itp-local etp-local", endpoints: "a1:at=", paths: []path{
		ask("ca", both, "cluster", "silence"),
		ask("ca", both, "vip", "a1(ca)"),
		ask("out", both, "vip", "silence"),
	}},
	{name: "unnamed-port", service: "tcp-only unnamed", endpoints: "a1", paths: []path{ask("ca", "tcp", "cluster", "a1(ca)")}},
	{name: "two-ports", service: "lb port2", endpoints: "a1 b1", paths: []path{
		ask("ca", both, "cluster", "a1(ca) b1(ca)"),
		ask("ca", both, "cluster:81", "a1:2(ca) b1:2(ca)"),
		ask("out", both, "vip:81", "a1:2(n1.gw) b1:2(n1)"),
		ask("out", both, "nodeport@n1:81", "a1:2(n1.gw) b1:2(n1)"),
		ask("ca", "sctp", "cluster:81", "refused", but("iptables", "unreachable")),
	}},
	{name: "host-network", service: "lb", endpoints: "n1 n2", paths: []path{
		ask("ca", both, "cluster", "n1(ca) n2(ca)"),
		ask("n1", both, "cluster", "n1(n1) n2(n1)"),
		ask("out", both, "vip", "n1(out) n2(n1)"),
		ask("out", both, "nodeport@n1", "n1(out) n2(n1)"),
	}},
	{name: "host-network-local", service: "lb etp-local", endpoints: "n1 n2", paths: []path{
		ask("out", both, "vip", "n1(out)"),
		ask("n1", both, "vip", "n1(n1) n2(n1)", but("ipvs", "n1(n1)")),
	}},
	{name: "outside-endpoint", service: "nodeport", endpoints: "r:port=80:at=", paths: []path{
		ask("ca", both, "cluster", "r(ca)"),
		ask("out", both, "nodeport@n1", "r(n1)"),
	}},

	{name: "tcp-service", service: "lb external tcp-only", endpoints: "a1", paths: []path{
		ask("ca", "tcp", "cluster", "a1(ca)"),
		ask("ca", "udp", "cluster", "refused", but("iptables", "r(ca)")),
		ask("out", "tcp", "vip", "a1(n1.gw)"),
	}},
	// The same addresses for the other protocol.
	{name: "udp-service", service: "lb external udp-only", endpoints: "b1", like: "tcp-service", paths: []path{
		ask("out", both, "vip", "b1(n1)", but("tcp", "a1(n1.gw)")),
		ask("out", both, "external", "b1(n1)", but("tcp", "a1(n1.gw)")),
		ask("out", both, "nodeport@n1", "b1(n1)", but("tcp", "refused")),
	}},
	{name: "external-is-local", service: "external-at=n1.out", endpoints: "a1 b1", paths: []path{
		ask("out", both, "address@n1.out", "a1(n1.gw) b1(n1)"),
		ask("ca", both, "address@n1.out", "a1(n1.gw) b1(n1)"),
		ask("n1", both, "address@n1.out", "a1(n1.gw) b1(n1)"),
		ask("out", both, "address@n1.out:81", "refused"),
		ask("out", "icmp", "address@n1.out", "reply"),
	}},
	{name: "external-is-elsewhere", service: "external-at=r", endpoints: "a1", paths: []path{
		ask("ca", both, "address@r", "a1(n1.gw)", rutter("ipvs", "r(n1)", ipvsRouter)),
		ask("n1", both, "address@r", "a1(n1.gw)"),
		ask("ca", both, "address@r:81", "r(ca)"),
	}},
	{name: "ipv4-only", service: "lb external ipv4-only", endpoints: "a1", paths: []path{
		ask("ca", "tcp4 udp4", "cluster", "a1(ca)"),
		ask("out", both, "nodeport@n1", "a1(n1.gw)", but("6", "refused")),
		ask("out", both, "vip", "a1(n1.gw)", but("6", "r(out)")),
		ask("ca", both, "external", "a1(n1.gw)", but("6", "r(ca)")),
	}},
	{name: "ipv6-only", service: "lb ipv6-only", endpoints: "a1", paths: []path{
		ask("ca", "tcp6 udp6", "cluster", "a1(ca)"),
		ask("out", both, "nodeport@n1", "a1(n1.gw)", but("4", "refused")),
		ask("out", both, "vip", "a1(n1.gw)", but("4", "r(out)")),
	}},
	{name: "eight-endpoints", service: "", endpoints: "a1 a2 b1 b2 a1:port=8081 a2:port=8081 b1:port=8081 b2:port=8081", paths: []path{
		spread("ca", both, "cluster", "even: a1(ca) a1:2(ca) a2(ca) a2:2(ca) b1(ca) b1:2(ca) b2(ca) b2:2(ca)"),
		ask("a1", "tcp", "cluster", "a1(n1.gw) a1:2(n1.gw) a2(a1) a2:2(a1) b1(a1) b1:2(a1) b2(a1) b2:2(a1)"),
	}},

	// Topology.
	{name: "zone-hints", service: "lb", endpoints: "a1:zone=z1 b1:zone=z2", paths: []path{
		ask("ca", both, "cluster", "a1(ca)"),
		ask("cb", both, "cluster", "b1(cb)"),
		ask("out", both, "vip", "a1(n1.gw)"),
	}},
	{name: "node-hints", service: "", endpoints: "a1:node=n1 a2:node=n2:node=n1 b1:node=n2", paths: []path{
		ask("ca", both, "cluster", "a1(ca) a2(ca)"),
		ask("cb", both, "cluster", "a2(cb) b1(cb)"),
	}},
	{name: "node-and-zone-hints", service: "", endpoints: "a1:node=n2:zone=z1 a2:node=n2:zone=z1 b1:node=n2:zone=z2", paths: []path{
		ask("ca", both, "cluster", "a1(ca) a2(ca)"),
		ask("cb", both, "cluster", "a1(cb) a2(cb) b1(cb)"),
	}},
	{name: "hints-missing", service: "", endpoints: "a1:zone=z1 b1", paths: []path{ask("ca", both, "cluster", "a1(ca) b1(ca)")}},
	{name: "hints-elsewhere", service: "", endpoints: "a1:zone=z3 b1:zone=z3", paths: []path{ask("ca", both, "cluster", "a1(ca) b1(ca)")}},
	{name: "hints-unready", service: "", endpoints: "a1:zone=z2 a2:notready b1:zone=z1", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
	{name: "hints-draining", service: "", endpoints: "a1:zone=z1:terminating b1:zone=z2", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
	{name: "hints-all-draining", service: "", endpoints: "a1:zone=z1:terminating b1:zone=z2:terminating", paths: []path{ask("ca", both, "cluster", "a1(ca) b1(ca)")}},
	{name: "hints-itp-local", service: "itp-local", endpoints: "a1:zone=z2 a2:zone=z1", paths: []path{ask("ca", both, "cluster", "a1(ca) a2(ca)")}},
	{name: "hints-etp-local", service: "lb etp-local", endpoints: "a1:zone=z2 b1:zone=z1", paths: []path{
		ask("out", both, "vip", "a1(out)"),
		ask("ca", both, "vip", "b1(ca)", but("ipvs", "a1(ca)")),
	}},

	// Load balancers.
	{name: "ranges", service: "lb external ranges=out", endpoints: "a1", paths: []path{
		ask("out", all, "vip", "a1(n1.gw)"),
		ask("out.1", both, "vip", "silence"),
		ask("ca", both, "vip", "silence"),
		ask("cb", both, "vip", "silence"),
		ask("n1", both, "vip", "silence", but("udp", "forbidden")),
		ask("out.1", both, "external", "a1(n1.gw)"),
		ask("out.1", both, "nodeport@n1", "a1(n1.gw)"),
		ask("ca", both, "cluster", "a1(ca)"),
	}},
	{name: "ranges-pods", service: "lb ranges=10.244.0.0/16,fd00:244::/48", endpoints: "a1", paths: []path{
		ask("ca", both, "vip", "a1(n1.gw)"),
		ask("out", both, "vip", "silence"),
	}},
	{name: "ranges-node", service: "lb ranges=n1", endpoints: "a1", paths: []path{
		ask("n1", both, "vip", "a1(n1.gw)"),
		ask("out", both, "vip", "silence"),
	}},
	{name: "ranges-everybody", service: "lb ranges=0.0.0.0/0,::/0,10.1.0.0/16", endpoints: "a1", paths: []path{ask("out", both, "vip", "a1(n1.gw)")}},
	{name: "ranges-of-ipv4", service: "lb ranges=10.1.0.0/16", endpoints: "a1", paths: []path{
		ask("out", both, "vip", "silence", but("6", "a1(n1.gw)")),
	}},
	{name: "ranges-overlap", service: "lb ranges=192.0.2.0/24,192.0.2.8/29,2001:db8:1::/64,2001:db8:1::/96", endpoints: "a1", paths: []path{
		ask("out", both, "vip", "a1(n1.gw)"),
		ask("ca", both, "vip", "silence"),
	}},
	{name: "ranges-adjacent", service: "lb ranges=out,out.1,255.255.255.0/24,ffff::/16", endpoints: "a1", paths: []path{
		ask("out", both, "vip", "a1(n1.gw)"),
		ask("out.1", both, "vip", "a1(n1.gw)"),
		ask("out.2", both, "vip", "silence"),
		ask("ca", both, "vip", "silence"),
	}},
	{name: "ranges-etp-local", service: "lb etp-local ranges=out", endpoints: "a1 b1", paths: []path{
		ask("out", both, "vip", "a1(out)"),
		ask("out.1", both, "vip", "silence"),
		ask("ca", both, "vip", "silence"),
		ask("out.1", both, "nodeport@n1", "a1(out.1)"),
	}},
	{name: "ranges-none", service: "lb ranges=out", endpoints: "", paths: []path{
		ask("out", both, "vip", "refused"),
		ask("out.1", both, "vip", "silence", but("iptables", "refused")),
	}},
	{name: "no-nodeport", service: "lb no-nodeport etp-local", endpoints: "a1 b1", paths: []path{
		ask("out", both, "vip", "a1(out)"),
		ask("out", both, "nodeport@n1", "refused"),
		health("out", "health@n1", "200, weight 1"),
	}},
	{name: "external-etp-local", service: "external etp-local", endpoints: "a1 b1", paths: []path{
		ask("out", both, "external", "a1(out)"),
		ask("ca", both, "external", "a1(ca) b1(ca)", but("ipvs", "a1(ca)")),
	}},
	{name: "ipmode-proxy", service: "lb ipmode-proxy", endpoints: "a1", paths: []path{
		ask("ca", both, "vip", "r(ca)"),
		ask("out", both, "vip", "r(out)"),
		ask("out", both, "nodeport@n1", "a1(n1.gw)"),
		ask("ca", both, "cluster", "a1(ca)"),
	}},
	{name: "other-proxy", service: "nodeport external proxy-name", endpoints: "a1", paths: []path{
		ask("ca", both, "cluster", "silence", but("iptables", "r(ca)"), but("ipvs", "r(ca)")),
		ask("ca", both, "external", "r(ca)"),
		ask("out", both, "nodeport@n1", "refused"),
	}},

	// Spreading.
	{name: "spread", service: "lb", endpoints: "a1 a2 b1 b2", paths: []path{
		spread("ca", all, "cluster", "even: a1(ca) a2(ca) b1(ca) b2(ca)"),
		spread("out", both, "nodeport@n1", "even: a1(n1.gw) a2(n1.gw) b1(n1) b2(n1)"),
	}},
	{name: "spread-local", service: "lb etp-local", endpoints: "a1 a2 b1", paths: []path{
		spread("out", both, "vip", "even: a1(out) a2(out)"),
		spread("ca", "tcp", "vip", "even: a1(ca) a2(ca) b1(ca)", but("ipvs", "even: a1(ca) a2(ca)")),
	}},
	{name: "affinity", service: "lb external affinity=10800 port2", endpoints: "a1 a2 b1 b2", paths: []path{
		stick("ca", both, "cluster", "one"),
		stick("a1", both, "cluster", "one"),
		stick("n1", both, "cluster", "one"),
		stick("out", both, "vip", "one"),
		stick("out", both, "external", "one"),
		stick("out", both, "nodeport@n1", "one"),
		stick("ca", both, "cluster:81", "one"),
	}},
	{name: "affinity-off", service: "lb", endpoints: "a1 a2 b1 b2", paths: []path{
		stick("ca", both, "cluster", "several"),
		stick("out", both, "vip", "several"),
	}},
	{name: "affinity-local", service: "lb etp-local affinity=10800", endpoints: "a1 a2 b1 b2", paths: []path{
		stick("out", both, "vip", "one"),
		stick("ca", both, "vip", "one"),
	}},
}
