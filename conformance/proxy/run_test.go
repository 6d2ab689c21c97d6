package proxy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/rutter-project/rutter/conformance/peer"
)

var (
	onlyRows = flag.String("rows", "", "run only scenarios whose name matches this regular expression")
	onlyKind = flag.String("kinds", "", "compare only proxies whose name (as in \"rutter nftables\") matches this regular expression")
	learning = flag.Bool("see", false, "print every outcome, whether expected or not")
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
	how    string // ask, stick, spread, open, again or health
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
	return outcome, deviation
}

func (r row) applies(condition string, k kind) bool {
	have := []string{k.proxy, k.mode, r.proto, r.family()}
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

// result is what was seen in a column.
type result struct {
	row
	kind   kind
	seen   string
	detail string // for a row that differs
}

// environment is what all columns share.
type environment struct {
	dir, rutter, kubeProxy string
	registry               *peer.Registry
	sctp                   bool // the kernel tracks it
}

// runner runs scenarios.
type runner struct {
	t       *testing.T
	ctx     context.Context
	env     *environment
	cluster *cluster
	columns []*column

	mu      sync.Mutex
	results []result
	details map[string]int // detailed failures by column
}

// findProgram skips the test when nothing has been built, and fails it when the
// environment says that something should have been.
func findProgram(t *testing.T, env, path string) string {
	p := os.Getenv(env)
	if p == "" {
		p = filepath.Join("..", "..", "bin", path)
	}
	abs, err := filepath.Abs(p)
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		if os.Getenv("RUTTER_BIN") != "" {
			t.Fatalf("%v (make build builds Rutter's programs, scripts/build-peers.sh the peers)", err)
		}
		t.Skipf("%v (make build builds Rutter's programs, scripts/build-peers.sh the peers)", err)
	}
	return abs
}

func newRunner(t *testing.T) *runner {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	env := &environment{
		dir:       t.TempDir(),
		rutter:    findProgram(t, "RUTTER_BIN", "rutter"),
		kubeProxy: findProgram(t, "KUBE_PROXY_BIN", "peers/kube-proxy"),
	}
	registry := findProgram(t, "RUTTER_REGISTRY_BIN", "rutter-registry")
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // externalIPs are deprecated
	var err error
	env.registry, err = peer.StartRegistry(registry, env.dir, "--service-cidr", serviceCIDRs, "--pod-cidr", podCIDRs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(env.registry.Stop)
	r := &runner{t: t, ctx: t.Context(), env: env, details: make(map[string]int),
		cluster: &cluster{client: env.registry.Client, services: make(map[string]*service)}}
	if err := r.cluster.addNodes(r.ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// start makes a column of each kind; edit may be nil.
func (r *runner) start(name string, edit func(kind) string, nodes ...string) {
	r.columns = nil
	var chosen []kind
	for _, k := range kinds {
		if matches(*onlyKind, k.String()) {
			chosen = append(chosen, k)
		}
	}
	columns := make([]*column, len(chosen))
	r.each(len(chosen), func(i int) (err error) {
		columns[i], err = newColumn(r.env, chosen[i], name, edit, nodes...)
		return err
	})
	r.columns = columns
}

func (r *runner) stop() {
	r.each(len(r.columns), func(i int) error {
		r.columns[i].close()
		return nil
	})
	r.columns = nil
}

// each calls f for 0 to n-1 at the same time, a handful at a time, and fails
// the test with their errors.
func (r *runner) each(n int, f func(int) error) {
	r.t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			errs[i] = f(i)
			<-slots
		}()
	}
	wg.Wait()
	err := errors.Join(errs...)
	if errors.Is(err, peer.ErrPrivilege) {
		r.t.Skip(err)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// barrier waits until every proxy has programmed what the API holds. After two
// of them it has also done what comes after programming.
func (r *runner) barrier(n int) {
	r.t.Helper()
	for range n {
		port, answer, err := r.cluster.mark(r.ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		r.each(len(r.columns), func(i int) error { return r.columns[i].caughtUp(r.cluster.services["marker"], port, answer) })
	}
}

// run runs scenarios in lockstep: every column sees the first state of all of
// them, then the first change of all of them, and so on.
func (r *runner) run(scenarios []scenario) {
	started := time.Now()
	r.each(len(scenarios), func(i int) error { return r.cluster.put(r.ctx, r.cluster.services[scenarios[i].name]) })
	r.barrier(1)
	if r.env.sctp = r.columns[0].tracksSCTP(); !r.env.sctp {
		r.t.Log("this kernel does not track SCTP (CONFIG_NF_CT_PROTO_SCTP): its rows are left out")
	}
	r.each(len(r.columns), func(i int) error { return r.columns[i].keepFlows() })
	// kube-proxy in nftables mode drops packets to unallocated cluster IPs only
	// from its first full sync on that comes after the news of the ServiceCIDRs,
	// for which it does not wait when it starts: mostly that is an hour later.
	if err := fullSync(r); err != nil {
		r.t.Fatal(err)
	}
	r.barrier(1)
	r.t.Logf("%d services programmed by %d proxies after %s", len(scenarios), len(r.columns), time.Since(started).Round(time.Millisecond))
	r.look(scenarios, func(s scenario) (string, []path) { return "", s.paths })
	last := 0
	for _, s := range scenarios {
		if !s.alone {
			last = max(last, len(s.steps))
		}
	}
	for i := range last {
		var changing []scenario
		for _, s := range scenarios {
			if !s.alone && i < len(s.steps) {
				changing = append(changing, s)
			}
		}
		r.each(len(changing), func(j int) error { return r.change(changing[j], changing[j].steps[i]) })
		r.barrier(2)
		r.look(changing, func(s scenario) (string, []path) { return s.steps[i].what, s.steps[i].paths })
	}
	for _, s := range scenarios {
		if !s.alone {
			continue
		}
		for _, step := range s.steps {
			if step.act != nil {
				r.each(len(r.columns), func(i int) error { return step.act(r.columns[i]) })
			}
			r.each(1, func(int) error { return r.change(s, step) })
			time.Sleep(step.pause)
			if !step.blind {
				r.barrier(2)
			}
			r.look([]scenario{s}, func(scenario) (string, []path) { return step.what, step.paths })
		}
	}
	r.t.Logf("rows done after %s", time.Since(started).Round(time.Millisecond))
}

// runVariant looks at rows under another configuration.
func (r *runner) runVariant(v variant) {
	started := time.Now()
	for _, p := range v.paths {
		name, _, _ := strings.Cut(p.to, "/")
		if svc := r.cluster.services[name]; svc.object == nil {
			r.each(1, func(int) error { return r.cluster.put(r.ctx, svc) })
		}
	}
	r.start(v.name, v.config, "n1")
	r.barrier(1)
	r.look([]scenario{{name: v.name}}, func(scenario) (string, []path) { return "", v.paths })
	r.stop()
	r.t.Logf("%s: done after %s", v.name, time.Since(started).Round(time.Millisecond))
}

// change does what a step does to the API.
func (r *runner) change(s scenario, step step) error {
	svc := r.cluster.services[s.name]
	if step.also != nil {
		if err := step.also(r); err != nil {
			return err
		}
	}
	if step.remove {
		return r.cluster.remove(r.ctx, svc)
	}
	if step.service == "" && step.endpoints == "" {
		return nil
	}
	if step.service != "" {
		svc.options = step.service
	}
	if step.endpoints != "" {
		svc.endpoints = strings.TrimPrefix(step.endpoints, "none")
	}
	return r.cluster.put(r.ctx, svc)
}

// look runs rows in all columns, side by side; but in their order where a proxy
// remembers who asked.
func (r *runner) look(scenarios []scenario, of func(scenario) (string, []path)) {
	started, n := time.Now(), 0
	var wg sync.WaitGroup
	for _, c := range r.columns {
		slots := make(chan struct{}, 24)
		look := func(rows ...row) {
			wg.Add(1)
			n += len(rows)
			go func() {
				defer wg.Done()
				slots <- struct{}{}
				for _, row := range rows {
					r.row(c, row)
				}
				<-slots
			}()
		}
		for _, s := range scenarios {
			step, paths := of(s)
			list := rows(s.name, step, paths)
			if !r.env.sctp {
				list = slices.DeleteFunc(list, func(r row) bool { return r.proto == "sctp" })
			}
			if strings.Contains(s.name, "affinity") {
				look(list...)
				continue
			}
			for _, row := range list {
				look(row)
			}
		}
	}
	wg.Wait()
	r.t.Logf("%d outcomes in %s", n, time.Since(started).Round(time.Millisecond))
}

// row looks until the outcome is the expected one, or for a few seconds.
func (r *runner) row(c *column, row row) {
	want, _ := row.expected(c.kind)
	deadline := time.Now().Add(3 * time.Second)
	var seen string
	for {
		var err error
		if seen, err = r.observe(c, row); err != nil {
			seen = "error: " + err.Error()
		}
		if seen == want || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	res := result{row: row, kind: c.kind, seen: seen}
	if seen != want {
		res.detail = r.describe(c, row)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
}

// target finds the service, the address and the port that a row asks.
func (r *runner) target(c *column, row row) (*service, netip.AddrPort, error) {
	name, to := row.scenario, row.to
	if other, rest, ok := strings.Cut(to, "/"); ok {
		name, to = other, rest
	}
	svc := r.cluster.services[name]
	if svc == nil {
		return nil, netip.AddrPort{}, fmt.Errorf("no scenario is called %s", name)
	}
	port := uint16(80)
	if before, p, ok := strings.Cut(to, ":"); ok {
		n, err := strconv.Atoi(p)
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("%s: %w", row.to, err)
		}
		to, port = before, uint16(n)
	}
	kind, at, _ := strings.Cut(to, "@")
	switch kind {
	case "cluster", "external", "vip":
		return svc, netip.AddrPortFrom(svc.front(kind, row.v6), port), nil
	case "unallocated":
		return svc, netip.AddrPortFrom((&service{index: 251}).front("cluster", row.v6), port), nil
	case "address":
		return svc, netip.AddrPortFrom(address(at, row.v6), port), nil
	case "nodeport", "health":
		var addr netip.Addr
		switch {
		case at == "lo" && row.v6:
			addr = netip.IPv6Loopback()
		case at == "lo":
			addr = netip.MustParseAddr("127.0.0.1")
		default:
			addr = address(at, row.v6)
		}
		if kind == "health" {
			return svc, netip.AddrPortFrom(addr, svc.healthPort()), nil
		}
		n := svc.nodePort()
		if port == 81 {
			n += 500
		}
		return svc, netip.AddrPortFrom(addr, n), nil
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%q is no address of a service", row.to)
}

// asks is how often a service with k endpoints must be asked, for all of them
// to answer but once in ten million times: k((k-1)/k)^n < 10^-7.
func asks(k int) int {
	if k < 2 {
		return 3
	}
	return int(math.Ceil(math.Log(1e7*float64(k)) / math.Log(float64(k)/float64(k-1))))
}

// observe asks a row's question.
func (r *runner) observe(c *column, row row) (string, error) {
	key := fmt.Sprint(row.scenario, row.flow, row.proto, row.v6)
	if row.how == "again" || row.how == "same" {
		r.mu.Lock()
		f := c.flows[key]
		r.mu.Unlock()
		if f == nil {
			return "no such flow", nil
		}
		seen := answer(f.flow)
		if row.how == "same" && seen == f.first {
			seen = "same"
		}
		return seen, nil
	}
	if row.how == "http" {
		return r.http(c, row), nil
	}
	svc, to, err := r.target(c, row)
	if err != nil {
		return "", err
	}
	from, _, _ := strings.Cut(row.from, ".")
	want, _ := row.expected(c.kind)
	q := question{from: c.world.spaces[from], proto: row.proto, to: to, wait: patience}
	if want != silence || row.proto == "tcp" && row.v6 {
		q.wait = longPatience
	}
	if from == "out" {
		q.local = address(row.from, row.v6)
	}
	switch row.how {
	case "ask":
		return q.ask(asks(len(strings.Fields(svc.endpoints)))), nil
	case "stick":
		return q.stick(10), nil
	case "spread":
		return q.spread(400), nil
	case "health":
		return q.status(), nil
	case "open":
		f, err := q.from.dial(q)
		if err != nil {
			return outcomeOf(err), nil
		}
		seen := answer(f)
		r.mu.Lock()
		if old := c.flows[key]; old != nil {
			defer old.Close()
		}
		c.flows[key] = &heldFlow{f, seen}
		r.mu.Unlock()
		if row.want == "answer" && strings.HasSuffix(seen, ")") {
			seen = "answer"
		}
		return seen, nil
	case "clients after a pause":
		time.Sleep(1300 * time.Millisecond) // longer than the timeout of the affinity
		fallthrough
	case "clients":
		return q.clients(), nil
	}
	return "", fmt.Errorf("a row cannot %q", row.how)
}

// http gets a page of the proxy itself: to is PORT/PATH@PLACE.
func (r *runner) http(c *column, row row) string {
	page, at, _ := strings.Cut(row.to, "@")
	port, path, _ := strings.Cut(page, "/")
	n, _ := strconv.Atoi(port)
	addr := netip.MustParseAddr("127.0.0.1")
	if at != "lo" {
		addr = address(at, row.v6)
	}
	q := question{from: c.world.spaces[row.from], to: netip.AddrPortFrom(addr, uint16(n)), wait: longPatience}
	res, body := q.get("/" + path)
	if res == nil {
		return body
	}
	if path == "proxyMode" {
		return fmt.Sprint(res.StatusCode, " ", body)
	}
	return strconv.Itoa(res.StatusCode)
}

// compareMetrics holds the names of kube-proxy's metrics against those of
// Rutter in the same mode, with their labels: dashboards and alerts are written
// with them.
func (r *runner) compareMetrics() {
	series := func(c *column) map[string]bool {
		q := question{from: c.world.spaces["n1"], to: netip.MustParseAddrPort("127.0.0.1:10249"), wait: longPatience}
		_, text := q.get("/metrics")
		found := make(map[string]bool)
		for _, m := range regexp.MustCompile(`(?m)^(kubeproxy_\w+)({[^}]*})? `).FindAllStringSubmatch(text, -1) {
			// Buckets' limits and results may come in another spelling or number.
			labels := regexp.MustCompile(`,?\ble="[^"]*"`).ReplaceAllString(m[2], "")
			found[m[1]+labels] = true
		}
		return found
	}
	for _, own := range r.columns {
		for _, peer := range r.columns {
			if own.proxy != "rutter" || peer.proxy != "kube-proxy" || own.mode != peer.mode {
				continue
			}
			has, wanted := series(own), series(peer)
			if len(wanted) == 0 {
				r.t.Errorf("%s has no metrics", peer.kind)
			}
			r.t.Logf("%s is held against %d series of %s", own.kind, len(wanted), peer.kind)
			for _, name := range slices.Sorted(maps.Keys(wanted)) {
				if !has[name] {
					r.t.Errorf("%s has no metric %s, which %s has", own.kind, name, peer.kind)
				}
			}
		}
	}
}

// describe is what to know of a row that differs: the objects, and the tables
// of the node that sees the packet first.
func (r *runner) describe(c *column, row row) string {
	r.mu.Lock()
	r.details[c.String()]++
	many := r.details[c.String()] > 5
	r.mu.Unlock()
	if many {
		return ""
	}
	if row.how == "http" {
		return c.proxies["n1"].Log()
	}
	svc, to, err := r.target(c, row)
	if err != nil {
		return err.Error()
	}
	node := nodeOf(strings.Split(row.from, ".")[0])
	about := []string{svc.namespace + "/" + svc.name, svc.front("cluster", row.v6).String(), to.Addr().String(), strconv.Itoa(int(svc.nodePort()))}
	return fmt.Sprintf("asked %s\n%s\ntables of %s:\n%s", to, svc.text(), node, c.tables(node, about...))
}

// report makes a subtest of every row.
func (r *runner) report() {
	byRow := make(map[string][]result)
	for _, res := range r.results {
		byRow[res.row.String()] = append(byRow[res.row.String()], res)
	}
	names := slices.Sorted(maps.Keys(byRow))
	for _, name := range names {
		list := byRow[name]
		slices.SortFunc(list, func(a, b result) int { return strings.Compare(a.kind.String(), b.kind.String()) })
		r.t.Run(name, func(t *testing.T) {
			for _, res := range list {
				want, deviation := res.expected(res.kind)
				if *learning {
					t.Logf("%-22s %s", res.kind, res.seen)
				}
				if res.seen != want {
					t.Errorf("%s: seen %q, want %q%s\n%s", res.kind, res.seen, want, why(deviation), res.detail)
				}
			}
		})
	}
	r.t.Logf("%d rows, %d outcomes", len(names), len(r.results))
}

func why(deviation string) string {
	if deviation == "" {
		return ""
	}
	return " (the listed deviation \"" + deviation + "\")"
}

func matches(pattern, s string) bool {
	return pattern == "" || regexp.MustCompile(pattern).MatchString(s)
}

// zone moves a node into another zone.
func zone(node, zone string) func(*runner) error {
	return func(r *runner) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, corev1.LabelTopologyZone, zone)
		_, err := r.cluster.client.CoreV1().Nodes().Patch(r.ctx, node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
}

// fullSync makes proxies go through everything: a new zone does.
func fullSync(r *runner) error {
	var errs []error
	for _, n := range []string{"n1", "n2"} {
		errs = append(errs, zone(n, "z9")(r), zone(n, strings.Replace(n, "n", "z", 1))(r))
	}
	return errors.Join(errs...)
}

// reuse deletes a service and gives its addresses to a new one.
func reuse(name, endpoints string) func(*runner) error {
	return func(r *runner) error {
		old := r.cluster.services[name]
		next := &service{namespace: old.namespace, name: name + "-next", index: old.index, options: old.options, endpoints: endpoints}
		return errors.Join(r.cluster.remove(r.ctx, old), r.cluster.put(r.ctx, next))
	}
}

// taint gives a node a taint, or takes it away.
func taint(node, key string, on bool) func(*runner) error {
	return func(r *runner) error {
		patch := `{"spec":{"taints":[]}}`
		if on {
			patch = fmt.Sprintf(`{"spec":{"taints":[{"key":%q,"effect":"NoSchedule"}]}}`, key)
		}
		_, err := r.cluster.client.CoreV1().Nodes().Patch(r.ctx, node, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
}

// removeTable removes the table that a proxy keeps its IPv4 translation in.
func removeTable(c *column) error {
	table := map[kind]string{{"kube-proxy", "iptables"}: "nat", {"kube-proxy", "nftables"}: "kube-proxy", {"rutter", "nftables"}: "rutter"}[c.kind]
	return c.run("n1", "nft", "delete", "table", "ip", table)
}

// cleanUp removes what a stopped proxy left.
func cleanUp(c *column) error {
	if err := stopProxy(unix.SIGTERM)(c); err != nil {
		return err
	}
	if c.proxy == "rutter" {
		err := c.run("n1", c.env.rutter, "proxy", "--cleanup")
		if left := strings.TrimSpace(c.tables("n1")); err == nil && left != "" {
			err = fmt.Errorf("rutter proxy --cleanup left:\n%s", left)
		}
		return err
	}
	return c.run("n1", c.env.kubeProxy, "--cleanup")
}

// flush removes everything in n1's nftables, which is also where iptables keeps
// its rules.
func flush(c *column) error { return c.run("n1", "nft", "flush", "ruleset") }

// createLong makes the service whose names are all as long as they may be.
func createLong(r *runner) error {
	s := r.cluster.services["long"]
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
	if _, err := r.cluster.client.CoreV1().Namespaces().Create(r.ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	return r.cluster.put(r.ctx, s)
}

func removeLong(r *runner) error { return r.cluster.remove(r.ctx, r.cluster.services["long"]) }
