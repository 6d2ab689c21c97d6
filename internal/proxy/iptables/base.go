package iptables

import (
	"fmt"
	"net/netip"
)

// jump is a rule of a built-in chain that leads into one of ours.
type jump struct{ table, from, to, match string }

func (j *jump) rule() string { return j.match + "-j " + j.to }

// jumps lists them in kube-proxy's order. Each is put in front of what is there
// if it is missing, so the last comes first.
func jumps() []jump {
	const isNew = "-m conntrack --ctstate NEW "
	portal := comment("kubernetes service portals") + " "
	outside := comment("kubernetes externally-visible service portals") + " "
	firewall := comment("kubernetes load balancer firewall") + " "
	return []jump{
		{"filter", "INPUT", externalChain, isNew + outside},
		{"filter", "FORWARD", externalChain, isNew + outside},
		{"filter", "INPUT", nodePortsChain, comment("kubernetes health check service ports") + " "},
		{"filter", "FORWARD", servicesChain, isNew + portal},
		{"filter", "OUTPUT", servicesChain, isNew + portal},
		{"filter", "FORWARD", forwardChain, comment("kubernetes forwarding rules") + " "},
		{"filter", "INPUT", firewallChain, isNew + firewall},
		{"filter", "OUTPUT", firewallChain, isNew + firewall},
		{"filter", "FORWARD", firewallChain, isNew + firewall},
		{"nat", "OUTPUT", servicesChain, portal},
		{"nat", "PREROUTING", servicesChain, portal},
		{"nat", "POSTROUTING", postroutingChain, comment("kubernetes postrouting rules") + " "},
		{"filter", "INPUT", kubeletChain, ""},
		{"filter", "OUTPUT", kubeletChain, ""},
	}
}

// fixed makes the chains of a table that do not depend on services.
func (st *style) fixed(table string) []chain {
	mark := fmt.Sprintf("%#x/%#x", st.mark, st.mark)
	switch table {
	case "mangle":
		return []chain{{name: canaryChain}}
	case "nat":
		masquerade := comment("kubernetes service traffic requiring SNAT") + " -j MASQUERADE"
		if st.randomFully {
			masquerade += " --random-fully"
		}
		return []chain{
			{name: canaryChain},
			{postroutingChain, []string{
				"-m mark ! --mark " + mark + " -j RETURN",
				// A packet that comes by again must not be masqueraded again.
				fmt.Sprintf("-j MARK --set-xmark %#x/0x0", st.mark),
				masquerade,
			}},
			{markChain, []string{"-j MARK --set-xmark " + mark}},
		}
	}
	forward := chain{name: forwardChain}
	if !st.liberal {
		// Packets out of window would reach the client untranslated, which would
		// reset the connection (kubernetes issue 74839).
		invalid := "-m conntrack --ctstate INVALID "
		if st.accounts[invalidAccount] {
			invalid += "-m nfacct --nfacct-name " + invalidAccount + " "
		}
		forward.rules = append(forward.rules, invalid+"-j DROP")
	}
	forward.rules = append(forward.rules,
		comment("kubernetes forwarding rules")+" -m mark --mark "+mark+" -j ACCEPT",
		comment("kubernetes forwarding conntrack rule")+" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	chains := []chain{{name: canaryChain}, forward}
	if kubelet := (chain{name: kubeletChain}); !st.v6 && st.rules.LocalhostNodePorts {
		// route_localnet, which node ports on 127.0.0.1 need, lets other hosts
		// reach 127.0.0.0/8 (CVE-2020-8558).
		kubelet.rules = []string{"! -s 127.0.0.0/8 -d 127.0.0.0/8 " + comment("block incoming localnet connections") +
			" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"}
		chains = append(chains, kubelet)
	}
	return chains
}

// last are the rules at the end of nat's KUBE-SERVICES: where node ports are
// served.
func (st *style) last() (list []string) {
	note := comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
	if st.rules.NodePortAddrs == nil {
		not := ""
		switch {
		case st.v6:
			not = "! -d ::1/128 "
		case !st.rules.LocalhostNodePorts:
			not = "! -d 127.0.0.0/8 "
		}
		return []string{not + note + " -m addrtype --dst-type LOCAL -j " + nodePortsChain}
	}
	addrs := st.rules.NodePortAddrs
	if st.rules.LocalhostNodePorts {
		addrs = append(addrs[:len(addrs):len(addrs)], netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	for _, a := range addrs {
		if a.Is6() == st.v6 {
			list = append(list, "-d "+host(a)+" "+note+" -j "+nodePortsChain)
		}
	}
	return list
}
