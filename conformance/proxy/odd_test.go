package proxy

import "fmt"

// odd are the scenarios of what is seldom and legal. IPv4-mapped addresses are
// not among them, which the API server refuses (StrictIPCIDRValidation) and only
// an older one holds: internal/proxy/plan has them in its tests.
var odd = []scenario{
	{name: "endpoints-twice", service: "tcp-only", endpoints: "a1 a1 a1:slice=2 b1", paths: []path{
		spread("ca", "tcp", "cluster", "even: a1(ca) b1(ca)"),
	}},
	{name: "slices-without-ports", service: "", endpoints: "a1 b1:no-ports b2:any-port", paths: []path{
		ask("ca", both, "cluster", "a1(ca)"),
	}},
	{name: "only-slices-without-ports", service: "nodeport", endpoints: "a1:no-ports b1:any-port", paths: []path{
		ask("ca", both, "cluster", "refused"),
		ask("out", both, "nodeport@n1", "refused"),
	}},
	{name: "external-is-vip", service: "lb vip-too", endpoints: "a1", paths: []path{
		ask("out", both, "vip", "a1(n1.gw)"),
		ask("ca", both, "vip", "a1(n1.gw)"),
		ask("ca", both, "cluster", "a1(ca)"),
	}},
	{name: "external-name", service: "lb external", endpoints: "a1",
		paths: []path{
			open("pod", "ca", both, "cluster", "a1(ca)"),
			ask("out", both, "vip", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "ExternalName", service: "external-name", paths: []path{
				ask("ca", both, "cluster", "silence", but("iptables", "r(ca)")),
				ask("out", both, "vip", "r(out)"),
				ask("ca", both, "external", "r(ca)"),
				ask("out", both, "nodeport@n1", "refused"),
				again("pod", both, "a1(ca)", rutter("udp", "silence", staleUDP), rutter("iptables udp", "r(ca)", staleUDP)),
			}},
			{what: "ClusterIP again", service: "external", endpoints: "b1", paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
				ask("ca", both, "external", "b1(n1)"),
				ask("out", both, "vip", "r(out)"),
				again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
			}},
		}},

	// One family is enough for what is about numbers.
	{name: "thousand-ports", service: "ipv4-only", endpoints: "a1",
		paths: []path{ask("ca", "tcp4 udp4", "cluster", "a1(ca)")},
		steps: []step{
			{what: "1,000 ports", service: "ports=1000 ipv4-only", paths: []path{
				ask("ca", "tcp4 udp4", "cluster", "a1(ca)"),
				ask("ca", "tcp4", "cluster:2000", "a1(ca)"),
				ask("ca", "tcp4", "cluster:2500", "a1(ca)"),
				ask("ca", "tcp4", "cluster:2999", "a1(ca)"),
				ask("ca", "tcp4", "cluster:3000", "refused"),
			}},
			{what: "b1 in the place of a1", endpoints: "b1", paths: []path{
				ask("ca", "tcp4", "cluster:2000", "b1(ca)"),
				ask("ca", "tcp4", "cluster:2999", "b1(ca)"),
			}},
			{what: "without them", service: "ipv4-only without", paths: []path{
				ask("ca", "tcp4 udp4", "cluster", "b1(ca)"),
				ask("ca", "tcp4", "cluster:2999", "refused"),
			}},
		}},
	{name: "thousands-of-endpoints", service: "tcp-only ipv4-only", endpoints: "b1",
		paths: []path{ask("ca", "tcp4", "cluster", "b1(ca)")},
		steps: []step{
			{what: "3,000 of them", endpoints: "a1:many=3000", paths: []path{
				ask("ca", "tcp4", "cluster", "a1(ca)"),
				ask("cb", "tcp4", "cluster", "a1(cb)"),
			}},
			{what: "1,500", endpoints: "a1:many=1500", paths: []path{ask("ca", "tcp4", "cluster", "a1(ca)")}},
			{what: "one again", endpoints: "b1", paths: []path{ask("ca", "tcp4", "cluster", "b1(ca)")}},
		}},
	{name: "contested", service: "external", endpoints: "a1",
		paths: []path{
			ask("ca", both, "external", "a1(n1.gw)"),
			open("first", "ca", both, "external", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "another service claims its external IP", also: contend("contested", "b1"), paths: []path{
				stick("ca", both, "external", "one"),
				again("first", "tcp", "a1(n1.gw)"),
				ask("ca", both, "cluster", "a1(ca)"),
				ask("ca", both, "contender/cluster", "b1(ca)"),
			}},
			{what: "the first deleted", remove: true, paths: []path{
				ask("ca", both, "external", "b1(n1)"),
				ask("out", both, "external", "b1(n1)"),
				ask("ca", both, "contender/cluster", "b1(ca)"),
			}},
			{what: "the other deleted", also: func(r *runner) error { return r.cluster.remove(r.ctx, r.cluster.services["contender"]) }, paths: []path{
				ask("ca", both, "external", "r(ca)"),
			}},
		}},
}

// contend makes a service that claims the external IPs of another.
func contend(name, endpoints string) func(*runner) error {
	return func(r *runner) error {
		first := r.cluster.services[name]
		if first == nil {
			return fmt.Errorf("no scenario is called %s", name)
		}
		s := &service{namespace: first.namespace, name: "contender", index: 248, like: first.index, options: first.options, endpoints: endpoints}
		r.cluster.services[s.name] = s
		return r.cluster.put(r.ctx, s)
	}
}
