package proxy

import (
	"context"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/rutter-project/rutter/conformance/peer"
)

var (
	onlyRows = flag.String("rows", "", "run only scenarios whose name matches this regular expression")
	onlyKind = flag.String("kinds", "", "compare only proxies whose name (as in \"rutter nftables\") matches this regular expression")
	learning = flag.Bool("see", false, "print every outcome, whether expected or not")
)

// result is what was seen in a column.
type result struct {
	row
	kind   kind
	seen   string
	looks  int    // that it took
	detail string // for a row that differs
}

// environment is what all columns share.
type environment struct {
	dir, rutter, kubeProxy string
	registry               *peer.Registry
	cluster                *cluster
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
		dir:    t.TempDir(),
		rutter: findProgram(t, "RUTTER_BIN", "rutter"),
	}
	if !inVM || matches(*onlyKind, "kube-proxy ipvs") {
		env.kubeProxy = findProgram(t, "KUBE_PROXY_BIN", "peers/kube-proxy")
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // externalIPs are deprecated
	var err error
	if kubeconfig := os.Getenv("RUTTER_KUBECONFIG"); kubeconfig != "" {
		// One that runs outside of the emulated machine.
		env.registry, err = peer.UseRegistry(kubeconfig)
	} else {
		registry := findProgram(t, "RUTTER_REGISTRY_BIN", "rutter-registry")
		env.registry, err = peer.StartRegistry(registry, env.dir, "--service-cidr", serviceCIDRs, "--pod-cidr", podCIDRs)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(env.registry.Stop)
	env.cluster = &cluster{client: env.registry.Client, services: make(map[string]*service)}
	r := &runner{t: t, ctx: t.Context(), env: env, details: make(map[string]int), cluster: env.cluster}
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
		if k.here() && matches(*onlyKind, k.String()) {
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
	r.compareRules()
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
		slots := make(chan struct{}, 24/slowness)
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
				if !res.accepts(res.kind, res.seen) {
					t.Errorf("%s: seen %q, want %q%s\n%s", res.kind, res.seen, want, why(deviation), res.detail)
				}
			}
		})
	}
	for _, res := range r.results {
		if res.looks > 1 {
			r.t.Logf("looked at %d times: %s: %s", res.looks, res.kind, res.row)
		}
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
