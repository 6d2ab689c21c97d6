package proxy_test

import (
	"net/netip"
	"testing"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// Two services that name one external address: who has it keeps it, the other
// is told so, and gets it when it is free. A cluster IP is nobody else's.
func TestClaims(t *testing.T) {
	const shared = "203.0.113.1"
	w := newWorld(t, nil)
	external := func(n, ip string, addrs ...string) *catalog.Service {
		s := service(n, ip)
		for _, a := range addrs {
			s.ExternalIPs = append(s.ExternalIPs, addr(a))
		}
		return s
	}
	expect := func(what, to, want string) {
		t.Helper()
		w.sync()
		if got := w.client.Ask("tcp", to, ""); got != want {
			t.Errorf("%s: %s answers %q, want %q", what, to, got, want)
		}
		r, err := w.proxy.Walk(plan.Packet{Src: addr("10.244.0.9"), Dst: netip.MustParseAddrPort(to), Protocol: catalog.TCP, In: "client"})
		if err != nil || (r.Verdict == plan.Forward) != (want != testnet.Silence && want != testnet.Refused) {
			t.Errorf("%s: the walk to %s: %+v, %v", what, to, r, err)
		}
	}
	partial := func(what string, names ...string) {
		t.Helper()
		list := w.proxy.Status().Partial
		if len(list) != len(names) {
			t.Errorf("%s: partial are %+v, want %q", what, list, names)
			return
		}
		for i, p := range list {
			if p.Service != name(names[i]) || p.Skipped[0].Reason != plan.ReasonConflict {
				t.Errorf("%s: %+v", what, p)
			}
		}
	}
	w.cat.ApplyService(external("one", "10.96.0.1", shared))
	w.cat.ApplySlice(slice("one", "10.244.0.2"))
	w.markSynced()
	expect("one", shared+":80", "a "+nodeIP)
	partial("one")
	w.cat.ApplyService(external("another", "10.96.0.2", shared))
	w.cat.ApplySlice(slice("another", "10.244.0.3"))
	expect("one has it", shared+":80", "a "+nodeIP)
	expect("its own address", "10.96.0.2:80", "b 10.244.0.9")
	partial("one has it", "another")
	w.cat.ApplyService(external("one", "10.96.0.1"))
	expect("one let go", shared+":80", "b "+nodeIP)
	partial("one let go")
	w.cat.ApplyService(external("one", "10.96.0.1", shared))
	expect("one wants it back", shared+":80", "b "+nodeIP)
	partial("one wants it back", "one")
	moved := *w.cat.Node("node")
	moved.Zone = "elsewhere"
	w.cat.ApplyNode(&moved)
	expect("everything was gone through", shared+":80", "b "+nodeIP)
	partial("everything was gone through", "one")
	w.cat.RemoveService(name("another"))
	expect("another is gone", shared+":80", "a "+nodeIP)
	partial("another is gone")

	// A service names an address that becomes another's cluster IP.
	w.cat.ApplyService(external("thief", "10.96.0.3", "10.96.0.4"))
	w.cat.ApplySlice(slice("thief", "10.244.0.2"))
	expect("nobody else's yet", "10.96.0.4:80", "a "+nodeIP)
	w.cat.ApplyService(external("owner", "10.96.0.4"))
	w.cat.ApplySlice(slice("owner", "10.244.0.3"))
	expect("a cluster IP", "10.96.0.4:80", "b 10.244.0.9")
	partial("a cluster IP", "thief")
	w.cat.RemoveService(name("owner"))
	expect("the owner is gone", "10.96.0.4:80", "a "+nodeIP)
}
