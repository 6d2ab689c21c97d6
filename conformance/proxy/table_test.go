package proxy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// scenario is a service and what happens to it. Its name is the service's.
type scenario struct {
	name      string
	service   string // option words (see words)
	endpoints string // endpoint words
	like      string // a scenario above whose external addresses this service has too
	paths     []path
	steps     []step
	// alone scenarios disturb others: their steps are run after all others,
	// one scenario at a time.
	alone bool
}

// step is a change and what is seen after it.
type step struct {
	what      string
	service   string              // option words from now on; empty: as before
	endpoints string              // endpoint words from now on; empty: as before, "none": none
	remove    bool                // the service is deleted
	act       func(*column) error // before, in each column
	also      func(*runner) error // with the change, to the API
	// blind: the proxies need not have seen the change before the paths are
	// asked. pause is the time that they get to do something, where they are
	// expected to do nothing.
	blind bool
	pause time.Duration
	paths []path
}

// path is a question: who asks which of the service's addresses, and the
// outcome. It is a row for each protocol and family.
type path struct {
	how    string // ask, stick, spread, health, http, load, or of a flow: open, again, same
	flow   string // name of the flow, of open and again
	from   string
	protos string
	to     string
	want   string
	but    []exception
}

// exception is another outcome for proxies, protocols or families: it applies
// where all its words do.
type exception struct {
	words     string // of: kube-proxy, rutter, iptables, nftables, tcp, udp, sctp, 4, 6
	outcome   string
	deviation string // row of docs/compatibility.md that tells why; for Rutter's
	// passing: it ends when anything else makes the proxy look at everything,
	// so the outcome may as well be the others'.
	passing bool
}

// row is a path in one protocol and family.
type row struct {
	path
	scenario string
	step     string
	proto    string
	v6       bool
}

func (r row) String() string {
	step := ""
	if r.step != "" {
		step = " after: " + r.step
	}
	return fmt.Sprintf("%s%s: %s %s%s %s", r.scenario, step, r.from, r.proto, r.family(), r.to+r.flow)
}

func (r row) family() string {
	if r.v6 {
		return "6"
	}
	return "4"
}

// expected is the outcome for a kind of proxy. Of several exceptions that apply
// the last counts.
func (r row) expected(k kind) (outcome, deviation string) {
	outcome = r.want
	for _, e := range r.but {
		if r.applies(e.words, k) {
			outcome, deviation = e.outcome, e.deviation
		}
	}
	if k.proxy == "rutter" && k.mode == "userspace" {
		return r.inUserspace(outcome, deviation)
	}
	return outcome, deviation
}

// notLookedAt is the outcome of rows that a kind is not asked.
const notLookedAt = "not looked at"

// inUserspace is what becomes of an outcome when a process of the node relays
// TCP and UDP: endpoints see its address, and it cannot be missed. SCTP stays
// with the kernel.
func (r row) inUserspace(outcome, deviation string) (string, string) {
	if slices.Contains([]string{"proxy-stopped", "restarted-under-load", "changed-while-stopped"}, r.scenario) {
		return notLookedAt, processGone
	}
	if r.scenario == "tables-removed" && r.how == "again" && r.proto == "tcp" {
		return notLookedAt, processGone // opened before the scenarios in which it ends
	}
	if r.proto != "tcp" && r.proto != "udp" {
		return outcome, deviation
	}
	relayed := answered.ReplaceAllStringFunc(outcome, func(one string) string {
		m := answered.FindStringSubmatch(one)
		endpoint, port, client := m[1], m[2], m[3]
		if endpoint == "r" && r.scenario != "outside-endpoint" {
			return one // what no proxy captured
		}
		// The node that the client asks, or whose node port it is.
		via := nodeOf(strings.Split(client, ".")[0])
		if strings.HasPrefix(client, "n2") || client == "out.n2" {
			via = "n2"
		}
		if _, at, ok := strings.Cut(r.to, "nodeport@n"); ok {
			via = "n" + at[:1]
		}
		if endpoint != "r" && endpoint != via && nodeOf(endpoint) == via {
			via += ".gw"
		}
		return endpoint + port + "(" + via + ")"
	})
	if relayed != outcome && deviation == "" {
		deviation = relaySource
	}
	return relayed, deviation
}

// answered is an answer in an outcome.
var answered = regexp.MustCompile(`\b(\w+)(:\d)?\(([\w.]+)\)`)

// accepts tells whether an outcome is as expected.
func (r row) accepts(k kind, seen string) bool {
	passing := false
	for _, e := range r.but {
		if r.applies(e.words, k) {
			passing = e.passing
		}
	}
	want, _ := r.expected(k)
	return seen == want || passing && seen == r.want
}

func (r row) applies(condition string, k kind) bool {
	have := []string{k.proxy, k.mode, k.backend, r.proto, r.family()}
	if k.mode == "userspace" {
		have = append(have, "nftables") // which brings the traffic there
	}
	for _, w := range strings.Fields(condition) {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// rows are the rows of paths.
func rows(scenario, step string, paths []path) []row {
	var out []row
	for _, p := range paths {
		families := []bool{false, true}
		for _, proto := range strings.Fields(p.protos) {
			only := families
			if strings.HasSuffix(proto, "4") {
				only = families[:1]
			} else if strings.HasSuffix(proto, "6") {
				only = families[1:]
			}
			for _, v6 := range only {
				out = append(out, row{path: p, scenario: scenario, step: step, proto: strings.TrimRight(proto, "46"), v6: v6})
			}
		}
	}
	return out
}
