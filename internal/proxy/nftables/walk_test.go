package nftables

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/dataplane"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// The random walk: after each of many random changes the kernel must hold what
// a programming from scratch would, and a packet must go where the plan says.

var walkNode = plan.Node{Name: "here", Zone: "z1", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}

var walkRules = plan.Rules{
	Detect:        plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}},
	NodePortAddrs: walkNode.IPs,
	ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
}

func openWalk(t *testing.T, s *testnet.Space) (d *Dataplane) {
	t.Helper()
	s.Do(func() {
		var err error
		if d, err = Open(dataplane.Config{Rules: walkRules, IPv4: true, IPv6: true, MasqueradeBit: 14, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { d.Close() })
	return d
}

const walkServices = 12

func walkAddr(v6 bool, net, host int) netip.Addr {
	if v6 {
		return netip.MustParseAddr([]string{"fd00:96::", "2001:db8:e::", "2001:db8:f::", "fd00:244::"}[net] + fmt.Sprintf("%x", host))
	}
	return netip.MustParseAddr([]string{"10.96.0.", "203.0.113.", "198.51.100.", "10.244.0."}[net] + fmt.Sprint(host))
}

// randomEntry is some service of number i, with some endpoints.
func randomEntry(r *rand.Rand, i int) catalog.Entry {
	if r.IntN(12) == 0 {
		return catalog.Entry{}
	}
	one := func(n int) bool { return r.IntN(n) == 0 }
	name := catalog.ServiceName{Namespace: "walk", Name: fmt.Sprint("s", i)}
	s := &catalog.Service{Name: name, InternalLocal: one(4), ExternalLocal: one(2), ClusterIPs: []netip.Addr{}}
	if one(4) {
		s.AffinityTimeout = []time.Duration{time.Hour, 3 * time.Hour}[r.IntN(2)]
	}
	var families []bool
	switch r.IntN(3) {
	case 0:
		families = []bool{false}
	case 1:
		families = []bool{true}
	default:
		families = []bool{false, true}
	}
	external := one(2)
	for _, v6 := range families {
		s.ClusterIPs = append(s.ClusterIPs, walkAddr(v6, 0, i+1))
		if external {
			for k := range r.IntN(3) {
				s.ExternalIPs = append(s.ExternalIPs, walkAddr(v6, 1, i*3+k+1))
			}
			for k := range r.IntN(3) {
				s.LoadBalancer = append(s.LoadBalancer, catalog.Ingress{Addr: walkAddr(v6, 2, i*3+k+1), Proxy: one(5)})
			}
			if one(2) {
				a := walkAddr(v6, 3, r.IntN(9))
				s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(a, a.BitLen()-r.IntN(4)).Masked(), netip.PrefixFrom(a, a.BitLen()-r.IntN(9)).Masked())
			}
		}
	}
	var ports []catalog.EndpointPort
	for k := range 1 + r.IntN(3) {
		p := catalog.ServicePort{Name: fmt.Sprint("p", k), Port: uint16(80 + k), Protocol: []catalog.Protocol{catalog.TCP, catalog.UDP, catalog.SCTP}[r.IntN(3)]}
		if external && one(2) {
			p.NodePort = uint16(30000 + i*10 + k)
		}
		s.Ports = append(s.Ports, p)
		ports = append(ports, catalog.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: uint16(8080 + r.IntN(2))})
	}
	e := catalog.Entry{Service: s}
	for _, v6 := range families {
		slice := &catalog.EndpointSlice{Namespace: "walk", Name: fmt.Sprint(name.Name, v6), Service: name.Name, IPv6: v6, Ports: ports}
		hinted := one(3)
		for range r.IntN(8) {
			ep := catalog.Endpoint{Addr: walkAddr(v6, 3, 1+r.IntN(12)), Node: []string{"here", "there"}[r.IntN(2)], Conditions: catalog.Ready | catalog.Serving}
			switch r.IntN(8) {
			case 0:
				ep.Conditions = catalog.Serving | catalog.Terminating
			case 1:
				ep.Conditions = catalog.Terminating
			case 2:
				ep.Conditions = 0
			}
			if hinted {
				ep.Hints = &catalog.Hints{Zones: []string{[]string{"z1", "z2"}[r.IntN(2)]}}
				if one(2) {
					ep.Hints.Nodes = []string{ep.Node}
				}
			}
			slice.Endpoints = append(slice.Endpoints, ep)
		}
		e.Slices = append(e.Slices, slice)
	}
	return e
}

func TestRandomWalk(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	space := testnet.New(t, "walk")
	d := openWalk(t, space)
	scratch := openWalk(t, testnet.New(t, "scratch"))
	planner := plan.Planner{Node: walkNode}
	now := make([]plan.Service, walkServices)
	for i := range now {
		now[i] = planner.Service(catalog.ServiceName{Namespace: "walk", Name: fmt.Sprint("s", i)}, &catalog.Entry{})
	}
	must := func(refused []dataplane.Refusal, err error) {
		t.Helper()
		if err != nil || len(refused) > 0 {
			t.Fatal(refused, err)
		}
	}
	ctx := context.Background()
	must(d.Adopt(ctx, now))
	steps := 200
	if testing.Short() {
		steps = 60
	}
	for step := range steps {
		var changed []plan.Service
		for range 1 + r.IntN(3) {
			i := r.IntN(walkServices)
			e := randomEntry(r, i)
			now[i] = planner.Service(now[i].Name, &e)
			changed = append(slices.DeleteFunc(changed, func(s plan.Service) bool { return s.Name == now[i].Name }), now[i])
		}
		must(d.Apply(ctx, changed))
		switch r.IntN(25) {
		case 0: // a restart changes nothing
			before := kernelState(t, d)
			d.Close()
			d = openWalk(t, space)
			must(d.Adopt(ctx, now))
			if diff := cmp.Diff(before, kernelState(t, d)); diff != "" {
				t.Fatalf("step %d: a restart changed the kernel's tables:\n%s", step, diff)
			}
		case 1: // somebody else changes something
			damage(t, r, d)
			must(d.Adopt(ctx, now))
		case 2:
			if err := d.Sweep(); err != nil {
				t.Fatal(err)
			}
		}
		must(scratch.Adopt(ctx, nil))
		must(scratch.Adopt(ctx, now))
		if diff := cmp.Diff(normal(t, kernelState(t, scratch)), normal(t, kernelState(t, d))); diff != "" {
			t.Fatalf("step %d: differs from a programming from scratch (-scratch +walk):\n%s", step, diff)
		}
		table := plan.NewTable(walkRules, walkNode.IPs, now)
		state := kernelState(t, d)
		for range 60 {
			pkt := randomPacket(r)
			model, kernel := table.Walk(pkt), state.walk(d, pkt)
			if got, want := kernel.String(), modelString(model); got != want {
				t.Fatalf("step %d: %+v\nkernel %s\nplan   %s (%v)", step, pkt, got, want, model.Reasons)
			}
		}
	}
	// In the end everything can go.
	must(d.Adopt(ctx, nil))
	if err := d.Sweep(); err != nil {
		t.Fatal(err)
	}
	for f, sets := range kernelState(t, d) {
		for id, m := range sets {
			if len(m) > 0 && setID(id) != setNodePortIPs {
				t.Errorf("family %d: set %s still has %d elements", f, d.tables[f].rules.sets[id].name, len(m))
			}
		}
	}
}

func randomPacket(r *rand.Rand) plan.Packet {
	v6 := r.IntN(2) == 0
	i := r.IntN(walkServices + 1)
	pkt := plan.Packet{Protocol: []catalog.Protocol{catalog.TCP, catalog.UDP, catalog.SCTP}[r.IntN(3)], In: "eth0"}
	node := walkNode.IP(v6)
	switch r.IntN(4) {
	case 0:
		pkt.Src, pkt.In = node, ""
	case 1:
		pkt.Src = walkAddr(v6, 1, 250) // from outside
	default:
		pkt.Src = walkAddr(v6, 3, 1+r.IntN(12))
	}
	port := uint16(80 + r.IntN(4))
	switch r.IntN(4) {
	case 0:
		pkt.Dst = netip.AddrPortFrom(walkAddr(v6, 0, i+1), port)
	case 1:
		pkt.Dst = netip.AddrPortFrom(walkAddr(v6, 1, i*3+1+r.IntN(3)), port)
	case 2:
		pkt.Dst = netip.AddrPortFrom(walkAddr(v6, 2, i*3+1+r.IntN(3)), port)
	default:
		pkt.Dst = netip.AddrPortFrom(node, uint16(30000+i*10+r.IntN(3)))
	}
	return pkt
}

// state is what the kernel holds, by family.
type state [2]*found

func kernelState(t *testing.T, d *Dataplane) state {
	t.Helper()
	var s state
	for i, table := range d.tables {
		held, err := table.listSets()
		if err != nil {
			t.Fatal(err)
		}
		// The kernel lists a large set in parts, and moves its elements in the
		// background for a moment after it grew: a listing then may miss some.
		for range 200 {
			if held.size() < 1000 {
				break
			}
			time.Sleep(10 * time.Millisecond)
			again, err := table.listSets()
			if err != nil {
				t.Fatal(err)
			}
			same := reflect.DeepEqual(held, again)
			if held = again; same {
				break
			}
		}
		s[i] = held
	}
	return s
}

func (f *found) size() (n int) {
	for _, m := range f {
		n += len(m)
	}
	return n
}

// normal is the state without what is free: which endpoint has which slot, and
// which numbers affinity uses. That these fit together is checked.
func normal(t *testing.T, s state) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for f, sets := range s {
		lists := make(map[string][]string)
		for key, ep := range sets[setEndpoints] {
			front, slot := key[:len(key)-4], parseNumber(key[len(key)-4:])
			if slot&endpointNumbers != 0 {
				continue
			}
			lists[fmt.Sprintf("%x local=%v", front, slot&localSlots != 0)] = append(lists[fmt.Sprintf("%x local=%v", front, slot&localSlots != 0)], parseAddrPort(ep).String())
			if service, ok := sets[setAffinityServices][front]; ok {
				number := parseNumber(sets[setAffinitySlots][key])
				byID := front + string(nfnetlink.Native.AppendUint32(nil, slot&localSlots|endpointNumbers|number&endpointMask))
				if number&^endpointMask != parseNumber(service) || sets[setEndpoints][byID] != ep {
					t.Errorf("front %x slot %x: number %x, service %x, endpoint %x, by its number %x", front, slot, number, service, ep, sets[setEndpoints][byID])
				}
			}
		}
		for name, list := range lists {
			slices.Sort(list)
			out[fmt.Sprint(f, " endpoints ", name)] = strings.Join(list, " ")
		}
		for id, m := range sets {
			switch setID(id) {
			case setEndpoints, setAffinitySlots, setAffinityServices:
				out[fmt.Sprint(f, " ", id)] = fmt.Sprint(len(m))
			default:
				for key, data := range m {
					out[fmt.Sprintf("%d %d %x", f, id, key)] = fmt.Sprintf("%x", data)
				}
			}
		}
	}
	return out
}

// damage removes some elements behind our back.
func damage(t *testing.T, r *rand.Rand, d *Dataplane) {
	t.Helper()
	for _, table := range d.tables {
		held, err := table.listSets()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range held {
			for key := range m {
				if r.IntN(3) > 0 {
					delete(m, key)
				}
			}
		}
		c := table.leftover(held)
		for len(c.ops) > 0 {
			w := table.begin()
			n := min(len(c.ops), 200)
			table.build(w, nil, c.ops[:n])
			if err := table.conn.Commit(&w.Batch); err != nil {
				t.Fatal(err)
			}
			c.ops = c.ops[n:]
		}
	}
}

// outcome is where a packet ends in the kernel's tables.
type outcome struct {
	verdict    plan.Verdict
	endpoints  []string
	masquerade bool
	hairpin    []string
	affinity   time.Duration
}

func (o outcome) String() string {
	slices.Sort(o.endpoints)
	slices.Sort(o.hairpin)
	return fmt.Sprintf("%v %v masquerade=%v hairpin=%v affinity=%v", o.verdict, o.endpoints, o.masquerade, o.hairpin, o.affinity)
}

func modelString(r plan.Result) string {
	o := outcome{verdict: r.Verdict, masquerade: r.Masquerade, affinity: r.Affinity}
	for _, ep := range r.Endpoints {
		o.endpoints = append(o.endpoints, ep.String())
	}
	for _, ep := range r.Hairpin {
		o.hairpin = append(o.hairpin, ep.String())
	}
	return o.String()
}

// walk does what the chains of layout.go do, with the elements that the kernel
// holds.
func (s state) walk(d *Dataplane, pkt plan.Packet) outcome {
	f := 0
	if pkt.Src.Is6() {
		f = 1
	}
	t, sets := d.tables[f], s[f]
	chains := make(map[string]spread)
	for sp := range t.spreads {
		chains[sp.name()] = sp
	}
	target := func(set setID, fr front) (code int32, chain string, ok bool) {
		data, ok := sets[set][string(appendFront(nil, fr))]
		if !ok {
			return 0, "", false
		}
		return int32(uint32(data[0])<<24 | uint32(data[1])<<16 | uint32(data[2])<<8 | uint32(data[3])), strings.TrimRight(data[4:], "\x00"), true
	}
	fr := front{pkt.Dst.Addr(), pkt.Dst.Port(), pkt.Protocol}
	nodePort := front{zero(f == 1), pkt.Dst.Port(), pkt.Protocol}
	toNode := false
	if _, ok := sets[setNodePortIPs][string(appendAddr(nil, fr.addr))]; ok {
		toNode = true
	}
	if _, ok := sets[setFirewall][string(appendFront(nil, fr))]; ok {
		allowed := false
		for key := range sets[setSources] {
			n := len(appendFront(nil, fr))
			if key[:n] != string(appendFront(nil, fr)) {
				continue
			}
			src := string(appendAddr(nil, pkt.Src))
			first, last := key[n:n+len(src)], key[len(key)-len(src):]
			allowed = allowed || first <= src && src <= last
		}
		if !allowed {
			return outcome{verdict: plan.Drop}
		}
	}
	pod := t.rules.plan.Detect.IsLocal(pkt.Src, pkt.In)
	mark := false
	_, chain, ok := target(setServices, fr)
	if !ok && toNode {
		fr = nodePort
		_, chain, ok = target(setServices, fr)
	}
	if ok && (chain == chainExternalLocal || chain == chainNodePortLocal) {
		local := slices.Contains(walkNode.IPs, pkt.Src)
		switch {
		case pod:
			_, chain, ok = target(setShortcuts, fr)
		case local:
			mark = true
			_, chain, ok = target(setShortcuts, fr)
		default:
			_, chain, ok = target(setLocals, fr)
		}
	}
	if ok {
		sp, known := chains[chain]
		if !known {
			return outcome{verdict: plan.Drop, endpoints: []string{"unknown chain " + chain}}
		}
		mark = mark || sp.marking == markAlways || sp.marking == markOffCluster && !pod
		o := outcome{verdict: plan.Forward, masquerade: mark, affinity: sp.affinity}
		for k := range sp.n {
			slot := uint32(k)
			if sp.local {
				slot |= localSlots
			}
			data, ok := sets[setEndpoints][string(nfnetlink.Native.AppendUint32(appendFront(nil, fr), slot))]
			if !ok {
				return outcome{verdict: plan.Drop, endpoints: []string{fmt.Sprint("no slot ", k)}}
			}
			ep := parseAddrPort(data)
			o.endpoints = append(o.endpoints, ep.String())
			if _, ok := sets[setHairpins][string(appendAddr(appendAddr(nil, pkt.Src), ep.Addr()))]; ok && ep.Addr() == pkt.Src {
				o.hairpin = append(o.hairpin, ep.String())
			}
		}
		return o
	}
	// The filter hooks.
	fr.addr = pkt.Dst.Addr()
	code, chain, ok := target(setNoEndpoints, fr)
	if !ok && toNode {
		code, chain, ok = target(setNoEndpoints, nodePort)
	}
	switch {
	case ok && code == unix.NFT_GOTO && chain == chainReject:
		return outcome{verdict: plan.Reject}
	case ok:
		return outcome{verdict: plan.Drop}
	}
	if _, ok := sets[setClusterIPs][string(appendAddr(nil, pkt.Dst.Addr()))]; ok {
		return outcome{verdict: plan.Reject}
	}
	if slices.ContainsFunc(walkRules.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(pkt.Dst.Addr()) }) {
		return outcome{verdict: plan.Drop}
	}
	return outcome{verdict: plan.Pass}
}

// What a change costs does not depend on what else there is.
func TestChangeIsItsOwnSize(t *testing.T) {
	var sent []int
	for _, others := range []int{0, 500} {
		d := openWalk(t, testnet.New(t, "size"))
		services := fleet(others+1, 10)
		if _, err := d.Adopt(context.Background(), services); err != nil {
			t.Fatal(err)
		}
		s := services[0]
		p := s.Ports[0]
		p.Cluster = slices.Clone(p.Cluster)
		p.Cluster[9] = netip.MustParseAddrPort("12.0.0.1:80")
		s.Ports = []plan.Port{p}
		if _, err := d.Apply(context.Background(), []plan.Service{s}); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, len(d.tables[0].w.Buf))
	}
	if sent[0] != sent[1] || sent[0] > 300 {
		t.Errorf("one endpoint replaced: %d bytes alone, %d among 500 others", sent[0], sent[1])
	}
}

// Seats: who stays keeps the place, unless it is cut off.
func TestSeats(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []netip.AddrPort {
		m := make(map[netip.AddrPort]bool)
		for range r.IntN(10) {
			m[netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}), 80)] = true
		}
		return slices.SortedFunc(maps.Keys(m), netip.AddrPort.Compare)
	}
	var have []netip.AddrPort
	for range 2000 {
		want := random()
		got := seats(have, want)
		if sorted := slices.SortedFunc(slices.Values(got), netip.AddrPort.Compare); !slices.Equal(sorted, want) {
			t.Fatalf("seats(%v, %v) = %v", have, want, got)
		}
		for k, ep := range got {
			if k < len(have) && have[k] != ep && slices.Contains(want, have[k]) {
				t.Fatalf("seats(%v, %v) = %v: %v was moved", have, want, got, have[k])
			}
		}
		have = got
	}
}
