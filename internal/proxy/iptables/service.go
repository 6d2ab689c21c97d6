package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// shared is a chain in which every service has rules.
type shared uint8

const (
	natServices shared = iota
	natNodePorts
	filterServices
	filterExternal
	filterNodePorts
	filterFirewall
	sharedCount
)

var sharedChains = [sharedCount]struct{ table, chain string }{
	{"nat", servicesChain}, {"nat", nodePortsChain},
	{"filter", servicesChain}, {"filter", externalChain}, {"filter", nodePortsChain}, {"filter", firewallChain},
}

// rules is the rules of one service: chains of its own, all in table nat, and
// lines in the shared chains. Rules are in the form in which iptables-save
// lists them, without the chain, so that what the kernel holds can be compared.
type rules struct {
	chains []chain
	shared [sharedCount][]string
}

type chain struct {
	name  string
	rules []string
}

// style is what rules depend on besides the service.
type style struct {
	v6          bool
	rules       plan.Rules
	mark        uint32
	randomFully bool
	liberal     bool // nf_conntrack_tcp_be_liberal: INVALID is no reason to drop
	accounts    map[string]bool
}

// service makes the rules of a service in this family. comments says at each
// rule whose it is; in big clusters those at endpoints' rules are left out, which
// saves two fifths of the table.
func (st *style) service(s *plan.Service, comments bool) *rules {
	r := &rules{}
	w := writer{style: st, out: r, comments: comments}
	for i := range s.Ports {
		if p := &s.Ports[i]; p.Is6() == st.v6 {
			w.port(s, p)
		}
	}
	return r
}

// writer makes the rules of service ports.
type writer struct {
	*style
	out      *rules
	comments bool

	name, protocol string
	port_          *plan.Port
}

func (w *writer) add(c shared, rule string) { w.out.shared[c] = append(w.out.shared[c], rule) }

// port makes the rules of one port, in the order in which a packet meets them.
func (w *writer) port(s *plan.Service, p *plan.Port) {
	w.name, w.protocol, w.port_ = portName(s.Name, p.Name), protocolName(p.Protocol), p
	id := hash(w.name + w.protocol)
	svc, svl, ext, fw := clusterPrefix+id, localPrefix+id, outsidePrefix+id, sourcesPrefix+id
	internal, external := svc, svc
	if p.InternalLocal {
		internal = svl
	}
	if p.ExternalLocal {
		external = svl
	}
	hasInternal := p.Usable && len(p.Internal()) > 0
	hasExternal := p.Usable && (!p.ExternalLocal || len(p.Local) > 0)
	dport := p.ClusterIP.Port()

	// Who reaches nothing is told so in table filter: REJECT is not allowed in
	// nat, which lets these packets pass.
	refuse := "REJECT --reject-with icmp-port-unreachable"
	if w.v6 {
		refuse = "REJECT --reject-with icmp6-port-unreachable"
	}
	none := w.name + " has no endpoints"
	if p.Usable {
		refuse, none = "DROP", w.name+" has no local endpoints"
	}

	if hasInternal {
		w.add(natServices, w.match("", p.ClusterIP.Addr(), dport, w.name+" cluster IP", "")+" -j "+internal)
	} else {
		w.add(filterServices, w.match("", p.ClusterIP.Addr(), dport, none, "")+" -j "+refuse)
	}
	var sources []netip.Prefix
	for i := range p.External {
		e := &p.External[i]
		kind, target := " external IP", ext
		if e.LoadBalancer {
			kind = " loadbalancer IP"
			if len(e.Sources) > 0 && p.Usable {
				target = fw
				for _, r := range e.Sources {
					if !slices.Contains(sources, r) {
						sources = append(sources, r)
					}
				}
				w.add(filterFirewall, w.match("", e.Addr, dport, fmt.Sprintf("%s traffic not accepted by %s", w.name, fw), "")+" -j DROP")
			}
		}
		if p.Usable {
			w.add(natServices, w.match("", e.Addr, dport, w.name+kind, "")+" -j "+target)
		}
		if !hasExternal {
			w.add(filterExternal, w.match("", e.Addr, dport, none, "")+" -j "+refuse)
		}
	}
	if p.NodePort != 0 {
		if p.Usable {
			if w.rules.LocalhostNodePorts && !w.v6 && w.accounts[localhostAccount] {
				w.add(natNodePorts, fmt.Sprintf("-d 127.0.0.0/8 -p %s -m comment --comment %s -m %s --dport %d -m nfacct --nfacct-name %s -j %s",
					w.protocol, quote(w.name), w.protocol, p.NodePort, localhostAccount, ext))
			}
			w.add(natNodePorts, w.match("", netip.Addr{}, p.NodePort, w.name, "")+" -j "+ext)
		}
		if !hasExternal {
			w.add(filterExternal, w.match("", netip.Addr{}, p.NodePort, none, " -m addrtype --dst-type LOCAL")+" -j "+refuse)
		}
	}
	if h := s.HealthCheck; h != nil {
		w.add(filterNodePorts, fmt.Sprintf("-p tcp -m comment --comment %s -m tcp --dport %d -j ACCEPT", quote(w.name+" health check node port"), h.NodePort))
	}

	if p.Usable && p.ExternallyAccessible() {
		c := chain{name: ext}
		switch {
		case !p.ExternalLocal:
			c.rules = append(c.rules, comment("masquerade traffic for "+w.name+" external destinations")+" -j "+markChain)
		case len(p.Cluster) > 0:
			// Pods and the node itself get what an outside load balancer would
			// give them: an endpoint anywhere.
			if w.rules.Detect.Works(w.v6) {
				c.rules = append(c.rules, w.source(false)+comment("pod traffic for "+w.name+" external destinations")+" -j "+svc)
			}
			c.rules = append(c.rules,
				comment("masquerade LOCAL traffic for "+w.name+" external destinations")+" -m addrtype --src-type LOCAL -j "+markChain,
				comment("route LOCAL traffic for "+w.name+" external destinations")+" -m addrtype --src-type LOCAL -j "+svc)
		}
		if hasExternal {
			c.rules = append(c.rules, "-j "+external)
		}
		w.out.chains = append(w.out.chains, c)
	}
	if len(sources) > 0 {
		c := chain{name: fw}
		for _, r := range sources {
			c.rules = append(c.rules, "-s "+r.String()+" "+comment(w.name+" loadbalancer IP")+" -j "+ext)
		}
		// What gets here was not translated, so KUBE-PROXY-FIREWALL sees it.
		c.rules = append(c.rules, comment("other traffic to "+w.name+" will be dropped by "+firewallChain))
		w.out.chains = append(w.out.chains, c)
	}
	if len(p.Cluster) > 0 {
		w.out.chains = append(w.out.chains, w.balance(svc, p.Cluster, hasInternal && internal == svc))
	}
	if len(p.Local) > 0 {
		w.out.chains = append(w.out.chains, w.balance(svl, p.Local, hasInternal && internal == svl))
	}
	for _, ep := range p.Cluster {
		w.out.chains = append(w.out.chains, w.endpoint(ep))
	}
	for _, ep := range p.Local {
		if _, both := slices.BinarySearchFunc(p.Cluster, ep, netip.AddrPort.Compare); !both {
			w.out.chains = append(w.out.chains, w.endpoint(ep))
		}
	}
}

// balance makes a chain that spreads connections over endpoints. Each rule
// takes its share of what the ones before it left: of n endpoints the first
// takes 1/n, the second 1/(n-1), the last the rest.
func (w *writer) balance(name string, list []netip.AddrPort, clusterIP bool) chain {
	c := chain{name: name}
	p := w.port_
	if clusterIP && (w.rules.MasqueradeAll || w.rules.Detect.Works(w.v6)) {
		in := ""
		if !w.rules.MasqueradeAll {
			in = w.source(true)
		}
		c.rules = append(c.rules, w.match(in, p.ClusterIP.Addr(), p.ClusterIP.Port(), w.name+" cluster IP", "")+" -j "+markChain)
	}
	// kube-proxy's order is that of the text.
	type target struct{ addr, chain, comment string }
	targets := make([]target, len(list))
	for i, ep := range list {
		targets[i] = target{addr: ep.String(), chain: endpointChain(w.name, w.protocol, ep)}
		if w.comments {
			targets[i].comment = comment(w.name+" -> "+targets[i].addr) + " "
		}
	}
	slices.SortFunc(targets, func(a, b target) int { return strings.Compare(a.addr, b.addr) })
	if p.Affinity > 0 {
		for _, t := range targets {
			c.rules = append(c.rules, fmt.Sprintf("%s-m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -j %s",
				t.comment, int(p.Affinity/time.Second), t.chain, w.hostMask(), t.chain))
		}
	}
	for i, t := range targets {
		share := ""
		if left := len(targets) - i; left > 1 {
			share = "-m statistic --mode random --probability " + probability(left) + " "
		}
		c.rules = append(c.rules, t.comment+share+"-j "+t.chain)
	}
	return c
}

// endpoint makes the chain of an endpoint.
func (w *writer) endpoint(ep netip.AddrPort) chain {
	name := endpointChain(w.name, w.protocol, ep)
	note, recent := "", ""
	if w.comments {
		note = comment(w.name) + " "
	}
	if w.port_.Affinity > 0 {
		recent = fmt.Sprintf("-m recent --set --name %s --mask %s --rsource ", name, w.hostMask())
	}
	return chain{name, []string{
		// Its own packet that comes back to it must seem to come from elsewhere,
		// or it would answer itself.
		"-s " + host(ep.Addr()) + " " + note + "-j " + markChain,
		"-p " + w.protocol + " " + note + recent + "-m " + w.protocol + " -j DNAT --to-destination " + ep.String(),
	}}
}

// match is the match of a front end, in iptables-save's order. in is a source,
// with a blank at its end; more are matches besides.
func (w *writer) match(in string, dst netip.Addr, port uint16, note, more string) string {
	to := ""
	if dst.IsValid() {
		to = "-d " + host(dst) + " "
	}
	if strings.HasPrefix(in, "! -i") || strings.HasPrefix(in, "-i") {
		in, to = to, in // interfaces are listed after addresses
	}
	return in + to + "-p " + w.protocol + " " + comment(note) + more + " -m " + w.protocol + " --dport " + strconv.Itoa(int(port))
}

// source matches local pods, or everybody else.
func (w *writer) source(not bool) string {
	is := ""
	if not {
		is = "! "
	}
	switch d := &w.rules.Detect; d.Mode {
	case plan.DetectInterface:
		return is + "-i " + d.Interface + " "
	case plan.DetectInterfacePrefix:
		return is + "-i " + d.Interface + "+ "
	default:
		return is + "-s " + d.CIDR(w.v6).Masked().String() + " "
	}
}

func (st *style) hostMask() string {
	if st.v6 {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

// host is an address as iptables-save lists it.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// probability is 1/n as iptables-save lists it: the kernel's number is of 31
// bits.
func probability(n int) string {
	const one = 1 << 31
	return strconv.FormatFloat(float64(int64(float64(one)/float64(n)+0.5))/one, 'f', 11, 64)
}

func comment(text string) string { return "-m comment --comment " + quote(text) }

// quote does as iptables-save: what is not only letters, digits, _ and - has
// quotes.
func quote(text string) string {
	plain := func(r rune) bool {
		return r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}
