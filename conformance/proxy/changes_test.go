package proxy

import (
	"golang.org/x/sys/unix"
)

// open opens a flow, keeps it under a name and asks once.
func open(flow, from, protos, to, want string, but ...exception) path {
	return path{how: "open", flow: flow, from: from, protos: protos, to: to, want: want, but: but}
}

// again asks on an open flow: a connection, or the same UDP socket.
func again(flow, protos, want string, but ...exception) path {
	return path{how: "again", flow: flow, protos: protos, want: want, but: but}
}

// same tells whether the one who answered first on a flow still does.
func same(flow, protos, want string, but ...exception) path {
	return path{how: "same", flow: flow, protos: protos, want: want, but: but}
}

// rutter is an outcome of Rutter's that is not kube-proxy's. It names the row
// of docs/compatibility.md that gives the reason.
func rutter(words, outcome, deviation string) exception {
	return exception{words: "rutter " + words, outcome: outcome, deviation: deviation}
}

// In mode ipvs an SCTP INIT on a known flow, which is how these ask again, begins
// a new one: where several may answer, the rows are not looked at.

// changes are the scenarios that something happens to.
var changes = []scenario{
	{name: "endpoint-replaced", service: "lb", endpoints: "a1",
		paths: []path{
			open("pod", "ca", all, "cluster", "a1(ca)"),
			open("node", "n1", both, "cluster", "a1(n1.gw)"),
			open("nodeport", "out", all, "nodeport@n1", "a1(n1.gw)"),
			open("vip", "out", both, "vip", "a1(n1.gw)"),
		},
		steps: []step{{what: "b1 in the place of a1", endpoints: "b1", paths: []path{
			again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
			again("node", both, "a1(n1.gw)", but("udp", "b1(n1)")),
			again("nodeport", both, "a1(n1.gw)", but("udp", "b1(n1)")),
			again("vip", both, "a1(n1.gw)", but("udp", "b1(n1)")),
			again("pod", "sctp", "a1(ca)", rutter("", "b1(ca)", staleUDP)),
			again("nodeport", "sctp", "a1(n1.gw)", rutter("", "b1(n1)", staleUDP)),
			ask("ca", all, "cluster", "b1(ca)"),
			ask("out", both, "vip", "b1(n1)"),
		}}}},
	{name: "endpoint-draining", service: "", endpoints: "a1",
		paths: []path{open("pod", "ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "a1 terminating, b1 ready", endpoints: "a1:terminating b1", paths: []path{
				again("pod", both, "a1(ca)"),
				ask("ca", both, "cluster", "b1(ca)"),
			}},
			{what: "a1 gone", endpoints: "b1", paths: []path{again("pod", both, "a1(ca)", but("udp", "b1(ca)"))}},
		}},
	{name: "endpoint-unready", service: "", endpoints: "a1",
		paths: []path{open("pod", "ca", both, "cluster", "a1(ca)")},
		steps: []step{{what: "a1 not ready, b1 ready", endpoints: "a1:notready b1", paths: []path{
			again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
			ask("ca", both, "cluster", "b1(ca)"),
		}}}},
	{name: "endpoint-added", service: "nodeport", endpoints: "a1",
		paths: []path{open("pod", "ca", both, "cluster", "a1(ca)"), open("nodeport", "out", both, "nodeport@n1", "a1(n1.gw)")},
		steps: []step{{what: "b1 too", endpoints: "a1 b1", paths: []path{
			again("pod", both, "a1(ca)"),
			again("nodeport", both, "a1(n1.gw)"),
			ask("ca", both, "cluster", "a1(ca) b1(ca)"),
		}}}},
	{name: "endpoint-first", service: "nodeport", endpoints: "",
		paths: []path{
			open("pod", "ca", "udp sctp", "cluster", "refused"),
			open("nodeport", "out", "udp", "nodeport@n1", "refused"),
		},
		steps: []step{{what: "a1 arrived", endpoints: "a1", paths: []path{
			again("pod", "udp sctp", "a1(ca)"),
			again("nodeport", "udp", "a1(n1.gw)"),
			ask("ca", all, "cluster", "a1(ca)"),
		}}}},
	{name: "endpoint-last", service: "lb", endpoints: "a1",
		paths: []path{
			open("pod", "ca", all, "cluster", "a1(ca)"),
			open("node", "n1", both, "cluster", "a1(n1.gw)"),
			open("nodeport", "out", both, "nodeport@n1", "a1(n1.gw)"),
			open("vip", "out", both, "vip", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "no endpoint left", endpoints: "none", paths: []path{
				again("pod", all, "a1(ca)", rutter("udp", "refused", staleUDP), rutter("sctp", "refused", staleUDP)),
				again("node", both, "a1(n1.gw)", rutter("udp", "forbidden", staleUDP)),
				again("nodeport", both, "a1(n1.gw)", rutter("udp", "refused", staleUDP)),
				again("vip", both, "a1(n1.gw)", rutter("udp", "refused", staleUDP)),
				ask("ca", all, "cluster", "refused"),
				ask("out", both, "nodeport@n1", "refused"),
				ask("out", both, "vip", "refused"),
			}},
			{what: "b1 arrived", endpoints: "b1", paths: []path{
				again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
				again("nodeport", both, "a1(n1.gw)", but("udp", "b1(n1)")),
				ask("ca", both, "cluster", "b1(ca)"),
			}},
		}},
	{name: "service-deleted", service: "lb external", endpoints: "a1",
		paths: []path{
			open("pod", "ca", all, "cluster", "a1(ca)"),
			open("nodeport", "out", both, "nodeport@n1", "a1(n1.gw)"),
			open("vip", "out", both, "vip", "a1(n1.gw)"),
			open("external", "ca", both, "external", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "deleted", remove: true, paths: []path{
				again("pod", all, "a1(ca)", rutter("udp", "silence", staleUDP), rutter("sctp", "silence", staleUDP), rutter("ipvs udp", "refused", ipvsDrain), rutter("ipvs sctp", "refused", ipvsDrain), rutter("iptables udp", "r(ca)", staleUDP), rutter("iptables sctp", "unreachable", staleUDP)),
				again("nodeport", both, "a1(n1.gw)", rutter("udp", "refused", staleUDP)),
				again("vip", both, "a1(n1.gw)", rutter("udp", "r(out)", staleUDP), rutter("ipvs udp", "refused", ipvsDrain)),
				again("external", both, "a1(n1.gw)", rutter("udp", "r(ca)", staleUDP), rutter("ipvs udp", "refused", ipvsDrain)),
				ask("ca", both, "cluster", "silence", but("iptables", "r(ca)"), but("ipvs", "r(ca)"), rutter("ipvs", "refused", ipvsDrain)),
				ask("out", both, "nodeport@n1", "refused"),
				ask("out", both, "vip", "r(out)", rutter("ipvs", "refused", ipvsDrain)),
				ask("ca", both, "external", "r(ca)", rutter("ipvs", "refused", ipvsDrain)),
			}},
			{what: "back with b1", endpoints: "b1", paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
				ask("out", both, "vip", "b1(n1)"),
				again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
			}},
		}},
	{name: "port-changed", service: "", endpoints: "a1",
		paths: []path{open("pod", "ca", all, "cluster", "a1(ca)")},
		steps: []step{{what: "port 82 in the place of 80", service: "port80=82", paths: []path{
			again("pod", all, "a1(ca)", rutter("udp", "refused", staleUDP), rutter("sctp", "refused", staleUDP), rutter("iptables udp", "r(ca)", staleUDP), rutter("iptables sctp", "unreachable", staleUDP)),
			ask("ca", both, "cluster", "refused", but("iptables", "r(ca)")),
			ask("ca", both, "cluster:82", "a1(ca)"),
		}}}},
	{name: "target-port-changed", service: "", endpoints: "a1",
		paths: []path{open("pod", "ca", both, "cluster", "a1(ca)")},
		steps: []step{{what: "8081 in the place of 8080", endpoints: "a1:port=8081", paths: []path{
			again("pod", both, "a1(ca)", but("udp", "a1:2(ca)")),
			ask("ca", both, "cluster", "a1:2(ca)"),
		}}}},
	{name: "protocol-changed", service: "nodeport tcp-only", endpoints: "a1",
		paths: []path{ask("out", both, "nodeport@n1", "a1(n1.gw)", but("udp", "refused"))},
		steps: []step{{what: "UDP in the place of TCP", service: "nodeport udp-only", paths: []path{
			ask("out", both, "nodeport@n1", "a1(n1.gw)", but("tcp", "refused")),
			ask("ca", both, "cluster", "a1(ca)", but("tcp", "refused"), but("tcp iptables", "r(ca)")),
		}}}},
	{name: "addresses-reused", service: "nodeport", endpoints: "a1",
		paths: []path{open("pod", "ca", both, "cluster", "a1(ca)"), open("nodeport", "out", both, "nodeport@n1", "a1(n1.gw)")},
		steps: []step{{what: "another service has its cluster IP and node port", remove: true, also: reuse("addresses-reused", "b1"), paths: []path{
			again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
			again("nodeport", both, "a1(n1.gw)", but("udp", "b1(n1)")),
			ask("ca", all, "cluster", "b1(ca)"),
			ask("out", both, "nodeport@n1", "b1(n1)"),
		}}}},
	{name: "fronts-removed", service: "lb external", endpoints: "a1",
		paths: []path{
			open("pod", "ca", both, "cluster", "a1(ca)"),
			open("nodeport", "out", both, "nodeport@n1", "a1(n1.gw)"),
			open("external", "out", both, "external", "a1(n1.gw)"),
		},
		steps: []step{{what: "ClusterIP only", service: "cluster-ip-only", paths: []path{
			again("pod", both, "a1(ca)"),
			again("nodeport", both, "a1(n1.gw)", rutter("udp", "refused", staleUDP)),
			again("external", both, "a1(n1.gw)", rutter("udp", "r(out)", staleUDP), rutter("ipvs udp", "refused", ipvsDrain)),
			ask("out", both, "nodeport@n1", "refused"),
			ask("out", both, "external", "r(out)", rutter("ipvs", "refused", ipvsDrain)),
			ask("ca", both, "cluster", "a1(ca)"),
		}}}},
	{name: "fronts-added", service: "", endpoints: "a1",
		paths: []path{
			ask("out", both, "nodeport@n1", "refused"),
			open("nodeport", "out", "udp", "nodeport@n1", "refused"),
			open("external", "out", "udp", "external", "r(out)"),
		},
		steps: []step{{what: "a node port and an external IP", service: "nodeport external", paths: []path{
			ask("out", both, "nodeport@n1", "a1(n1.gw)"),
			ask("out", both, "external", "a1(n1.gw)"),
			again("nodeport", "udp", "a1(n1.gw)"),
			again("external", "udp", "a1(n1.gw)"),
		}}}},
	{name: "label-added", service: "", endpoints: "a1",
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "given to another proxy", service: "proxy-name", paths: []path{
				ask("ca", both, "cluster", "silence", but("iptables", "r(ca)"), but("ipvs", "r(ca)"))}},
			{what: "taken back", service: "given-back", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
		}},
	{name: "policies-changed", service: "lb", endpoints: "a1 b1",
		paths: []path{
			ask("out", both, "vip", "a1(n1.gw) b1(n1)"),
			open("vip", "out", all, "vip", "answer"),
			open("pod", "ca", all, "cluster", "answer"),
		},
		steps: []step{
			{what: "both policies Local", service: "lb etp-local itp-local", paths: []path{
				same("vip", all, "same", but("ipvs sctp", notLookedAt)),
				same("pod", all, "same", but("ipvs sctp", notLookedAt)),
				ask("out", both, "vip", "a1(out)"),
				ask("ca", both, "cluster", "a1(ca)"),
				health("out", "health@n1", "200, weight 1"),
			}},
			{what: "only b1", endpoints: "b1", paths: []path{
				ask("out", both, "vip", "silence"),
				ask("ca", both, "cluster", "silence"),
				health("out", "health@n1", "503, weight 0"),
			}},
			{what: "both policies Cluster", service: "lb again", paths: []path{
				ask("out", both, "vip", "b1(n1)"),
				ask("ca", both, "cluster", "b1(ca)"),
				health("out", "health@n1", "refused"),
			}},
		}},
	{name: "ranges-changed", service: "lb ranges=out", endpoints: "a1",
		paths: []path{
			ask("out.1", both, "vip", "silence"),
			open("vip", "out", both, "vip", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "another range", service: "lb ranges=out.1", paths: []path{
				again("vip", both, "a1(n1.gw)"), // open flows are let be
				ask("out.1", both, "vip", "a1(n1.gw)"),
				ask("out", both, "vip", "silence"),
			}},
			{what: "no ranges", service: "lb", paths: []path{ask("out", both, "vip", "a1(n1.gw)")}},
		}},
	{name: "ipmode-changed", service: "lb", endpoints: "a1",
		paths: []path{ask("out", both, "vip", "a1(n1.gw)"), open("vip", "out", both, "vip", "a1(n1.gw)")},
		steps: []step{
			{what: "ipMode Proxy", service: "lb ipmode-proxy", paths: []path{
				ask("out", both, "vip", "r(out)", rutter("ipvs", "refused", ipvsDrain)),
				ask("ca", both, "vip", "r(ca)", rutter("ipvs", "refused", ipvsDrain)),
				again("vip", both, "a1(n1.gw)", rutter("udp", "r(out)", staleUDP), rutter("ipvs udp", "refused", ipvsDrain)),
			}},
			{what: "ipMode VIP", service: "lb", paths: []path{ask("out", both, "vip", "a1(n1.gw)")}},
		}},
	{name: "hints-changed", service: "", endpoints: "a1:zone=z1 b1:zone=z2",
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "zones exchanged", endpoints: "a1:zone=z2 b1:zone=z1", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
			{what: "hints taken away", endpoints: "a1 b1", paths: []path{ask("ca", both, "cluster", "a1(ca) b1(ca)")}},
		}},
	{name: "affinity-kept", service: "lb affinity=10800", endpoints: "a1",
		paths: []path{
			ask("ca", both, "cluster", "a1(ca)"),
			ask("out", both, "vip", "a1(n1.gw)"),
		},
		steps: []step{
			{what: "b1 too", endpoints: "a1 b1", paths: []path{
				ask("ca", both, "cluster", "a1(ca)"),
				ask("out", both, "vip", "a1(n1.gw)"),
				ask("out", both, "nodeport@n1", "a1(n1.gw)", but("ipvs", notLookedAt)), // one client, whatever the front end
			}},
			{what: "a1 terminating", endpoints: "a1:terminating b1", paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
				ask("out", both, "vip", "b1(n1)"),
			}},
			{what: "a1 back", endpoints: "a1 b1", paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
				ask("out", both, "vip", "b1(n1)"),
			}},
			{what: "b1 gone", endpoints: "a1", paths: []path{
				ask("ca", both, "cluster", "a1(ca)"),
				ask("out", both, "vip", "a1(n1.gw)"),
			}},
		}},
	{name: "affinity-local-after-cluster", service: "lb etp-local affinity=10800", endpoints: "b1",
		paths: []path{ask("out", both, "cluster", "b1(n1)")},
		steps: []step{{what: "a1 too", endpoints: "a1 b1", paths: []path{
			ask("out", both, "vip", "a1(out)"), // affinity does not lead past the policy
		}}}},
	{name: "affinity-and-hints", service: "affinity=10800", endpoints: "a1",
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "b1 for this zone, a1 for the other", endpoints: "a1:zone=z2 b1:zone=z1", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
			{what: "no hints", endpoints: "a1 b1", paths: []path{stick("ca", both, "cluster", "one")}},
		}},
	{name: "affinity-unready", service: "affinity=10800", endpoints: "a1",
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "a1 not ready", endpoints: "a1:notready b1", paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
			{what: "no endpoint", endpoints: "none", paths: []path{ask("ca", both, "cluster", "refused")}},
			{what: "a1 ready", endpoints: "a1", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
		}},
	{name: "affinity-switched", service: "", endpoints: "a1 a2 b1 b2",
		paths: []path{stick("ca", both, "cluster", "several")},
		steps: []step{
			{what: "on", service: "affinity=600", paths: []path{stick("ca", both, "cluster", "one")}},
			{what: "off", service: "without-affinity", paths: []path{stick("ca", both, "cluster", "several")}},
		}},
	{name: "affinity-expires", service: "lb affinity=1", endpoints: "a1",
		paths: []path{{how: "clients", from: "out", protos: both, to: "vip", want: "a1(n1.gw)"}},
		steps: []step{{what: "b1 too, and silence for longer than the timeout", endpoints: "a1 b1", paths: []path{
			{how: "clients after a pause", from: "out", protos: both, to: "vip", want: "a1(n1.gw) b1(n1)", but: []exception{but("ipvs", "a1(n1.gw)")}},
		}}}},

	// From here on one at a time: these disturb the others.
	{name: "zone-changed", service: "", endpoints: "a1:zone=z1 b1:zone=z2", alone: true,
		paths: []path{
			ask("ca", both, "cluster", "a1(ca)"),
			open("pod", "ca", all, "cluster", "a1(ca)"),
			open("other", "ca", all, "spread/cluster", "answer"), // a service that the zone does not matter to
		},
		steps: []step{
			{what: "n1 moved to z2", also: zone("n1", "z2"), paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
				again("pod", all, "a1(ca)"),
				same("other", all, "same", but("ipvs sctp", notLookedAt)),
			}},
			{what: "n1 moved back", also: zone("n1", "z1"), paths: []path{
				ask("ca", both, "cluster", "a1(ca)"),
				again("pod", all, "a1(ca)"),
				same("other", all, "same", but("ipvs sctp", notLookedAt)),
			}},
		}},
	{name: "proxy-stopped", service: "lb", endpoints: "a1 b1", alone: true,
		paths: []path{
			open("pod", "ca", all, "cluster", "answer"),
			open("vip", "out", both, "vip", "answer"),
		},
		steps: []step{
			{what: "SIGTERM", act: stopProxy(unix.SIGTERM), blind: true, paths: []path{
				same("pod", all, "same", but("ipvs sctp", notLookedAt)), same("vip", both, "same"),
				ask("ca", both, "cluster", "a1(ca) b1(ca)"),
				ask("out", both, "vip", "a1(n1.gw) b1(n1)"),
			}},
			{what: "started", act: startProxy, paths: []path{
				same("pod", all, "same", but("ipvs sctp", notLookedAt)), same("vip", both, "same"),
				ask("ca", both, "cluster", "a1(ca) b1(ca)"),
			}},
			{what: "SIGKILL", act: stopProxy(unix.SIGKILL), blind: true, paths: []path{
				same("pod", all, "same", but("ipvs sctp", notLookedAt)), same("vip", both, "same"),
				ask("ca", both, "cluster", "a1(ca) b1(ca)"),
			}},
			{what: "started again", act: startProxy, paths: []path{same("pod", all, "same", but("ipvs sctp", notLookedAt)), same("vip", both, "same")}},
		}},
	{name: "restarted-under-load", service: "lb", endpoints: "a1 b1", alone: true,
		paths: []path{ask("ca", "tcp", "cluster", "a1(ca) b1(ca)")},
		steps: []step{
			{what: "running", act: underLoad("restarted-under-load"), blind: true, paths: []path{load("none failed")}},
			{what: "SIGTERM", act: stopProxy(unix.SIGTERM), blind: true, paths: []path{load("none failed")}},
			{what: "started", act: startProxy, paths: []path{load("none failed")}},
			{what: "SIGKILL", act: stopProxy(unix.SIGKILL), blind: true, paths: []path{load("none failed")}},
			{what: "started again", act: startProxy, paths: []path{load("none failed")}},
			{what: "program replaced", act: replaceProgram, paths: []path{load("none failed")}},
			{what: "a third endpoint", endpoints: "a1 b1 b2", paths: []path{load("none failed")}},
			{what: "and an end", act: endLoad, blind: true},
		}},
	{name: "changed-while-stopped", service: "lb", endpoints: "a1", alone: true,
		paths: []path{open("pod", "ca", all, "cluster", "a1(ca)"), open("vip", "out", both, "vip", "a1(n1.gw)")},
		steps: []step{
			{what: "proxy killed, b1 in the place of a1", act: stopProxy(unix.SIGKILL), endpoints: "b1", blind: true, paths: []path{
				again("pod", all, "a1(ca)"),
				ask("ca", both, "cluster", "a1(ca)"),
			}},
			{what: "started", act: startProxy, paths: []path{
				again("pod", both, "a1(ca)", but("udp", "b1(ca)")),
				again("vip", both, "a1(n1.gw)", but("udp", "b1(n1)")),
				ask("ca", both, "cluster", "b1(ca)"),
			}},
			{what: "proxy killed, service deleted", act: stopProxy(unix.SIGKILL), remove: true, blind: true, paths: []path{
				ask("ca", both, "cluster", "b1(ca)"),
			}},
			{what: "started after the deletion", act: startProxy, paths: []path{
				ask("ca", both, "vip", "r(ca)", rutter("ipvs", "refused", ipvsDrain)),
			}},
			{what: "and everything gone through again", also: fullSync, paths: []path{
				ask("ca", both, "cluster", "silence", but("iptables", "r(ca)"), but("ipvs", "r(ca)"), rutter("ipvs", "refused", ipvsDrain)),
				ask("out", both, "vip", "r(out)", rutter("ipvs", "refused", ipvsDrain)),
				again("pod", "udp", "b1(ca)", rutter("", "silence", staleUDP), rutter("iptables", "r(ca)", staleUDP), rutter("ipvs", "refused", ipvsDrain)),
			}},
		}},
	{name: "node-leaving", service: "lb etp-local", endpoints: "a1", alone: true,
		paths: []path{
			page("out", "tcp", "10256/healthz@n1", "200"),
			page("n1", "tcp4", "10256/livez@lo", "200"),
			page("n1", "tcp4", "10249/healthz@lo", "200"),
			page("n1", "tcp4", "10249/metrics@lo", "200"),
			page("n1", "tcp4", "10249/configz@lo", "200"),
			page("n1", "tcp4", "10249/metrics/slis@lo", "200"),
			page("n1", "tcp4", "10249/statusz@lo", "200"),
			page("n1", "tcp4", "10249/flagz@lo", "200"),
			page("n1", "tcp4", "10249/debug/pprof/@lo", "404"),
			page("n1", "tcp4", "10249/proxyMode@lo", "200 nftables", but("iptables", "200 iptables"), but("ipvs", "200 ipvs"), but("userspace", "200 userspace")),
			page("out", "tcp", "10249/healthz@n1", "refused"),
			page("out", "tcp4", "10256/@n1", "404"),
		},
		steps: []step{
			{what: "the autoscaler's taint", also: taint("n1", "ToBeDeletedByClusterAutoscaler", true), paths: []path{
				page("out", "tcp", "10256/healthz@n1", "503"),
				page("out", "tcp", "10256/livez@n1", "200"),
				health("out", "health@n1", "200, weight 1"),
				ask("out", both, "vip", "a1(out)"),
			}},
			{what: "the taint taken away", also: taint("n1", "", false), paths: []path{page("out", "tcp", "10256/healthz@n1", "200")}},
		}},
	{name: "cleaned-up", service: "lb", endpoints: "a1", alone: true,
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "proxy stopped, and --cleanup", act: cleanUp, blind: true, paths: []path{
				ask("ca", both, "cluster", "r(ca)"),
				ask("ca", both, "unallocated", "r(ca)"),
				ask("out", both, "vip", "r(out)"),
				ask("out", both, "nodeport@n1", "refused"),
			}},
			{what: "started again", act: startProxy, paths: []path{
				ask("ca", both, "cluster", "a1(ca)"),
				ask("out", both, "vip", "a1(n1.gw)"),
			}},
		}},
	{name: "table-removed", service: "lb", endpoints: "a1", alone: true,
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "one table deleted, and a while", act: removeTable, pause: 3 * syncPeriod, blind: true, paths: []path{
				ask("ca", both, "cluster", "a1(ca)", till("kube-proxy 4", "r(ca)"), rutter("4", "a1(ca)", repair)),
			}},
			{what: "a change of a service", paths: []path{ask("ca", both, "cluster", "a1(ca)")}},
		}},
	{name: "tables-removed", service: "lb", endpoints: "a1", alone: true,
		paths: []path{ask("ca", both, "cluster", "a1(ca)"), open("pod", "ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "nft flush ruleset, and a while", act: flush, pause: 3 * syncPeriod, blind: true, paths: []path{
				again("pod", both, "a1(ca)", till("kube-proxy nftables tcp", "closed"), till("kube-proxy nftables udp", "r(ca)"), rutter("nftables", "a1(ca)", repair),
					but("ipvs tcp", notLookedAt)), // opened before the clean-up above, which ends connections in this mode
				ask("ca", both, "cluster", "a1(ca)", till("kube-proxy nftables", "r(ca)"), rutter("nftables", "a1(ca)", repair)),
				ask("out", both, "vip", "a1(n1.gw)", till("kube-proxy nftables", "r(out)"), rutter("nftables", "a1(n1.gw)", repair)),
			}},
			{what: "a change of a service", paths: []path{
				ask("ca", both, "cluster", "a1(ca)"),
				ask("out", both, "vip", "a1(n1.gw)"),
			}},
		}},
	{name: "others-frozen", service: "", endpoints: "a1", alone: true,
		paths: []path{ask("ca", both, "cluster", "a1(ca)")},
		steps: []step{
			{what: "a service with the longest names, and b1 in the place of a1", also: createLong, endpoints: "b1",
				pause: 3 * syncPeriod, blind: true, paths: []path{
					ask("ca", both, "cluster", "b1(ca)", till("kube-proxy nftables", "a1(ca)"), rutter("nftables", "b1(ca)", longNames)),
					ask("ca", both, "long/cluster", "refused", till("kube-proxy nftables", "silence"), rutter("nftables", "refused", longNames)),
				}},
			{what: "that service deleted", also: removeLong, paths: []path{ask("ca", both, "cluster", "b1(ca)")}},
		}},
}
