package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/xtables"
)

// The walk: random packets go through the rules that iptables-save lists as
// the kernel would send them, and must end where the plan says.

var walkNode = []netip.Addr{addr("192.168.7.1"), addr("10.244.0.254"), addr("fd00:7::1"), addr("fd00:10:244::fe")}

func TestWalk(t *testing.T) {
	rules := testRules
	rules.NodeDNS = nil
	n := newNode(t, xtables.NFT, dataplane.Config{Rules: rules})
	n.adopt(nil)
	random := rand.New(rand.NewPCG(3, 4))
	verdicts := make(map[plan.Verdict]int)
	now := make(map[catalog.ServiceName]plan.Service)
	for range 12 {
		s := randomService(random)
		for i := range s.Ports {
			for _, ep := range append(slices.Clone(s.Ports[i].Cluster), s.Ports[i].Local...) {
				s.LocalAddrs = append(s.LocalAddrs, ep.Addr())
			}
		}
		n.apply(s)
		now[s.Name] = s
		var services []plan.Service
		for _, s := range now {
			services = append(services, s)
		}
		table := plan.NewTable(rules, walkNode, services)
		for _, f := range n.plane.families {
			listed, err := f.list(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 300 {
				pkt := randomPacket(random, services, f.style.v6)
				want := table.Walk(pkt)
				if slices.Contains(want.Reasons, plan.ReasonUnknownPort) {
					want = plan.Result{Verdict: plan.Pass} // see docs/compatibility.md
				}
				// Source ranges are looked at where there are endpoints.
				if slices.Contains(want.Reasons, plan.ReasonSourceRange) && !want.Port.Usable {
					want = plan.Result{Verdict: plan.Reject, Reasons: []plan.Reason{plan.ReasonLoadBalancer, plan.ReasonNoEndpoints}}
				}
				// kube-proxy's chain for external addresses without endpoints
				// does not see what the node itself sends there.
				has := func(r plan.Reason) bool { return slices.Contains(want.Reasons, r) }
				if pkt.In == "" && (has(plan.ReasonExternalIP) || has(plan.ReasonLoadBalancer)) && (has(plan.ReasonNoEndpoints) || has(plan.ReasonNoLocalEndpoints)) {
					want = plan.Result{Verdict: plan.Pass}
				}
				w := walk{pkt: pkt, tables: listed}
				if err := w.compare(want); err != nil {
					t.Fatalf("%+v: %v\nthe plan says %+v\nrules:\n%s", pkt, err, want, strings.Join(w.matched, "\n"))
				}
				verdicts[want.Verdict]++
			}
		}
	}
	for _, v := range []plan.Verdict{plan.Pass, plan.Forward, plan.Reject, plan.Drop} {
		if verdicts[v] < 10 {
			t.Errorf("%d packets with verdict %s", verdicts[v], v)
		}
	}
}

// randomPacket is one to some address of some service, mostly.
func randomPacket(r *rand.Rand, services []plan.Service, v6 bool) plan.Packet {
	pick := func(list ...string) netip.Addr {
		for {
			if a := addr(list[r.IntN(len(list))]); a.Is6() == v6 {
				return a
			}
		}
	}
	pkt := plan.Packet{Protocol: []catalog.Protocol{catalog.TCP, catalog.UDP}[r.IntN(2)]}
	pkt.Dst = netip.AddrPortFrom(pick("10.96.1.1", "fd00:10:96::1", "10.9.9.9", "fd09::9"), uint16(80+r.IntN(3)))
	switch r.IntN(3) {
	case 0:
		pkt.Src, pkt.In = pick("203.0.113.9", "2001:db8:9::9", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"), "eth0"
	case 1:
		pkt.Src, pkt.In = pick("10.244.0.1", "10.244.0.21", "10.244.0.41", "fd00:10:244::1", "fd00:10:244::21", "fd00:10:244::41"), "veth1"
	default:
		pkt.Src = pick("192.168.7.1", "fd00:7::1")
	}
	var ports []plan.Port
	for i := range services {
		for _, p := range services[i].Ports {
			if p.Is6() == v6 {
				ports = append(ports, p)
			}
		}
	}
	if len(ports) == 0 || r.IntN(8) == 0 {
		return pkt
	}
	p := ports[r.IntN(len(ports))]
	pkt.Protocol, pkt.Dst = p.Protocol, p.ClusterIP
	switch k := r.IntN(4); {
	case k == 0 && p.NodePort != 0:
		pkt.Dst = netip.AddrPortFrom(pick("192.168.7.1", "10.244.0.254", "fd00:7::1", "fd00:10:244::fe"), p.NodePort)
		if pkt.In == "" && r.IntN(2) == 0 && !v6 {
			pkt.Src, pkt.Dst = addr("127.0.0.1"), netip.AddrPortFrom(addr("127.0.0.1"), p.NodePort)
		}
	case k < 3 && len(p.External) > 0:
		pkt.Dst = netip.AddrPortFrom(p.External[r.IntN(len(p.External))].Addr, p.ClusterIP.Port())
	}
	return pkt
}

// walk is the way of the first packet of a connection.
type walk struct {
	pkt     plan.Packet
	tables  map[string]listing
	matched []string
}

// ending is where it may end: statistic matches leave more than one.
type ending struct {
	endpoint netip.AddrPort // of DNAT
	verdict  string         // REJECT, DROP, ACCEPT
	mark     bool
}

// compare walks and tells what is not as the plan says.
func (w *walk) compare(want plan.Result) error {
	hook := "PREROUTING"
	if w.pkt.In == "" {
		hook = "OUTPUT"
	}
	ends, past := w.chain("nat", hook, false)
	if len(ends) > 0 && past {
		return fmt.Errorf("translated sometimes only: %v", ends)
	}
	if len(ends) > 0 {
		if want.Verdict != plan.Forward {
			return fmt.Errorf("goes to %v", ends)
		}
		var got []netip.AddrPort
		for _, e := range ends {
			got = append(got, e.endpoint)
			masquerade := want.Masquerade || slices.Contains(want.Hairpin, e.endpoint)
			if e.mark != masquerade {
				return fmt.Errorf("at %s masqueraded: %t", e.endpoint, e.mark)
			}
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		if got = slices.Compact(got); !slices.Equal(got, want.Endpoints) {
			return fmt.Errorf("goes to %v, want %v", got, want.Endpoints)
		}
		return nil
	}
	var hooks []string
	if w.pkt.In == "" {
		hooks = append(hooks, "OUTPUT")
	}
	switch {
	case w.isLocal(w.pkt.Dst.Addr()):
		hooks = append(hooks, "INPUT")
	case w.pkt.In != "":
		hooks = append(hooks, "FORWARD")
	}
	got := plan.Pass
	for _, hook := range hooks {
		ends, _ := w.chain("filter", hook, false)
		if len(ends) > 1 {
			return fmt.Errorf("several verdicts: %v", ends)
		}
		if len(ends) == 1 && got == plan.Pass {
			got = map[string]plan.Verdict{"REJECT": plan.Reject, "DROP": plan.Drop}[ends[0].verdict]
		}
	}
	if got != want.Verdict {
		return fmt.Errorf("verdict %s, want %s", got, want.Verdict)
	}
	return nil
}

func (w *walk) isLocal(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(walkNode, a) }

// chain walks a chain; past tells that the packet may come to its end.
func (w *walk) chain(table, name string, mark bool) (ends []ending, past bool) {
	for _, rule := range w.tables[table].Chains[name] {
		r := w.read(rule)
		if !r.matches {
			continue
		}
		w.matched = append(w.matched, "-A "+name+" "+rule)
		switch r.target {
		case "DNAT":
			ends, past = append(ends, ending{endpoint: r.to, mark: mark}), false
			if !r.maybe {
				return ends, false
			}
		case "REJECT", "DROP", "ACCEPT":
			return append(ends, ending{verdict: r.target, mark: mark}), false
		case "RETURN", "":
			if r.target == "RETURN" {
				return ends, true
			}
		case markChain:
			mark = true
		default:
			more, falls := w.chain(table, r.target, mark)
			ends = append(ends, more...)
			if !falls && !r.maybe {
				return ends, false
			}
		}
	}
	return ends, true
}

// read is a rule as it is for the packet.
type read struct {
	matches, maybe bool
	target         string
	to             netip.AddrPort
}

func (w *walk) read(rule string) (r read) {
	r.matches = true
	words := split(rule)
	not := false
	match := func(yes bool) {
		r.matches = r.matches && yes != not
		not = false
	}
	for i := 0; i < len(words); i++ {
		arg := ""
		if i+1 < len(words) {
			arg = words[i+1]
		}
		switch words[i] {
		case "!":
			not = true
			continue
		case "-s":
			match(prefix(arg).Contains(w.pkt.Src))
		case "-d":
			match(prefix(arg).Contains(w.pkt.Dst.Addr()))
		case "-p":
			match(arg == protocolName(w.pkt.Protocol))
		case "--dport":
			match(arg == strconv.Itoa(int(w.pkt.Dst.Port())))
		case "--dst-type":
			match(w.isLocal(w.pkt.Dst.Addr()))
		case "--src-type":
			match(w.isLocal(w.pkt.Src))
		case "--ctstate":
			match(arg == "NEW")
		case "--mark":
			match(false) // none has one when it comes in
		case "--rcheck":
			match(false) // it is the client's first
			i--
		case "--set", "--reap", "--rsource", "--random-fully":
			i--
		case "--probability":
			r.maybe = true
		case "-j":
			r.target = arg
		case "--to-destination":
			r.to = addrPort(arg)
		case "-m", "--comment", "--mode", "--name", "--seconds", "--mask", "--nfacct-name", "--reject-with", "--set-xmark":
		default:
			panic("what is " + words[i] + " in " + rule)
		}
		i++
	}
	return r
}

// split makes words of a rule; a comment in quotes is one.
func split(rule string) (words []string) {
	for rule != "" {
		var word string
		if strings.HasPrefix(rule, `"`) {
			word, rule, _ = strings.Cut(rule[1:], `"`)
			rule = strings.TrimPrefix(rule, " ")
		} else {
			word, rule, _ = strings.Cut(rule, " ")
		}
		words = append(words, word)
	}
	return words
}
