package order

import (
	"strings"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// coredns is the chain of CoreDNS 1.14.7, top to bottom.
const coredns = `root metadata geoip cancel proxyproto quic grpc_server https https3 timeouts multisocket reload nsid
bufsize bind debug trace ready health pprof shed prometheus errors log dnstap local dns64 any chaos
loadbalance tsig rewrite autopath acl cache header dnssec tls minimal template transfer hosts route53
azure clouddns k8s_external kubernetes file auto secondary etcd loop forward grpc erratic whoami on sign
view nomad`

func TestOrderIsCoreDNS(t *testing.T) {
	var names []string
	for _, e := range List(nil) {
		names = append(names, e.Name)
	}
	if got, want := strings.Join(names, " "), strings.Join(strings.Fields(coredns), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What stands before a plugin that answers from this process's data must not
// hold such answers: the cache asks for the effect.
func TestEffects(t *testing.T) {
	effects := make(map[string]plugin.Effect)
	for _, e := range List(nil) {
		effects[e.Name] = e.Effect
	}
	for name, want := range map[string]plugin.Effect{
		"kubernetes": plugin.Local, "hosts": plugin.Local, "file": plugin.Local,
		"forward": plugin.Answers, "cache": plugin.Answers, "etcd": plugin.Answers,
		"loadbalance": plugin.Changes, "rewrite": plugin.Changes,
		"errors": plugin.Observes, "log": plugin.Observes, "prometheus": plugin.Observes,
		"bind": plugin.Configures, "reload": plugin.Configures,
	} {
		if effects[name] != want {
			t.Errorf("%s: %v, want %v", name, effects[name], want)
		}
	}
	if !plugin.Observes.Transparent() || plugin.Changes.Transparent() {
		t.Error("which effects let direct answers pass")
	}
}
